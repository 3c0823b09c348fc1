"""A fault at every write boundary of the participant level, of aggregation and of training.

A first call, undisturbed, counts the boundaries (see fault_shim.c). Then one call a boundary and kind of fault: killed
there (a write half done), a disk that is full from there on, one input/output error there. Each time:

- a killed call leaves no half file under a final name;
- a call that fails says so: a documented exit code, the file and what to do, no traceback; one that ends with 0 has
  left the whole tree;
- the same command again ends with 0, and the tree is byte for byte that of the undisturbed call, nothing else in it.

Of more than three successive writes into one file the first, the middle and the last are taken; all other boundaries
are taken one by one, or every N-th of them with ``--every N``. With ``--journal FILE`` every case is written down as it
ends, and a later call tries those that are not there yet; what failed is tried again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from campaigns.scenarios import SCENARIOS, Scenario, differences, half_files, tree_of
from campaigns.zygote import Ended, Zygote

KINDS = ("kill", "full", "broken")
CODES = {1, 65, 73, 74}  # docs/reference.md; 0 where the fault was survived
REASONS = {"full": "No space left on device", "broken": "Input/output error"}
REMEDIES = re.compile(r"(?i)free space|run again|resumes|permission|name another|name a writable|--work-dir")


@dataclass(frozen=True)
class Boundary:
    """One call that changes something on disk."""

    number: int
    call: str
    allocates: bool
    path: str


@dataclass(frozen=True)
class Journal:
    """The cases of one scenario that an earlier call saw pass; of another list of boundaries none counts."""

    path: Path | None
    scenario: str
    n_boundaries: int

    def passed(self) -> list[tuple[str, int, bool]]:
        """Kind, number of the boundary, whether the fault was survived."""
        if self.path is None or not self.path.exists():
            return []
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        own = [row for row in rows if (row["scenario"], row["boundaries"]) == (self.scenario, self.n_boundaries)]
        return sorted({(row["kind"], row["number"], row["survived"]) for row in own if not row["faults"]})

    def add(self, kind: str, boundary: Boundary, survived: bool, faults: Sequence[str]) -> None:
        """Write down one case."""
        if self.path is None:
            return
        row = {"scenario": self.scenario, "boundaries": self.n_boundaries, "kind": kind, "number": boundary.number}
        with self.path.open("a") as file:
            file.write(json.dumps({**row, "survived": survived, "faults": list(faults)}) + "\n")


@dataclass
class Tally:
    """What came of the cases of one scenario."""

    cases: Counter = field(default_factory=Counter)
    survived: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def known(self, journal: Journal, cases: Sequence[tuple[str, Boundary]]) -> set[tuple[str, int]]:
        """Count the cases that passed in an earlier call."""
        wanted = {(kind, boundary.number) for kind, boundary in cases}
        passed = [(kind, number, survived) for kind, number, survived in journal.passed() if (kind, number) in wanted]
        for kind, _, survived in passed:
            self.cases[kind] += 1
            self.survived[kind] += survived
        return {(kind, number) for kind, number, _ in passed}

    def add(self, kind: str, boundary: Boundary, survived: bool, faults: Sequence[str], folder: Path) -> None:
        """Count a case and tell of one that failed."""
        self.cases[kind] += 1
        self.survived[kind] += survived
        if faults:
            where = boundary.path.replace(f"{folder}/", "")
            self.failures.append(f"{kind} {boundary.number} {boundary.call} {where}: {'; '.join(faults)}")
            print(f"  FAILED {self.failures[-1]}", flush=True)


def main(arguments: Sequence[str] = ()) -> int:
    """Run the campaign; returns 1 when a case failed."""
    options = _parser().parse_args(list(arguments))
    started = time.monotonic()
    failed = 0
    for scenario in SCENARIOS:
        if options.scenario and scenario.name not in options.scenario:
            continue
        with tempfile.TemporaryDirectory(prefix="neurostorm-faults-") as name:
            failed += _run(scenario, Path(name).resolve(), options)
    print(f"faults: {failed} cases failed, {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--scenario", nargs="+", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th boundary (default 1)")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="take these boundaries")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="go on from the cases that are written there")
    parser.add_argument("--minutes", type=float, help="stop each scenario after them: what was done is an even sample")
    return parser


def _run(scenario: Scenario, folder: Path, options: argparse.Namespace) -> int:
    scenario.make(folder)
    zygote = Zygote(folder)
    try:
        boundaries, reference, versions = _undisturbed(scenario, folder, zygote)
        journal = Journal(options.journal, scenario.name, len(boundaries))
        tally, cases = Tally(), _spread(list(_cases(boundaries, options)))
        done = tally.known(journal, cases)
        started = time.monotonic()
        for kind, boundary in cases:
            if (kind, boundary.number) in done:
                continue
            if options.minutes and time.monotonic() - started > 60 * options.minutes:
                break
            survived, faults = _case(scenario, folder, zygote, kind, boundary, reference, versions)
            journal.add(kind, boundary, survived, faults)
            tally.add(kind, boundary, survived, faults, folder)
    finally:
        zygote.close()
    _report(scenario, boundaries, tally, len(cases))
    return len(tally.failures)


def _undisturbed(
    scenario: Scenario, folder: Path, zygote: Zygote
) -> tuple[list[Boundary], dict[str, str], dict[str, set[str]]]:
    """Boundaries, the tree that must come out, and every whole version of each file on the way to it."""
    log = folder / "boundaries"
    scenario.clear(folder)
    before = tree_of(folder / "out") if (folder / "out").exists() else {}
    ended = zygote.call(scenario.argv(folder), roots=[folder / "out", folder / "work"], log=log)
    if ended.code:
        raise SystemExit(f"{scenario.name}: the undisturbed call ended with {ended.code}\n{ended.said}")
    boundaries = _read(log)
    reference = tree_of(folder / "out")
    versions: dict[str, set[str]] = {name: {content} for name, content in reference.items()}
    for name, content in before.items():
        versions.setdefault(name, set()).add(content)
    _check_repeatable(scenario, folder, zygote, reference)
    return boundaries, reference, versions


def _check_repeatable(scenario: Scenario, folder: Path, zygote: Zygote, reference: dict[str, str]) -> None:
    scenario.clear(folder)
    zygote.call(scenario.argv(folder))
    if odd := differences(tree_of(folder / "out"), reference):
        raise SystemExit(f"{scenario.name}: two undisturbed calls differ: {odd}")


def _read(log: Path) -> list[Boundary]:
    rows = (line.split(" ", 3) for line in log.read_text().splitlines())
    return [Boundary(int(number), call, allocates == "1", path) for number, call, allocates, path in rows]


def _cases(boundaries: Sequence[Boundary], options: argparse.Namespace) -> Iterator[tuple[str, Boundary]]:
    chosen = thinned(boundaries)[:: options.every]
    if options.only:
        chosen = [boundary for boundary in boundaries if boundary.number in options.only]
    for kind in options.kind:
        for boundary in chosen:
            if kind != "full" or boundary.allocates:
                yield kind, boundary


def _spread(cases: list[tuple[str, Boundary]]) -> list[tuple[str, Boundary]]:
    """The same cases, so that those at the front are an even sample of all."""
    return [case for start in (0, 8, 4, 12, 2, 10, 6, 14, *range(1, 16, 2)) for case in cases[start::16]]


def thinned(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """Of more than three successive writes into one file the first, the middle and the last."""
    kept: list[Boundary] = []
    for (call, _), group in groupby(boundaries, key=lambda b: (b.call, b.path)):
        same = list(group)
        kept += same if call != "write" or len(same) <= 3 else [same[0], same[len(same) // 2], same[-1]]
    return kept


def _case(
    scenario: Scenario,
    folder: Path,
    zygote: Zygote,
    kind: str,
    boundary: Boundary,
    reference: dict[str, str],
    versions: dict[str, set[str]],
) -> tuple[bool, list[str]]:
    """Whether the fault was survived, and what was wrong."""
    scenario.clear(folder)
    roots = [folder / "out", folder / "work"]
    hit = zygote.call(scenario.argv(folder), how=kind, at=boundary.number, roots=roots)
    left = tree_of(folder / "out") if (folder / "out").exists() else {}
    faults = [f"half file {name}" for name in half_files(folder / "out", left, versions)]
    faults += _faults_of_end(kind, hit, left, reference, folder)
    again = zygote.call(scenario.argv(folder))
    if again.code:
        faults.append(f"the same command again ended with {again.code}: {again.said[-600:]}")
    else:
        faults += differences(tree_of(folder / "out"), reference)
    return hit.code == 0, faults


def _faults_of_end(kind: str, hit: Ended, left: dict[str, str], reference: dict[str, str], folder: Path) -> list[str]:
    if kind == "kill":
        return [] if hit.code in (-9, 0) else [f"ended with {hit.code} instead of being killed: {hit.said[-600:]}"]
    if "Traceback" in hit.said:
        return [f"a traceback, exit {hit.code}: {hit.said[-1500:]}"]
    if hit.code == 0:
        odd = [text for text in differences(left, reference) if "should not be there" not in text]
        return [f"exit 0, yet {text}" for text in odd]
    faults = [] if hit.code in CODES else [f"exit {hit.code}: {hit.said[-600:]}"]
    for what, there in {
        "the reason": REASONS[kind] in hit.said,
        "the file": f"{folder}/out" in hit.said.replace(f"Results: {folder}/out", "") or f"{folder}/work" in hit.said,
        "a remedy": bool(REMEDIES.search(hit.said)),
    }.items():
        if not there:
            faults.append(f"exit {hit.code} without {what}: {hit.said[-900:]}")
    return faults


def _report(scenario: Scenario, boundaries: Sequence[Boundary], tally: Tally, n_cases: int) -> None:
    calls = ", ".join(f"{n} {call}" for call, n in sorted(Counter(b.call for b in boundaries).items()))
    print(f"{scenario.name}: {len(boundaries)} boundaries ({calls}); {len(thinned(boundaries))} without like writes")
    print(f"  {sum(tally.cases.values())} of {n_cases} cases, {len(tally.failures)} failed")
    for kind, n in tally.cases.items():
        print(f"  {kind}: {n} cases, {tally.survived[kind]} of them ended with 0 and the whole tree")
    if not tally.failures:
        print("  every rerun ended with 0 and the same bytes", flush=True)


if __name__ == "__main__":
    import sys

    shutil.which("cc") or sys.exit("faults: needs a C compiler")
    sys.exit(main(sys.argv[1:]))
