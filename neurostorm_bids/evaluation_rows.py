"""Rows of an evaluation: participants, runs or clips, whichever the target's values belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurostorm_bids.cached import CachedRun
from neurostorm_bids.clips import Window
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.training.targets import Labels, Value, window_labels


@dataclass(frozen=True)
class Row:
    """What one prediction is for.

    ``runs`` are names; ``clip`` is the position of the clip in its run where a row is a clip.
    """

    name: str
    participant: str
    value: Value
    runs: tuple[str, ...]
    clip: int | None = None

    def n_clips(self, cached: Mapping[str, CachedRun]) -> int:
        """Clips behind the row."""
        return 1 if self.clip is not None else sum(len(cached[name].clips) for name in self.runs)


def rows_of(labels: Labels, runs: Sequence[BoldRun], cached: Mapping[str, CachedRun]) -> tuple[Row, ...]:
    """A row a participant where all their runs share one value, else a row a run, or a clip for events."""
    if any(label.end_s is not None for label in labels.labels):
        return tuple(_clip_rows(labels, runs, cached))
    strata = labels.strata()
    if strata is None:
        return tuple(
            Row(runs[label.run].name, label.participant, label.value, (runs[label.run].name,))
            for label in labels.labels
        )
    of_participant: dict[str, list[str]] = defaultdict(list)
    for label in labels.labels:
        of_participant[label.participant].append(runs[label.run].name)
    return tuple(
        Row(f"sub-{participant}", participant, strata[participant], tuple(names))
        for participant, names in sorted(of_participant.items())
    )


def _clip_rows(labels: Labels, runs: Sequence[BoldRun], cached: Mapping[str, CachedRun]) -> list[Row]:
    rows = []
    for position, run in enumerate(runs):
        mine = [label for label in labels.labels if label.run == position]
        values = window_labels(windows_of(cached[run.name]), mine) if mine else []
        rows += [
            Row(f"{run.name}_clip-{clip}", run.participant, value, (run.name,), clip)
            for clip, value in enumerate(values)
            if value is not None
        ]
    return rows


def windows_of(run: CachedRun) -> list[Window]:
    """Places of the clips of a run; frame numbers follow from the sidecar's timing."""
    timing = run.sidecar.get("Timing", {})
    step, start = float(timing.get("EffectiveStep", 1.0)), float(timing.get("FirstFrame", 0.0))
    frames = np.rint(np.stack([run.onset_s - start, run.onset_s + run.duration_s - start]) / step).astype(int)
    places = zip(*frames.tolist(), run.onset_s.tolist(), run.duration_s.tolist(), strict=True)
    return [Window(first, end - 1, onset, duration) for first, end, onset, duration in places]


def mean_of_rows(rows: Sequence[Row], clips: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean over the clips of each row, every clip counting once.  # (rows, d)

    A run with one row of clips for all (the static control) gives that row to each of its clips.
    """
    return np.stack([_mean_of_row(row, clips) for row in rows])


def _mean_of_row(row: Row, clips: Mapping[str, np.ndarray]) -> np.ndarray:
    if row.clip is not None:
        of_run = clips[row.runs[0]]
        return of_run[min(row.clip, len(of_run) - 1)]
    return np.concatenate([clips[name] for name in row.runs]).mean(axis=0)
