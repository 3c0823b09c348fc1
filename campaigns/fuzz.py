"""Damaged and invented files through every reader, for so many seconds each.

Only the program's own errors may reach the caller; no case may take longer than a few seconds of CPU or more than a
bounded memory. Files that brought a reader to an outcome not seen before are kept in ``--corpus`` and are the start of
the next call; files that did harm are kept beside them. A reader runs in a process of its own, so that even a crash of
a library is told with its file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaigns.outcome import Outcome

CASE_S = 10  # of CPU
STUCK_S = 300  # of the clock: a case that waits for ever uses no CPU
MEMORY_BYTES = 3 * 2**30  # address space beyond what the imports took; the largest that any reader accepts is 1.1 GB
BATCH = 200
LARGEST_KEPT = 200_000
MOST_KEPT = 300


class TooSlow(BaseException):
    """A case over its time; no handler of the program takes it for an error of its own."""


@dataclass
class Tally:
    """What came of one reader's cases."""

    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    failures: dict[str, bytes] = field(default_factory=dict)


def main(arguments: Sequence[str] = ()) -> Outcome:
    """Fuzz each reader in a process of its own, several at once."""
    options = _parser().parse_args(list(arguments))
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"fuzz: seed {seed}, {options.seconds} s each", flush=True)
    if options.alone:
        return _alone(options.alone, options.seconds, seed, options.corpus)
    from campaigns.fuzz_targets import TARGETS

    names = [target.name for target in TARGETS if not options.only or target.name in options.only]
    answers: dict[str, dict[str, Any]] = {}
    waiting, running = list(names), dict[str, tuple[subprocess.Popen[bytes], Path]]()
    with tempfile.TemporaryDirectory(prefix="neurostorm-fuzz-") as scratch:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                name = waiting.pop(0)
                running[name] = _started(name, options, seed, Path(scratch))
            for name, (process, file) in list(running.items()):
                if process.poll() is not None:
                    answers[name] = _answer(name, process, file, options.corpus)
                    del running[name]
            time.sleep(0.2)
    return _outcome(seed, {name: answers[name] for name in names})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="time of each reader (default 30)")
    parser.add_argument("--only", nargs="+", default=[], metavar="READER", help="these readers alone")
    parser.add_argument("--seed", type=int, help="repeat a call; else one is drawn and printed")
    parser.add_argument("--corpus", type=Path, help="folder of kept files, read and added to")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="readers at once")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    return parser


def _started(name: str, options: argparse.Namespace, seed: int, scratch: Path) -> tuple[subprocess.Popen[bytes], Path]:
    answer = scratch / f"{name}.json"
    words = ["--seconds", str(options.seconds), "--seed", str(seed), "--alone", f"{name}={answer}"]
    words += ["--corpus", str(options.corpus)] if options.corpus else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "campaigns", "fuzz", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL), answer


def _answer(name: str, process: subprocess.Popen[bytes], file: Path, corpus: Path | None) -> dict[str, Any]:
    """What a reader's process wrote; where it crashed, the case that it was at."""
    if file.is_file():
        return json.loads(file.read_text())
    at = file.with_name(f"{name}-case")
    _keep(corpus, f"{name}-failures", at.read_bytes() if at.is_file() else b"")
    return {"cases": 0, "ends": {}, "failures": [f"the process ended with {process.returncode}"], "peak_mb": 0}


def _outcome(seed: int, answers: dict[str, dict[str, Any]]) -> Outcome:
    for name, answer in answers.items():
        print(
            f"  {name}: {answer['cases']} cases, {len(answer['ends'])} outcomes, peak {answer['peak_mb']} MB",
            flush=True,
        )
    failures = tuple(f"{name}: {text}" for name, answer in answers.items() for text in answer["failures"])
    counts = {"cases": sum(answer["cases"] for answer in answers.values()), "seed": seed, "readers": answers}
    return Outcome(counts, failures)


# --- one reader -----------------------------------------------------------------------------------------------------


def _alone(what: str, seconds: int, seed: int, corpus: Path | None) -> Outcome:
    """One reader in this process; the answer goes into a file."""
    from campaigns.fuzz_targets import TARGETS

    warnings.simplefilter("ignore")
    name, _, answer = what.partition("=")
    target = next(target for target in TARGETS if target.name == name)
    tally = Tally()
    kept = _kept(corpus, name)
    case = Path(answer).with_name(f"{name}-case")
    with tempfile.TemporaryDirectory(prefix="neurostorm-fuzz-") as folder:
        path = Path(folder) / "case"
        for raw in kept:
            _one(target.read, path, case, raw, tally, corpus, name)
        _bound_memory()
        end, batch = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            _batch(target, kept, seed + batch, path, case, end, tally, corpus)
            batch += 1
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for raw in tally.failures.values():
        _keep(corpus, f"{name}-failures", raw)
    texts = [f"{text} [{len(raw)} bytes: {raw[:60]!r}]" for text, raw in tally.failures.items()]
    content = {"cases": tally.cases, "ends": dict(tally.ends.most_common()), "failures": texts, "peak_mb": peak_mb}
    Path(answer).write_text(json.dumps(content))
    return Outcome({"cases": tally.cases}, tuple(texts))


def _batch(
    target: Any, kept: Sequence[bytes], seed: int, path: Path, case: Path, end: float, tally: Tally, corpus: Path | None
) -> None:
    import hypothesis

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(raw=target.cases(kept))
    def examples(raw: bytes) -> None:
        if time.monotonic() < end:
            _one(target.read, path, case, raw, tally, corpus, target.name)

    examples()


def _one(read: Any, path: Path, case: Path, raw: bytes, tally: Tally, corpus: Path | None, name: str) -> None:
    from neurostorm_bids.errors import NeurostormError

    for place in (path, case):
        place.write_bytes(raw)
    tally.cases += 1
    try:
        with _timed():
            read(path)
        end = "read"
    except NeurostormError as error:
        end = " | ".join(_general(part) for part in f"{type(error).__name__}: {error.fault}".split(" | "))
    except (Exception, TooSlow) as escaped:
        end = _escape(escaped)
        if len(raw) <= len(tally.failures.get(end, raw)):
            tally.failures[end] = raw
    if end not in tally.ends and len(raw) <= LARGEST_KEPT and len(tally.ends) < MOST_KEPT:
        _keep(corpus, name, raw)
    tally.ends[end] += 1


def _general(fault: str) -> str:
    """A fault without the values of one case."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[-+]?[0-9][0-9.e+x-]*|nan|inf|\([^)]*\)", "#", fault)[:60]


def _escape(escaped: BaseException) -> str:
    """What escaped, and the last place of the program that it passed."""
    own = [frame for frame in traceback.extract_tb(escaped.__traceback__) if "neurostorm_bids" in frame.filename]
    place = f"{own[-1].filename.rpartition('neurostorm_bids/')[2]}:{own[-1].lineno}" if own else "?"
    return f"{type(escaped).__name__} at {place}: {_general(str(escaped))}"


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    def stop(number: int, _: object) -> None:
        raise TooSlow(f"more than {CASE_S if number == signal.SIGPROF else STUCK_S} s")

    signal.signal(signal.SIGPROF, stop), signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, CASE_S), signal.alarm(STUCK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0), signal.alarm(0)


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# --- kept files -----------------------------------------------------------------------------------------------------


def _kept(corpus: Path | None, name: str) -> list[bytes]:
    folder = corpus / name if corpus else None
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder and folder.is_dir() else []


def _keep(corpus: Path | None, name: str, raw: bytes) -> None:
    if corpus:
        (corpus / name).mkdir(parents=True, exist_ok=True)
        (corpus / name / hashlib.sha256(raw).hexdigest()[:16]).write_bytes(raw)
