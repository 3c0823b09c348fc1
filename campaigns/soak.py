"""Many small runs through one process: memory and open files stay flat; --mem beside what a call really takes."""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from campaigns.scenarios import write_runs, write_tiny_model

WARM = 20  # runs after which nothing more is loaded or cached
MOST_KB_A_RUN = 20.0


def main(arguments: Sequence[str] = ()) -> int:
    """Run the campaign; returns 1 when something grew, or more memory was taken than was allowed."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--skip", nargs="+", choices=("soak", "mem"), default=())
    options = parser.parse_args(list(arguments))
    with tempfile.TemporaryDirectory(prefix="neurostorm-soak-") as name:
        folder = Path(name).resolve()
        faults = [] if "soak" in options.skip else _soak(folder, options.runs)
        faults += [] if "mem" in options.skip else _memory(folder)
    for fault in faults:
        print(f"  FAILED {fault}")
    print(f"soak: {len(faults)} failed", flush=True)
    return 1 if faults else 0


def _soak(folder: Path, n_runs: int) -> list[str]:
    """The same participant again and again, each time into a fresh output, in this one process."""
    import shutil

    from neurostorm_bids.cli import main as neurostorm

    write_runs(folder, n_subjects=1, n_volumes=30, zoom_mm=12.0)
    write_tiny_model(folder)
    words = [str(folder / "fmriprep"), str(folder / "out"), "participant", "-w", str(folder / "work"), "--quiet",
             "--model", str(folder / "tiny"), "--offline", "--nprocs", "1"]  # fmt: skip
    process, kilobytes, files = psutil.Process(), [], []
    with Path(os.devnull).open("w") as nowhere:
        for _ in range(n_runs):
            shutil.rmtree(folder / "out", ignore_errors=True)
            shutil.rmtree(folder / "work", ignore_errors=True)
            stdout, sys.stdout = sys.stdout, nowhere
            try:
                code = neurostorm(words)
            finally:
                sys.stdout = stdout
            if code:
                return [f"a run ended with {code}"]
            gc.collect()
            kilobytes.append(process.memory_info().rss / 1024)
            files.append(process.num_fds())
    slope = float(np.polyfit(np.arange(n_runs - WARM), kilobytes[WARM:], 1)[0])
    print(f"  {n_runs} runs in one process: {kilobytes[WARM] / 1024:.0f} MB after {WARM}, "
          f"{kilobytes[-1] / 1024:.0f} MB in the end, {slope:+.1f} kB a run; "
          f"{files[WARM]} open files, then {files[-1]}", flush=True)  # fmt: skip
    faults = [f"memory grows by {slope:.1f} kB a run"] if slope > MOST_KB_A_RUN else []
    return faults + ([f"open files: {files[WARM]}, then {files[-1]}"] if files[-1] > files[WARM] else [])


# --- memory ---------------------------------------------------------------------------------------------------------


def _memory(folder: Path) -> list[str]:
    """Four runs of the demo model under several --mem; proportional shares of all processes, summed."""
    write_runs(folder / "mem", n_subjects=4, n_volumes=60, zoom_mm=4.0)
    faults = []
    for limit in (700, 1300, 2600):
        words = [str(folder / "mem" / "fmriprep"), str(folder / f"out-{limit}"), "participant", "-w",
                 str(folder / f"work-{limit}"), "--model", "demo", "--offline", "--nprocs", "4", "--omp-nthreads", "1",
                 "--mem", str(limit)]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "neurostorm_bids", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peak = _peak_mb(process)
        print(f"  --mem {limit}: exit {process.returncode}, at most {peak:.0f} MB in all processes", flush=True)
        if process.returncode:
            faults.append(f"--mem {limit} ended with {process.returncode}")
        if peak > limit and limit > 700:  # one run at a time is the least, whatever is asked
            faults.append(f"--mem {limit} took {peak:.0f} MB")
    return faults


def _peak_mb(process: subprocess.Popen) -> float:
    peak, top = 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            members = [top, *top.children(recursive=True)]
        except psutil.Error:
            break
        for member in members:
            try:
                total += member.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, total / 2**20)
        time.sleep(0.1)
    process.wait()
    return peak


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
