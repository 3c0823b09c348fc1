"""What a training step reads: samples, their clips drawn by key, and batches that any number of processes can share.

Every random number depends on (seed, epoch, sample) alone. Neither the process that draws it nor what was drawn before
matters, so there is no random state to save: an interrupted training goes on from an epoch and a batch number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from neurostorm_bids.errors import MotionUnknown, TrainingError
from neurostorm_bids.model.draws import keyed_generator
from neurostorm_bids.training.clip_store import StoredRun

Augment: TypeAlias = Callable[[np.ndarray, tuple[int, ...], float], np.ndarray]  # clip, key, background -> clip
START, ORDER = 32, 33  # purposes of draws, beside those of `model.draws` and `augment`


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A stored run and whose it is.

    ``name`` is what messages call it, ``dataset`` the dataset's name, ``content`` a hash of its images, by which it is
    known again under another name. Clips with a higher mean framewise displacement than ``fd_threshold_mm`` are not
    used.
    """

    stored: StoredRun
    name: str
    participant: str
    dataset: str = ""
    content: str = ""
    fd_threshold_mm: float | None = None

    @property
    def person(self) -> tuple[str, str]:
        """Dataset and participant: one label may occur in several datasets."""
        return self.dataset, self.participant

    def starts(self, clip_frames: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Frames from ``first`` to ``last`` at which a clip may begin.  # (k,)

        Raises
        ------
        MotionUnknown
            A threshold, and a clip of which no displacement is known.
        """
        last = self.stored.n_frames - clip_frames if last is None else last
        begins = np.arange(first, last + 1)
        if self.fd_threshold_mm is None or not len(begins):
            return begins
        return begins[mean_displacement(self, clip_frames)[begins] <= self.fd_threshold_mm]


def mean_displacement(run: RunRecord, clip_frames: int) -> np.ndarray:
    """Mean framewise displacement of the clip that begins with each frame.  # (starts,)

    Raises
    ------
    MotionUnknown
        A clip of which no displacement is known.
    """
    windows = np.lib.stride_tricks.sliding_window_view(run.stored.fd_mm.astype(float), clip_frames)
    known = np.isfinite(windows)
    if not known.any(axis=1).all():
        raise MotionUnknown(
            f"{run.name}: --fd-threshold needs framewise displacement, and none is known of some clips",
            expected="a confounds table with framewise_displacement or motion parameters",
            remedy="Restore the confounds table or leave out --fd-threshold",
        )
    return np.where(known, windows, 0.0).sum(axis=1) / known.sum(axis=1)


@dataclass(frozen=True)
class View:
    """One clip to read: from which run, from which frame on, and the key of all its further draws."""

    run: RunRecord
    first: int
    key: tuple[int, ...]


class Samples(Protocol):
    """What an epoch is made of."""

    def __len__(self) -> int: ...

    def views(self, epoch: int, index: int) -> list[View]:
        """The clips of one sample in one epoch."""

    def label(self, index: int) -> float:
        """Its label, as a number."""


# --- kinds of samples -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stretch:
    """Where the clip of a sample may begin: at one of the frames ``starts`` of a run, which are in order."""

    run: RunRecord
    starts: np.ndarray
    label: float = 0.0

    @property
    def first(self) -> int:
        """The first of them; that of a fixed clip is the only one."""
        return int(self.starts[0])


@dataclass(frozen=True)
class ClipSamples:
    """A clip a sample, begun anywhere in its stretch."""

    stretches: Sequence[Stretch]
    seed: int

    def __len__(self) -> int:
        return len(self.stretches)

    def views(self, epoch: int, index: int) -> list[View]:
        """The one clip of a sample."""
        stretch, key = self.stretches[index], (self.seed, epoch, index)
        first = stretch.starts[keyed_generator(key, START).integers(len(stretch.starts))]
        return [View(stretch.run, int(first), key)]

    def label(self, index: int) -> float:
        """The label of the stretch."""
        return self.stretches[index].label


@dataclass(frozen=True)
class PairSamples:
    """Two clips of a person: of two runs where there are two, else of one run, not overlapping where it is long enough.

    With ``augmented_twice`` each clip comes in two augmented views, in the order clip 1, clip 2, clip 1, clip 2, and
    both clips are of one run: what is told apart locally are times of a run.
    """

    people: Sequence[Sequence[RunRecord]]
    clip_frames: int
    seed: int
    augmented_twice: bool = False

    def __len__(self) -> int:
        return len(self.people)

    def views(self, epoch: int, index: int) -> list[View]:
        """The clips of a person."""
        key = (self.seed, epoch, index)
        draw = keyed_generator(key, START)
        pair = self._pair_of_times(draw, index) if self.augmented_twice else self._pair_of_runs(draw, index)
        rounds = 2 if self.augmented_twice else 1
        return [View(run, first, (*key, 2 * turn + n)) for turn in range(rounds) for n, (run, first) in enumerate(pair)]

    def label(self, index: int) -> float:
        """The number of the person."""
        return float(index)

    def _pair_of_runs(self, draw: np.random.Generator, index: int) -> list[tuple[RunRecord, int]]:
        runs = self.people[index]
        if len(runs) < 2:
            return self._pair_of_times(draw, index)
        chosen = [runs[int(number)] for number in draw.permutation(len(runs))[:2]]
        return [(run, int(draw.choice(run.starts(self.clip_frames)))) for run in chosen]

    def _pair_of_times(self, draw: np.random.Generator, index: int) -> list[tuple[RunRecord, int]]:
        runs = self.people[index]
        run = runs[int(draw.integers(len(runs)))]
        starts = run.starts(self.clip_frames)
        behind = np.searchsorted(starts, starts + self.clip_frames)  # the first start after the end of each clip
        n_pairs = len(starts) - behind
        if not n_pairs.sum():
            raise TrainingError(
                f"{run.name} has {run.stored.n_frames} frames, too few for two clips",
                expected=f"{2 * self.clip_frames} frames or more for a pair of clips of one run",
                remedy="Leave the run out, or use another objective",
            )
        pair = int(draw.integers(n_pairs.sum()))
        earlier = int(np.searchsorted(n_pairs.cumsum(), pair, side="right"))
        later = int(behind[earlier]) + pair - int(n_pairs[:earlier].sum())
        firsts = [int(starts[earlier]), int(starts[later])]
        return [(run, first) for first in (firsts if draw.random() < 0.5 else firsts[::-1])]


def whole_run_stretches(
    run: RunRecord, clip_frames: int, label: float = 0.0, *, fixed: bool = False
) -> Iterator[Stretch]:
    """As many samples of a run as it has clips: each begins anywhere, or, ``fixed``, where the last one ended."""
    anywhere = run.starts(clip_frames)
    for first in range(0, run.stored.n_frames - clip_frames + 1, clip_frames):
        starts = run.starts(clip_frames, first, first) if fixed else anywhere
        if len(starts):
            yield Stretch(run, starts, label)


# --- batches ----------------------------------------------------------------------------------------------------


@dataclass
class Cursor:
    """Where a training goes on: the batches of an epoch that were trained on already."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class KeyedBatches:
    """Numbers of the samples of each batch: a permutation that follows from (seed, epoch), shared out among processes.

    Every sample comes once an epoch; the last batch is filled up with the first samples of the epoch. The global batch
    is the same whether one process takes it whole or each of several takes its part.

    Parameters
    ----------
    n_samples, batch_size : int
        ``batch_size`` is that of one process.
    rank, world : int
    order : callable, optional
        (epoch) -> numbers of samples, for sampling other than uniform; the same length for every epoch.
    epoch : callable
        Gives the epoch when an iteration begins.
    cursor : Cursor
        Batches to pass over, in its epoch only.
    """

    n_samples: int
    batch_size: int
    seed: int
    epoch: Callable[[], int]
    rank: int = 0
    world: int = 1
    order: Callable[[int], Sequence[int]] | None = None
    cursor: Cursor = field(default_factory=Cursor)

    def __post_init__(self) -> None:
        if self.n_samples < self.batch_size * self.world:
            raise TrainingError(
                f"a batch of {self.batch_size} on each of {self.world} processes, and {self.n_samples} samples in all",
                expected="a batch no larger than the training data",
                remedy=f"State --batch-size {max(1, self.n_samples // self.world)} or less",
            )

    def __len__(self) -> int:
        return -(-self.n_samples // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch()
        order = self.ordered(epoch)
        start = self.cursor.batch if epoch == self.cursor.epoch else 0
        for number in range(start, len(self)):
            first = (number * self.world + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[first : first + self.batch_size]]

    def ordered(self, epoch: int) -> np.ndarray:
        """Samples of an epoch in order, whole batches."""
        if self.order is None:
            order = keyed_generator((self.seed, epoch), ORDER).permutation(self.n_samples)
        else:
            order = np.asarray(self.order(epoch))
        return np.resize(order, len(self) * self.batch_size * self.world)


class ClipDataset(Dataset):
    """Reads the clips of samples.

    Parameters
    ----------
    samples : Samples
    clip_frames : int
    augment : callable, optional
        Changes each clip by its key.
    """

    def __init__(self, samples: Samples, clip_frames: int, augment: Augment | None = None) -> None:
        self.samples, self.clip_frames, self.augment = samples, clip_frames, augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, index = place
        views = self.samples.views(epoch, index)
        return {
            "clips": np.stack([self._read(view) for view in views]),  # (views, 1, X, Y, Z, T)
            "keys": [view.key for view in views],
            "label": self.samples.label(index),
            "index": index,
            "files": [view.run.name for view in views],
            "datasets": [view.run.dataset for view in views],
        }

    def _read(self, view: View) -> np.ndarray:
        """(1, X, Y, Z, T)"""
        stored = view.run.stored
        clip = stored.clip(view.first, self.clip_frames)
        return clip if self.augment is None else self.augment(clip, view.key, stored.info.background)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: clips (n views, 1, X, Y, Z, T), sample by sample, a key for each; how many views a
    sample has; labels and numbers of samples (n).
    """
    return {
        "clips": torch.from_numpy(np.concatenate([item["clips"] for item in items])),
        "keys": [key for item in items for key in item["keys"]],
        "views": len(items[0]["keys"]),
        "labels": torch.tensor([item["label"] for item in items], dtype=torch.float32),
        "index": torch.tensor([item["index"] for item in items]),
        "files": [name for item in items for name in item["files"]],
        "datasets": [name for item in items for name in item["datasets"]],
    }


def training_loader(dataset: ClipDataset, batches: KeyedBatches, workers: int) -> DataLoader:
    """Batches of training; workers are started afresh, since a fork after OpenMP has run hangs."""
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **_workers(workers))


def evaluation_loader(dataset: ClipDataset, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader:
    """Every sample once, in order, shared out among processes by turns; epoch 0."""
    mine = [(0, index) for index in range(rank, len(dataset), world)]
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return DataLoader(dataset, batch_sampler=parts, collate_fn=collate, **_workers(workers))


def _workers(workers: int) -> dict[str, Any]:
    if not workers:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "multiprocessing_context": "spawn",
        "persistent_workers": True,
        "worker_init_fn": partial(_one_thread),
    }


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
