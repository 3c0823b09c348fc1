"""Equal bytes whatever the number of workers; embeddings within 1e-5 whatever batch size, threads and backend."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from campaigns.scenarios import differences, tree_of, write_runs

TOLERANCE = 1e-5
SETTINGS = {
    "threads 2": ("--omp-nthreads", "2"),
    "batch size 2": ("--batch-size", "2"),
    "batch size 3": ("--batch-size", "3"),
    "--low-mem": ("--low-mem",),
    "torch": ("--scan-backend", "torch"),
}


def main(arguments: Sequence[str] = ()) -> int:
    """Run the campaign; returns 1 when something differs."""
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="neurostorm-determinism-") as name:
        folder = Path(name).resolve()
        write_runs(folder, n_subjects=3, n_volumes=100, zoom_mm=8.0)
        reference = _trees(folder, ("--nprocs", "1", "--omp-nthreads", "1"))
        for workers in (1, 2, 3):
            tree = _trees(folder, ("--nprocs", str(workers), "--omp-nthreads", "1"))
            odd = [text for text in differences(tree[0], reference[0]) if "html" not in text]
            print(f"  {workers} workers: {len(odd)} of {len(tree[0])} files differ", flush=True)
            faults += [f"{workers} workers: {text}" for text in odd]
        for label, words in SETTINGS.items():
            found = _trees(folder, ("--nprocs", "2", *words))[1]
            worst = float(np.abs(found - reference[1]).max() / np.abs(reference[1]).max())
            print(f"  {label}: embeddings differ by {worst:.1e} of the largest value", flush=True)
            faults += [f"{label}: {worst:.1e}"] if not worst <= TOLERANCE else []
    for fault in faults:
        print(f"  FAILED {fault}")
    print(f"determinism: {len(faults)} failed", flush=True)
    return 1 if faults else 0


def _trees(folder: Path, words: Sequence[str]) -> tuple[dict[str, str], np.ndarray]:
    """Hashes of the output, and all embeddings.  # (n_clips, d)"""
    import shutil

    for name in ("out", "work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    command = [sys.executable, "-m", "neurostorm_bids", str(folder / "fmriprep"), str(folder / "out"), "participant",
               "-w", str(folder / "work"), "--model", "demo", "--offline", "--quiet", *words]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    rows = []
    for path in sorted((folder / "out").rglob("*_embedding.tsv")):
        with path.open() as stream:
            table = list(csv.DictReader(stream, delimiter="\t"))
        rows += [[float(value) for key, value in row.items() if key[1:].isdigit()] for row in table]
    return tree_of(folder / "out"), np.array(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
