"""Processes that end by themselves, by a signal, by the kernel, or beside another; disks and clocks that misbehave.

Each case starts the program as users do, disturbs it, and looks at how it ended, how long that took, and whether the
same command afterwards ends with 0 and the bytes of an undisturbed call.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from campaigns.scenarios import SCENARIOS, Scenario, differences, tree_of

NOBODY = 65534
STOP_S = 5.0


@dataclass
class Place:
    """A scenario in its folder, how a call went undisturbed, and what went wrong since."""

    scenario: Scenario
    folder: Path
    reference: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def start(self, *more: str, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen:
        """Start the program; what it says goes to a file."""
        words = [
            word for word in self.scenario.argv(self.folder) if "linear.yml" not in word and word != "--use-plugin"
        ]
        words = ["2" if words[at - 1] == "--nprocs" else word for at, word in enumerate(words)]
        command = [*prefix, sys.executable, "-m", "neurostorm_bids", *words, "--omp-nthreads", "1", *more]
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                command, stdout=said, stderr=said, start_new_session=True, cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )  # fmt: skip

    def call(self, *more: str, **environment: str) -> int:
        """Run the program to its end."""
        return self.start(*more, **environment).wait(900)

    def said(self) -> str:
        """What the last call said."""
        return (self.folder / "said").read_text(errors="replace")

    def check(self, true: bool, what: str) -> None:
        """Note what is not as it must be."""
        if not true:
            self.faults.append(f"{what}: {self.said()[-700:]}")

    def finish(self) -> None:
        """The same command again must give the undisturbed tree."""
        self.check(self.call() == 0, "the same command again failed")
        if odd := differences(tree_of(self.folder / "out"), self.reference):
            self.faults.append(f"another tree: {odd[:5]}")

    def wait_for(self, pattern: str, process: subprocess.Popen, limit_s: float = 300) -> None:
        """Wait until a file is there below the output or work folder."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and process.poll() is None:
            if any(next((self.folder / top).rglob(pattern), None) for top in ("out", "work")):
                return
            time.sleep(0.02)


def main(arguments: Sequence[str] = ()) -> int:
    """Run the campaign; returns 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="kills", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES))
    parser.add_argument("--kills", type=int, default=20, help="random kills (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(list(arguments))
    print(f"seed {options.seed}")
    failed = 0
    ready: dict[str, Place] = {}
    for name, (scenario, case) in CASES.items():
        if options.only and name not in options.only:
            continue
        with contextlib.ExitStack() as stack:
            place = ready.get(scenario) or _undisturbed(scenario)
            ready[scenario] = place
            place.faults.clear()
            place.scenario.clear(place.folder)
            started = time.monotonic()
            stack.callback(_end_all, place)
            case(place, options)
        failed += bool(place.faults)
        print(f"  {name}: {'FAILED ' + '; '.join(place.faults) if place.faults else 'holds'} "
              f"({time.monotonic() - started:.0f} s)", flush=True)  # fmt: skip
    for place in ready.values():
        shutil.rmtree(place.folder, ignore_errors=True)
    print(f"kills: {failed} cases failed", flush=True)
    return 1 if failed else 0


def _undisturbed(name: str) -> Place:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
    place = Place(scenario, Path(tempfile.mkdtemp(prefix="neurostorm-kills-")).resolve())
    place.folder.chmod(0o755)
    scenario.make(place.folder)
    started = time.monotonic()
    if place.call() != 0:
        raise SystemExit(f"{name}: the undisturbed call failed: {place.said()[-2000:]}")
    place.seconds = time.monotonic() - started
    place.reference = tree_of(place.folder / "out")
    return place


def _end_all(place: Place) -> None:
    place.faults = list(place.faults)


# --- signals --------------------------------------------------------------------------------------------------------


def _stopped(number: signal.Signals, code: int, pattern: str, *, group: bool) -> Callable:
    def case(place: Place, options: argparse.Namespace) -> None:
        process = place.start()
        place.wait_for(pattern, process)
        started = time.monotonic()
        (os.killpg if group else os.kill)(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        seconds = time.monotonic() - started
        place.check(process.returncode == code, f"ended with {process.returncode}, not {code}")
        place.check(seconds < STOP_S, f"took {seconds:.1f} s")
        place.check(
            "resumes where it stopped" in place.said() and "Traceback" not in place.said(), "says no word of it"
        )
        place.check(not _left_of(process.pid), "left processes behind")
        place.finish()

    return case


def _left_of(group: int, after_s: float = 0.5) -> list[int]:
    time.sleep(after_s)
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                left.append(int(stat.parent.name))
    return left


def _random_kills(place: Place, options: argparse.Namespace) -> None:
    generator = random.Random(options.seed)
    for _ in range(options.kills):
        place.scenario.clear(place.folder)
        process = place.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(0.3, 1.0) * place.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        place.finish()


def _worker_killed(place: Place, options: argparse.Namespace) -> None:
    """As the kernel does where memory runs out: one worker, without a word."""
    process = place.start()
    workers: list[int] = []
    while not workers and process.poll() is None:
        group = [pid for pid in _left_of(process.pid, after_s=0.02) if "forkserver" in _command(pid)]
        workers = [pid for pid in group if _parent(pid) in group]
    for pid in workers[:1]:
        os.kill(pid, signal.SIGKILL)
    code = process.wait(300)
    place.check(code in (0, 1), f"ended with {code}")  # 0: the lost run was computed anew, alone
    place.check(bool(workers), "no worker was found to kill")
    place.finish()


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _ranks_of(launcher: int) -> list[int]:
    """The processes that torchrun started, each of which has a session of its own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == launcher and state != "Z" and "neurostorm_bids" in _command(int(stat.parent.name)):
                found.append(int(stat.parent.name))
    return found


def _rank_killed(place: Place, options: argparse.Namespace) -> None:
    """One of two training processes dies; the other ends in bounded time, and the training is gone on with."""
    words = place.scenario.argv(place.folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                "neurostorm_bids", *words, "--epochs", "400", "--batch-size", "1"]  # fmt: skip
    with (place.folder / "said").open("wb") as said:
        process = subprocess.Popen(
            torchrun, stdout=said, stderr=said, start_new_session=True, cwd=place.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    place.wait_for("last.ckpt", process)
    ranks = _ranks_of(process.pid)
    place.check(len(ranks) == 2, f"{len(ranks)} ranks were found")
    started = time.monotonic()
    for pid in ranks[-1:]:
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(120)
    place.check(process.returncode not in (None, 0), "did not end in 120 s")
    place.check("exitcode" in place.said() or "Signal" in place.said(), "says no word of it")
    place.check(not any("neurostorm_bids" in _command(pid) for pid in ranks), "left processes behind")
    print(f"    both ranks had ended {time.monotonic() - started:.1f} s after one was killed")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    place.scenario.clear(place.folder)
    place.finish()


# --- disks, users, clocks, company ----------------------------------------------------------------------------------


def _small_disk(place: Place, options: argparse.Namespace) -> None:
    """A file system that holds the work folder, but not all results."""
    out = place.folder / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(out)], check=False).returncode:
        print("    skipped: no right to mount")
        return
    try:
        code = place.call()
        place.check(code in (1, 65, 73, 74), f"ended with {code}")
        place.check("No space left on device" in place.said() and "Traceback" not in place.said(), "does not say why")
        half = [name for name in tree_of(out) if name.split("/")[-1].startswith(".") and name.endswith(".tmp")]
        place.check(not half, f"left {half}")
    finally:
        subprocess.run(["umount", str(out)], check=True)
    place.finish()


def _read_only(place: Place, options: argparse.Namespace) -> None:
    """The output folder belongs to somebody else."""
    if os.geteuid() != 0:
        print("    skipped: needs root, to be somebody else")
        return
    (place.folder / "out").mkdir(mode=0o755)
    (place.folder / "work").mkdir()
    os.chown(place.folder / "work", NOBODY, NOBODY)
    before = shutil.which("setpriv")
    if before is None or not os.access(sys.executable, os.X_OK):
        print("    skipped: needs setpriv")
        return
    process = place.start(
        prefix=[before, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"], HOME="/nonexistent"
    )
    code = process.wait(300)
    place.check(code == 73, f"ended with {code}, not 73")
    place.check("Permission denied" in place.said() and "Traceback" not in place.said(), "does not say why")
    shutil.rmtree(place.folder / "work")
    place.finish()


def _work_deleted(place: Place, options: argparse.Namespace) -> None:
    """Killed half-way, and the work folder is removed before the next call."""
    process = place.start()
    place.wait_for("*_embedding.tsv", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(place.folder / "work", ignore_errors=True)
    place.finish()


def _two_at_once(place: Place, options: argparse.Namespace) -> None:
    """Two calls on one output, with work folders of their own."""
    first = place.start()
    second = place.start("-w", str(place.folder / "work2"))
    codes = first.wait(600), second.wait(600)
    place.check(codes == (0, 0), f"ended with {codes}")
    if odd := differences(tree_of(place.folder / "out"), place.reference):
        odd = [text for text in odd if "html" not in text]  # pages show the command that was typed
        place.check(not odd, f"another tree: {odd[:5]}")


def _clock_moved(place: Place, options: argparse.Namespace) -> None:
    """Killed half-way; the next call believes to live a year earlier."""
    library = next(iter(Path("/usr/lib").rglob("libfaketime.so.1")), None)
    if library is None:
        print("    skipped: libfaketime (Debian's faketime) is not installed")
        return
    process = place.start()
    place.wait_for("*_embedding.tsv", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code = place.call(LD_PRELOAD=str(library), FAKETIME="-365d", FAKETIME_DONT_FAKE_MONOTONIC="1")
    place.check(code == 0, f"a year earlier it ended with {code}")
    place.finish()


CASES: dict[str, tuple[str, Callable]] = {
    "terminated": ("participant", _stopped(signal.SIGTERM, 143, "*_qc.tsv", group=False)),
    "interrupted": ("participant", _stopped(signal.SIGINT, 130, "*_qc.tsv", group=True)),
    "worker-killed": ("participant", _worker_killed),
    "small-disk": ("participant", _small_disk),
    "read-only": ("participant", _read_only),
    "work-deleted": ("participant", _work_deleted),
    "two-at-once": ("participant", _two_at_once),
    "clock-moved": ("participant", _clock_moved),
    "training-terminated": ("pretrain", _stopped(signal.SIGTERM, 143, "last.ckpt", group=False)),
    "training-interrupted": ("pretrain", _stopped(signal.SIGINT, 130, "last.ckpt", group=True)),
    "rank-killed": ("pretrain", _rank_killed),
    "random-kills": ("participant", _random_kills),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
