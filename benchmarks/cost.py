"""Seconds, memory and disk of one run with a model of the published size (its weights drawn, not trained).

    python -m benchmarks cost prepare FOLDER [--volumes 490] [--tr 0.735]    simulate the run, write the model
    python -m benchmarks cost measure FOLDER [--threads 1 2] [OPTION ...]    alone on the machine
    python -m benchmarks cost plan --seconds 60 --cores 1 --mb 0.1           what whole studies cost at these figures

The defaults are a run of UK Biobank: 490 volumes of 0.735 s on 91x109x91 voxels of 2 mm. What is measured is the
command that a task of an array job runs, imports included; further options are handed on to it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

PARTICIPANTS = (1_000, 40_000, 100_000)


def prepare(folder: Path, n_volumes: int, t_r_s: float) -> None:
    """Simulate a dataset of one run and write a model folder of the published size."""
    import torch

    from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec
    from neurostorm_bids.model.description import ModelDescription
    from neurostorm_bids.model.folder import write_model_folder
    from neurostorm_bids.simulate import write_dataset

    encoder = Encoder(EncoderConfig(), generator=torch.Generator().manual_seed(1)).eval()
    described = ModelDescription(
        name="untrained", config=EncoderConfig(), input=InputSpec(), trained=False, summary="", source="", licence=""
    )
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    write_model_folder(folder / "untrained", described, weights, overwrite=True)
    plan = {"n_subjects": 1, "zoom_mm": 2.0, "n_volumes": n_volumes, "t_r_s": t_r_s, "spaces": ("MNI152NLin6Asym",)}
    write_dataset(folder / "fmriprep", **plan)


def measure(folder: Path, threads: int, *options: str) -> str:
    """Run the participant level once; a row of the table."""
    for name in ("out", "work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    command = [sys.executable, "-m", "neurostorm_bids", folder / "fmriprep", folder / "out", "participant", "--offline"]
    command += ["--model", folder / "untrained", "--work-dir", folder / "work", "--nprocs", threads, *options]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    before, started = _cpu_seconds(), time.monotonic()
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
    seconds, cpu_seconds = time.monotonic() - started, _cpu_seconds() - before
    (table,) = (folder / "out").glob("sub-*/**/*_embedding.tsv")
    n_clips = len(table.read_text().splitlines()) - 1
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of all measured so far
    figures = " | ".join(f"{figure:.1f}" for figure in (seconds, cpu_seconds, peak_mb, _mb(folder / "out")))
    return f"| {threads} | {n_clips} | {figures} | {' '.join(options)} |"


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def plan(seconds: float, n_cores: int, mb: float) -> str:
    """What whole studies cost, a run a participant."""
    lines = [
        "| participants | core hours | days on 100 cores | days on 1,000 cores | GB of results |",
        "|---" * 5 + "|",
    ]
    for n in PARTICIPANTS:
        core_hours = n * seconds * n_cores / 3600
        few, many = (core_hours / 24 / cores for cores in (100, 1000))
        lines.append(f"| {n:,} | {core_hours:,.0f} | {few:.1f} | {many:.2f} | {n * mb / 1024:.1f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    prepared = commands.add_parser("prepare")
    prepared.add_argument("folder", type=Path)
    prepared.add_argument("--volumes", type=int, default=490)
    prepared.add_argument("--tr", type=float, default=0.735)
    measured = commands.add_parser("measure")
    measured.add_argument("folder", type=Path)
    measured.add_argument("--threads", type=int, nargs="+", default=[1])
    planned = commands.add_parser("plan")
    planned.add_argument("--seconds", type=float, required=True, help="of one run")
    planned.add_argument("--cores", type=int, default=1, help="that it took")
    planned.add_argument("--mb", type=float, required=True, help="of results of one run")
    arguments, options = parser.parse_known_args(argv)
    if arguments.command == "prepare":
        prepare(arguments.folder, arguments.volumes, arguments.tr)
        print(f"input: {_mb(arguments.folder / 'fmriprep'):.0f} MB")
    elif arguments.command == "measure":
        print("| threads | clips | seconds | CPU seconds | MB (largest process) | MB of results | options |")
        print("|---|---|---|---|---|---|---|")
        for threads in arguments.threads:
            print(measure(arguments.folder, threads, *options), flush=True)
    else:
        print(plan(arguments.seconds, arguments.cores, arguments.mb))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
