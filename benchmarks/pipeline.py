"""The participant level from a compressed run to its tables: time, the model's share of it, and peak memory.

    python -m benchmarks pipeline [--volumes 200 1200] [--rounds 3] [--threads 2] [--json FILE] [--keep FOLDER]

Runs of 91 x 109 x 91 voxels at TR 2 s are written as .nii.gz with a mask and confounds; a full-size model with random
weights embeds them through the program's own command. Each call is a process of its own that says how long imports
took, how long the command took beyond them, and how much of that the model computed. Peak memory is the larger of
VmHWM of that process and of the largest sum of resident sizes over it and its children, looked at four times a
second. Exit code 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks._figures import HEADER, Figure, busy_elsewhere_s, machine, peak_mb

TEMPLATE, T_R_S = "MNI152NLin6Asym", 2.0
TIMED, LONGEST = 200, 1200  # volumes
IMPORTED = ("torch", "pandas", "nibabel", "nipype", "networkx", "bids")
IMPORTED += ("neurostorm_bids.participant", "neurostorm_bids.process", "neurostorm_bids.model")
SAMPLE_S = 0.25  # a look at the processes takes milliseconds of a processor


# --- what is processed ----------------------------------------------------------------------------------------------


def make_dataset(root: Path, n_volumes: int) -> Path:
    """A run of a simulated brain with noise, as fMRIPrep would name it; made once."""
    if (root / "dataset_description.json").exists():
        return root
    from nibabel import Nifti1Image, save

    from neurostorm_bids.simulate.brain import brain_on, grid_of

    brain = brain_on(grid_of(TEMPLATE, 2.0))
    folder = root / "sub-01" / "func"
    folder.mkdir(parents=True)
    stem = folder / f"sub-01_task-rest_space-{TEMPLATE}_res-2"
    save(Nifti1Image(brain.mask.astype(np.uint8), brain.grid.affine), f"{stem}_desc-brain_mask.nii.gz")
    write_bold(Path(f"{stem}_desc-preproc_bold.nii.gz"), brain, n_volumes)
    sidecar = {"RepetitionTime": T_R_S, "TaskName": "rest"}
    Path(f"{stem}_desc-preproc_bold.json").write_text(json.dumps(sidecar))
    displacement = "\n".join(["framewise_displacement", "n/a", *["0.1"] * (n_volumes - 1)])
    (folder / "sub-01_task-rest_desc-confounds_timeseries.tsv").write_text(f"{displacement}\n")
    made_by = [{"Name": "fMRIPrep", "Version": "23.2.1"}]
    description = {"Name": "benchmark", "BIDSVersion": "1.8.0", "DatasetType": "derivative", "GeneratedBy": made_by}
    (root / "dataset_description.json").write_text(json.dumps(description))
    return root


def write_bold(path: Path, brain: Any, n_volumes: int) -> None:
    """Volumes of int16, written one at a time: a long run would not fit in memory."""
    from isal import igzip
    from nibabel import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*brain.grid.shape, n_volumes))
    header.set_zooms((2.0, 2.0, 2.0, T_R_S))
    header.set_xyzt_units("mm", "sec")
    header.set_sform(brain.grid.affine, "mni")
    header["vox_offset"] = 352
    rng = np.random.default_rng(0)
    level = 8000 + 600 * brain.tissue  # (n,)
    noise = rng.normal(0, 100, (8, brain.mask.sum())).astype(np.float32)
    with igzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for number in range(n_volumes):
            volume = np.zeros(brain.grid.shape, np.int16)
            volume[brain.mask] = level + np.roll(noise[number % 8], 1000 * number)
            stream.write(volume.tobytes(order="F"))


def make_model(folder: Path) -> Path:
    """A full-size model with random weights; made once."""
    if folder.exists():
        return folder
    import torch

    from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec
    from neurostorm_bids.model.description import ModelDescription
    from neurostorm_bids.model.folder import weights_of, write_model_folder

    encoder = Encoder(EncoderConfig(), generator=torch.Generator().manual_seed(0))
    description = ModelDescription(name="full", config=encoder.config, input=InputSpec(provenance={}), trained=False)
    write_model_folder(folder, description, weights_of(encoder, {}))
    return folder


# --- measuring ------------------------------------------------------------------------------------------------------


def worker(argv: Sequence[str]) -> dict[str, Any]:
    """The program's command in this process: seconds of imports, of the rest, and of the model's calls."""
    from neurostorm_bids.cli import main as command
    from neurostorm_bids.cli import parse_settings
    from neurostorm_bids.environment import prepare

    prepare(parse_settings(list(argv)))  # as the command does: before any library is imported
    started = time.perf_counter()
    for name in IMPORTED:
        import_module(name)
    imported = time.perf_counter()
    calls = timed_embedding()
    status = command(list(argv))
    seconds = time.perf_counter() - imported
    return {
        "status": status, "imports_s": imported - started, "seconds": seconds, "model_s": sum(s for s, _ in calls),
        "clips": sum(n for _, n in calls), "peak_mb": peak_mb(),
    }  # fmt: skip


def timed_embedding() -> list[tuple[float, int]]:
    """Has every call of the model for clips note its seconds and clips in the list that is returned."""
    from neurostorm_bids.model import Model

    embed: Callable[..., Any] = Model.embed
    calls: list[tuple[float, int]] = []

    def timed(self: Model, clips: Any) -> Any:
        started = time.perf_counter()
        found = embed(self, clips)
        calls.append((time.perf_counter() - started, len(clips)))
        return found

    Model.embed = timed  # type: ignore[method-assign]
    return calls


def measured(dataset: Path, model: Path, threads: int) -> dict[str, Any]:
    """One call on a dataset, in a process of its own whose tree is watched from here."""
    with tempfile.TemporaryDirectory() as folder:
        words = [dataset, Path(folder) / "out", "participant", "--model", model, "--work-dir", Path(folder) / "work"]
        words += [
            "--nprocs",
            threads,
            "--omp-nthreads",
            threads,
            "--device",
            "cpu",
            "--offline",
            "--skip-bids-validation",
        ]
        command = [sys.executable, "-m", "benchmarks.pipeline", "--worker", *map(str, words)]
        before, started = busy_elsewhere_s(), time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            tree_mb = watched(process)
            output, errors = process.communicate()
        wall = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}:\n{output}{errors}")
    found = json.loads(output.splitlines()[-1])
    others = max(busy_elsewhere_s() - before, 0.0) / (wall * (os.cpu_count() or 1))
    return {**found, "wall_s": wall, "others": others, "tree_mb": max(tree_mb, found["peak_mb"])}


def watched(process: subprocess.Popen[str]) -> float:
    """Largest sum of resident sizes over a process and its children until it ends, in MB."""
    root, most = psutil.Process(process.pid), 0.0
    while process.poll() is None:
        try:
            sizes = [member.memory_info().rss for member in (root, *root.children(recursive=True))]
        except psutil.NoSuchProcess:
            continue
        most = max(most, sum(sizes) / 2**20)
        time.sleep(SAMPLE_S)
    return most


def time_figures(calls: Sequence[dict[str, Any]]) -> list[Figure]:
    """(e)."""

    def figure(name: str, value: Callable[[dict[str, Any]], float], best: Callable[..., float], **aims: Any) -> Figure:
        values = [value(call) for call in calls]
        return Figure("(e)", name, median(values), of_minima=best(values), **aims)

    return [
        figure("from .nii.gz to tables, beyond imports", lambda call: call["seconds"], min, unit="s", at_most=6.0),
        figure("clips a second of that", lambda call: call["clips"] / call["seconds"], max, unit="1/s", at_least=4.5),
        figure("the model's share of that", lambda call: call["model_s"] / call["seconds"], max, unit="", at_least=0.7),
        figure("seconds a clip in the model", lambda call: call["model_s"] / call["clips"], min, unit="s"),
        figure("imports", lambda call: call["imports_s"], min, unit="s"),
    ]


def memory_figures(calls: dict[int, list[dict[str, Any]]]) -> list[Figure]:
    """(f)."""
    peaks = {n: max(call["tree_mb"] for call in found) for n, found in calls.items()}
    figures = [Figure("(f)", f"peak memory, {n} volumes", peak, "MB", at_most=1000.0) for n, peak in peaks.items()]
    if {TIMED, LONGEST} <= set(peaks):
        grown = peaks[LONGEST] - peaks[TIMED]
        figures.append(Figure("(f)", f"more for {LONGEST} than for {TIMED} volumes", grown, "MB", at_most=100.0))
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks pipeline``; 1 where an aim is missed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--worker"]:
        found = worker(words[1:])
        print(json.dumps(found))
        return int(found["status"])
    parser = argparse.ArgumentParser(prog="python -m benchmarks pipeline", description=__doc__)
    parser.add_argument("--volumes", type=int, nargs="+", default=[TIMED, LONGEST])
    parser.add_argument(
        "--rounds", type=int, default=3, help="calls on the shortest run; longer ones are measured once"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where datasets and model stay for the next time")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        where = options.keep or Path(folder)
        calls = measure(where, sorted(options.volumes), options.rounds, options.threads)
    figures = [*time_figures(calls[min(calls)]), *memory_figures(calls)]
    print(f"{machine()}, {options.threads} threads; {min(calls)} volumes timed\n{HEADER}")
    print("\n".join(figure.line() for figure in figures))
    if options.json:
        listed = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
        options.json.write_text(json.dumps({"machine": machine(), "figures": listed, "calls": calls}, indent=1))
    return int(any(figure.verdict == "misses" for figure in figures))


def measure(where: Path, volumes: Sequence[int], rounds: int, threads: int) -> dict[int, list[dict[str, Any]]]:
    """Calls by number of volumes, each printed as it comes."""
    model, calls = make_model(where / "model"), {}
    for n in volumes:
        dataset = make_dataset(where / f"run-{n}", n)
        calls[n] = []
        for _ in range(rounds if n == min(volumes) else 1):
            found = measured(dataset, model, threads)
            calls[n].append(found)
            print(f"{n} volumes: {found['clips']} clips in {found['seconds']:.2f} s, {found['tree_mb']:.0f} MB; "
                  f"other programs took {found['others']:.1%} of the processors", flush=True)  # fmt: skip
    return calls


if __name__ == "__main__":
    sys.exit(main())
