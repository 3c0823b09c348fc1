"""Runs, models and trainings so small that a step takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurostorm_bids.model.config import EncoderConfig
from neurostorm_bids.training.clip_store import NormalisedRun, StoredRun, write_run
from neurostorm_bids.training.course import Place
from neurostorm_bids.training.data import RunRecord
from neurostorm_bids.training.schedule import Course

CONFIG = EncoderConfig(
    img_size=(8, 8, 8, 6), embed_dim=8, patch_size=(4, 4, 4, 1), depths=(1, 1), window_size=(2, 2, 2, 2),
    first_window_size=(2, 2, 2, 2), d_state=4,
)  # fmt: skip
N_FRAMES = 26


def runs(folder: Path, n_people: int = 6, runs_each: int = 2) -> list[RunRecord]:
    """People who differ in the variance of one half of their brain."""
    return [
        _run(folder, person, number) for person in range(n_people) for number in range(1, runs_each + 1)
    ]  # fmt: skip


def _run(folder: Path, person: int, number: int) -> RunRecord:
    name = f"sub-{person:02d}_run-{number}"
    frames = np.random.default_rng([person, number]).standard_normal((N_FRAMES, 8, 8, 8)).astype(np.float32)
    frames[:, :4] *= 1 + person % 3
    mask = np.ones((8, 8, 8), bool)
    frames[:, 0], mask[0] = frames.min(), False
    path = folder / f"{name}.safetensors"
    write_run(path, NormalisedRun(lambda: iter(frames), mask, N_FRAMES, float(frames.min())), "float16")
    return RunRecord(StoredRun.open(path), name, f"{person:02d}", "set", name)


def course(**changes) -> Course:
    """A short training on one CPU."""
    given = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu", "quiet": True, "checkpoint_every": 2}
    return Course(**{**given, **changes})


def place(folder: Path, *, resume: bool = False, identity: str = "one") -> Place:
    """State and logs of a training."""
    return Place(state=folder / "state", logs=folder / "logs", identity=identity, resume=resume)
