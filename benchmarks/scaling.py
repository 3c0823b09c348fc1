"""Whether finding the runs and pooling the results of a whole biobank take time and memory in proportion to it.

    python -m benchmarks scaling [--participants 100000] [--features 288] [--clips 3]

Makes the file tree of that many participants in a temporary folder: two folders and five links to stubs each, in all
about 2 GB of folders for 100,000. Then it finds all runs, and pools all tables, at a quarter, a half and all of them,
each in a process of its own; and at one participant, which is what a task of an array job does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from neurostorm_bids.outputs.atomic import sha256
from neurostorm_bids.outputs.resume import DATA_HASH
from neurostorm_bids.outputs.tables import Column, describe_columns, tsv_text

SPACE = "space-MNI152NLin6Asym"
INPUTS = (f"_{SPACE}_desc-preproc_bold.nii.gz", f"_{SPACE}_desc-brain_mask.nii.gz", "_desc-confounds_timeseries.tsv")
OUTPUT = f"_{SPACE}_res-model_desc-model_embedding"


def build(root: Path, n_participants: int, n_features: int, n_clips: int) -> None:
    """Inputs in ``root/fmriprep``, results in ``root/out``; every file is a link to one of its kind."""
    for folder, name in (("fmriprep", "fMRIPrep"), ("out", "neurostorm")):
        (root / folder).mkdir()
        description = {"Name": folder, "DatasetType": "derivative", "GeneratedBy": [{"Name": name}]}
        (root / folder / "dataset_description.json").write_text(json.dumps(description))
    (root / "stub").write_text("stub")
    _write_result(root, n_features, n_clips)
    for number in range(n_participants):
        participant = f"sub-{number:06d}"
        stem = f"{participant}_task-rest"
        func, results = root / "fmriprep" / participant / "func", root / "out" / participant / "func"
        os.makedirs(func), os.makedirs(results)  # noqa: PTH103 - half the time of pathlib's
        for ending in INPUTS:
            os.symlink("../../../stub", f"{func}/{stem}{ending}")  # noqa: PTH211
        for extension in ("tsv", "json"):
            target, link = f"../../../result.{extension}", f"{results}/{stem}{OUTPUT}.{extension}"
            os.symlink(target, link)  # noqa: PTH211


def _write_result(root: Path, n_features: int, n_clips: int) -> None:
    """A table of embeddings and its sidecar, of the size that the participant level writes."""
    values = np.random.default_rng(1).standard_normal((n_clips, n_features)).astype(np.float32)
    columns = [Column(name, [0.0] * n_clips, name, "s") for name in ("onset", "duration", "mean_fd")]
    columns += [
        Column(f"d{n:03d}", values[:, n].tolist(), f"Feature {n} of the embedding by model.", "arbitrary")
        for n in range(n_features)
    ]
    (root / "result.tsv").write_text(tsv_text(columns))
    model = {"Name": "model", "Hash": "0" * 64, "Trained": True}
    sidecar = {"Model": model, DATA_HASH: sha256(root / "result.tsv"), **describe_columns(columns)}
    (root / "result.json").write_text(json.dumps(sidecar, indent=2))


# --- what is measured, in a process of its own ------------------------------------------------------------------


def query(root: Path, labels: tuple[str, ...]) -> int:
    """Find the runs; returns how many."""
    from neurostorm_bids.inputs import find_runs
    from neurostorm_bids.settings import Settings

    settings = Settings(
        bids_dir=root / "fmriprep", output_dir=root / "elsewhere", level="participant", participant_label=labels
    )
    return len(find_runs(settings).runs)


def pool(root: Path, labels: tuple[str, ...]) -> int:
    """Aggregate the tables; returns the number of rows."""
    from neurostorm_bids.aggregate import aggregate

    return aggregate(root / "out", participants=labels).n_rows


STAGES = {"query": query, "aggregate": pool}


def measure(stage: str, root: Path, first: int, last: int) -> dict[str, float]:
    """Seconds and MB of a stage for some of the participants, imports and interpreter left out."""
    import bids.layout  # noqa: F401 - its import is not what is measured

    labels = tuple(f"{number:06d}" for number in range(first, last))
    before, started, cpu_started = _peak_mb(), time.perf_counter(), time.process_time()
    n_done = STAGES[stage](root, labels)
    if n_done != len(labels):
        raise SystemExit(f"{stage}: {n_done} of {len(labels)}")
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {"seconds": seconds, "CPU seconds": cpu_seconds, "MB": _peak_mb() - before}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(stage: str, root: Path, first: int, last: int) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--measure", stage, str(root), str(first), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Build, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=288)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        stage, root, first, last = arguments.measure
        print(json.dumps(measure(stage, Path(root), int(first), int(last))))
        return 0
    n_all = arguments.participants
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        build(Path(folder), n_all, arguments.features, arguments.clips)
        print(f"tree of {n_all} participants made in {time.perf_counter() - started:.0f} s")
        figures = " | ".join(f"{stage}: seconds | CPU seconds | MB" for stage in STAGES)
        print(f"| participants | {figures} |\n{'|---' * 7}|")
        for n in (1, n_all // 4, n_all // 2, n_all):
            cells = [figure for stage in STAGES for figure in measured(stage, Path(folder), 0, n).values()]
            print(f"| {n} | " + " | ".join(f"{figure:.1f}" for figure in cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
