"""Defective datasets, models and options, each through the command line.

Every case has two good runs and what a defect spoils. Each time: the documented exit code; a message with the file, the
fault and the remedy; no traceback; the results of the good runs are byte for byte those of a dataset without the
spoilt run; nothing of the input has changed; and no number comes out of what was refused.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from campaigns.bad_tree import TEMPLATE, VICTIM, Case, write_base
from campaigns.defect import Defect, End
from campaigns.outcome import Outcome

AS_PROGRAM = 20  # every n-th case runs as a program of its own, the others in this process
LONGEST_S = 600


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    code: int
    said: str
    seconds: float


class Workshop:
    """Makes cases, runs them, and knows what the undisturbed call writes."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._bases: dict[tuple[str, bool], Path] = {}

    def case(self, name: str, space: str = TEMPLATE, victim: bool = True) -> Case:
        """A fresh copy of the good dataset."""
        key = (space, victim)
        if key not in self._bases:
            base = self.scratch / f"base-{len(self._bases)}"
            write_base(base, space, victim)
            self._bases[key] = base
        folder = self.scratch / re.sub(r"\W+", "-", name)[:60]
        shutil.copytree(self._bases[key], folder)
        return Case(folder, space)

    @cached_property
    def without(self) -> dict[str, str]:
        """Hashes of what is written where there is no spoilt run at all."""
        return self._undisturbed("without", TEMPLATE, False)

    @cached_property
    def _whole(self) -> dict[str, dict[str, str]]:
        return {}

    def whole(self, space: str) -> dict[str, str]:
        """Hashes of what is written where nothing is spoilt."""
        if space not in self._whole:
            self._whole[space] = self._undisturbed(f"whole-{space}", space, True)
        return self._whole[space]

    def _undisturbed(self, name: str, space: str, victim: bool) -> dict[str, str]:
        case = self.case(name, space, victim)
        ended = call(case, ())
        if ended.code:
            raise RuntimeError(f"the undisturbed call ended with {ended.code}: {ended.said}")
        return results(case.folder / "out")

    def problems(self, defect: Defect, as_program: bool = False) -> list[str]:
        """What went wrong in one case; nothing where the program did as it should."""
        case = self.case(defect.name, defect.space)
        try:
            defect.plant(case)
            before = listing(case.dataset)
            ended = call(case, defect.words, defect.base, as_program or defect.unprivileged, defect.unprivileged)
            found = [*_end_faults(defect, ended, case), *_result_faults(defect, case, self)]
            if listing(case.dataset) != before:
                found.append("the input was changed")
            return found
        finally:
            unlock(case.folder)
            shutil.rmtree(case.folder)


# --- a call ---------------------------------------------------------------------------------------------------------

BASE = ("{}/fmriprep", "{}/out", "participant", "-w", "{}/work", "--offline", "--use-plugin", "{}/linear.yml")


def call(
    case: Case,
    words: Sequence[str],
    base: Sequence[str] | None = None,
    as_program: bool = False,
    unprivileged: bool = False,
) -> Ended:
    """One command line, in this process or as a program."""
    given = [*(BASE if base is None else base), *words]
    if base is None and "--model" not in words:
        given += ["--model", "{}/tiny"]
    arguments = [case.words(word) for word in given]
    start = time.monotonic()
    code, said = _as_program(arguments, unprivileged) if as_program else _here(arguments)
    return Ended(code, " ".join(said.split()), time.monotonic() - start)


def _as_program(arguments: Sequence[str], unprivileged: bool = False) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "neurostorm_bids", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST_S, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},  # both streams in the order of what is said, as on a terminal
        preexec_fn=obey_permissions if unprivileged else None,
    )  # fmt: skip
    return done.returncode, done.stdout.decode("utf-8", "replace")


def obey_permissions() -> None:
    """Give up root's power to read and write what permissions forbid; of no effect for anybody else."""
    import ctypes

    drop_from_bounding_set, override, read_search = 24, 1, 2  # linux/prctl.h, linux/capability.h
    for power in (override, read_search):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, power, 0, 0, 0)


def _here(arguments: Sequence[str]) -> tuple[int, str]:
    from neurostorm_bids.cli import main

    with tempfile.TemporaryFile() as stream:
        with _written_to(stream.fileno()):
            try:
                code = main(list(arguments))
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception as escaped:  # what a user would see as a traceback
                import traceback

                code = -1
                os.write(2, f"Traceback {''.join(traceback.format_exception(escaped))}".encode(errors="replace"))
        stream.seek(0)
        return code, stream.read().decode("utf-8", "replace")


@contextlib.contextmanager
def _written_to(descriptor: int) -> Iterator[None]:
    """Standard output and error of this process go to a file, whoever holds them."""
    sys.stdout.flush(), sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", 1, encoding="utf-8") for n in (1, 2))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.close()
        sys.stdout, sys.stderr = streams
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
            os.close(old)


# --- what must hold -------------------------------------------------------------------------------------------------


def _end_faults(defect: Defect, ended: Ended, case: Case) -> Iterator[str]:
    said = ended.said.replace(str(case.folder), "{}")
    told = _told(said)
    if "Traceback" in ended.said:
        yield f"a traceback: {said[-700:]}"
    if "unforeseen" in ended.said:
        yield f"an unforeseen error: {said[-500:]}"
    if ended.code != defect.code:
        yield f"exit code {ended.code}, expected {defect.code}: {told}"
    for part, pattern in {"file": defect.file, "fault": defect.fault, "remedy": defect.remedy}.items():
        if pattern and not re.search(pattern, said):
            yield f"the message lacks the {part} ({pattern}): {told}"


def _told(said: str) -> str:
    """The end of what was said, where failures are named."""
    starts = [match.start() for match in re.finditer("failed: |rejected: |neurostorm: ", said)]
    return said[starts[-1] :][:600] if starts else said[-600:]


def _result_faults(defect: Defect, case: Case, workshop: Workshop) -> Iterator[str]:
    found = results(case.folder / "out")
    if defect.end is End.STOP:
        if any(name.startswith("sub-") for name in found):
            yield "results were written although the call was refused"
        return
    if defect.end in (End.GROUP, End.POOLED):
        return
    wanted = workshop.whole(defect.space) if defect.end is End.SAME else workshop.without
    spoilt = {name for name in found if VICTIM in name}
    wrong = [name for name in sorted(wanted) if found.get(name) != wanted[name] and not _is_excused(name, defect)]
    if wrong:
        yield f"{len(wrong)} files of good runs differ or are missing: {wrong[:2]}"
    if defect.end is End.REFUSED and spoilt:
        yield f"results of the refused run: {sorted(spoilt)[:3]}"
    if defect.end is End.WARNED and not any(name.endswith("_embedding.tsv") for name in spoilt):
        yield "the run has no embedding"


def _is_excused(name: str, defect: Defect) -> bool:
    """Sidecars hold hashes of the files that a run was computed from; a participant's runs share their transforms."""
    if defect.other and re.search(defect.other, name):
        return True
    concerned = VICTIM in name if defect.end is End.SAME else defect.space == "T1w" and name.startswith("sub-02/")
    return concerned and name.endswith(".json")


def results(output: Path) -> dict[str, str]:
    """Hashes of the tables, sidecars and figures of an output folder."""
    files = (path for path in sorted(output.rglob("*")) if path.is_file() and path.suffix not in (".html", ".txt"))
    named = {path.relative_to(output).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in named.items()
        if name.startswith(("sub-", "phenotype/")) and "/log/" not in name
    }


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of an input folder; links are not followed."""
    found = []
    for root, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            status = os.lstat(os.path.join(root, name))  # noqa: PTH118 - names need not be text
            found.append((os.path.join(root, name), status.st_size, status.st_mtime_ns))  # noqa: PTH118
    return found


def unlock(folder: Path) -> None:
    """Permissions with which a folder can be removed again."""
    for path in folder.rglob("*"):
        if not path.is_symlink() and path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            path.chmod(0o755)


# --- the campaign ---------------------------------------------------------------------------------------------------


def all_defects() -> tuple[Defect, ...]:
    """The published list, in its order."""
    from campaigns import bad_groups, bad_images, bad_models, bad_tables, bad_trees

    return tuple(
        one for module in (bad_images, bad_tables, bad_trees, bad_models, bad_groups) for one in module.DEFECTS
    )


def table(defects: Sequence[Defect]) -> str:
    """The list as docs/reliability.md shows it."""
    heads = ["| | defect | exit code | what becomes of it |", "|---|---|---|---|"]
    rows = [f"| {n} | {one.name} | {one.code} | {one.end.value} |" for n, one in enumerate(defects, 1)]
    return "\n".join([*heads, *rows])


def main(arguments: Sequence[str] = ()) -> Outcome:
    """Run the cases that are named, else all."""
    options = _parser().parse_args(list(arguments))
    chosen = [one for one in all_defects() if all(word in one.name for word in options.only)]
    if options.table:
        print(table(all_defects()))
        return Outcome()
    with tempfile.TemporaryDirectory(prefix="neurostorm-bad-input-") as name:
        failures = list(_failures(Workshop(Path(name).resolve()), chosen, options.verbose))
    ends = Counter(one.end.value for one in chosen)
    counts: dict[str, object] = {"defects": len(chosen), "ends": dict(ends)}
    return Outcome(counts, tuple(failures))


def _failures(workshop: Workshop, chosen: Sequence[Defect], verbose: bool) -> Iterator[str]:
    for number, defect in enumerate(chosen):
        start = time.monotonic()
        found = workshop.problems(defect, as_program=number % AS_PROGRAM == 0)
        if verbose:
            print(f"{time.monotonic() - start:6.2f} s  {defect.name}", flush=True)
        if found:
            yield f"{defect.name}: {'; '.join(found[:3])}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bad-input", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases whose name has these words")
    parser.add_argument("--table", action="store_true", help="print the list as docs/reliability.md shows it")
    parser.add_argument("--verbose", action="store_true", help="print each case and its seconds")
    return parser


Plant = Callable[[Case], None]
