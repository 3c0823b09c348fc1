"""Windows: which frames make up each clip, when it began, and how much the head moved in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurostorm_bids.clips.timing import Timing
from neurostorm_bids.errors import ConfoundsUnusable, EveryClipMoved, MotionUnknown, TooFewFrames


@dataclass(frozen=True)
class Window:
    """One clip's place in its run: frames ``first_frame`` to ``last_frame`` (included), times in seconds."""

    first_frame: int
    last_frame: int
    onset_s: float
    duration_s: float
    mean_fd_mm: float | None = None


@dataclass(frozen=True)
class Windows:
    """All clips of a run: those to use, those left out for motion, and the frames of the incomplete tail."""

    kept: tuple[Window, ...]
    excluded: tuple[Window, ...]
    n_dropped_frames: int
    clip_frames: int
    stride: int


def plan_windows(
    timing: Timing,
    *,
    clip_frames: int = 20,
    stride: int = 20,
    fd_mm: np.ndarray | None = None,
    fd_threshold_mm: float | None = None,
) -> Windows:
    """Cut the frames of a run into clips.

    Parameters
    ----------
    timing : Timing
    clip_frames, stride : int
        Length of a clip, and distance from one clip's first frame to the next's, in frames of the target TR.
    fd_mm : ndarray of shape (dummies + n_volumes,), optional
        Framewise displacement of every volume, dummies included; NaN where it is not defined (first volume).
    fd_threshold_mm : float, optional
        Clips with a higher mean framewise displacement are excluded.

    Raises
    ------
    TooFewFrames
        When the run is shorter than one clip.
    MotionUnknown, ConfoundsUnusable
        When a threshold is given without displacement, or displacement has another length than the run.
    EveryClipMoved
        When no clip is at or below the threshold.
    """
    require_one_clip(timing, clip_frames)
    frame_fd = _frame_displacement(timing, fd_mm, fd_threshold_mm)
    last_start = timing.n_frames - clip_frames
    windows = [_window(timing, start, clip_frames, frame_fd) for start in range(0, last_start + 1, stride)]
    moved = [_moved(window, fd_threshold_mm) for window in windows]
    if all(moved):
        raise EveryClipMoved(
            f"all {len(windows)} clips have a mean framewise displacement above {fd_threshold_mm} mm",
            expected="at least one clip at or below --fd-threshold",
            remedy="Raise --fd-threshold or leave the run out",
        )
    kept = tuple(window for window, is_moved in zip(windows, moved, strict=True) if not is_moved)
    excluded = tuple(window for window, is_moved in zip(windows, moved, strict=True) if is_moved)
    return Windows(kept, excluded, last_start - windows[-1].first_frame, clip_frames, stride)


def require_one_clip(timing: Timing, clip_frames: int) -> None:
    """Raise TooFewFrames where a run has fewer frames than one clip."""
    if timing.n_frames >= clip_frames:
        return
    needed = f"{clip_frames * timing.target_t_r_s:g} s or {_volumes_needed(timing, clip_frames)} volumes"
    dropped = f" after {timing.n_dummies} dummies" if timing.n_dummies else ""
    raise TooFewFrames(
        f"{timing.n_volumes} volumes{dropped} at TR {timing.t_r_s:g} s are {timing.n_volumes * timing.t_r_s:g} s, "
        f"or {timing.n_frames} frames of {timing.target_t_r_s:g} s",
        expected=f"at least {clip_frames} frames, i.e. {needed}",
        remedy="Check RepetitionTime and --dummy-scans, or leave the run out",
    )


def _moved(window: Window, threshold_mm: float | None) -> bool:
    if threshold_mm is None:
        return False
    if window.mean_fd_mm is None:
        raise MotionUnknown(
            f"framewise displacement is missing throughout the clip that begins with frame {window.first_frame}",
            expected="a value for some volume of every clip, as --fd-threshold compares them",
            remedy="Restore the confounds table or leave out --fd-threshold",
        )
    return window.mean_fd_mm > threshold_mm


def _volumes_needed(timing: Timing, clip_frames: int) -> int:
    n_volumes = max(1, int((clip_frames - 0.5) * timing.target_t_r_s / timing.t_r_s))
    while round(n_volumes * timing.t_r_s / timing.target_t_r_s) < clip_frames:
        n_volumes += 1
    return n_volumes


def _frame_displacement(timing: Timing, fd_mm: np.ndarray | None, threshold: float | None) -> np.ndarray | None:
    """Displacement of each frame, weighted as its volumes are; NaN where no volume has one.  # (n_frames,)"""
    if fd_mm is None:
        if threshold is None:
            return None
        raise MotionUnknown(
            "--fd-threshold needs framewise displacement, which this run does not have",
            expected="a confounds table with framewise_displacement or motion parameters",
            remedy="Add the confounds file or leave out --fd-threshold",
        )
    fd_mm = np.asarray(fd_mm, dtype=float)
    n_expected = timing.n_dummies + timing.n_volumes
    if fd_mm.shape != (n_expected,):
        raise ConfoundsUnusable(
            f"{fd_mm.size} values of framewise displacement for {n_expected} volumes",
            expected="one a volume",
            remedy="Check that the confounds table belongs to this run",
        )
    volumes, weights = timing.frames
    of_volume = fd_mm[timing.n_dummies :][volumes]  # (n_frames, width)
    weights = np.where(np.isnan(of_volume), 0.0, weights)
    total = weights.sum(axis=1)
    summed = (weights * np.nan_to_num(of_volume)).sum(axis=1)
    return np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)


def _window(timing: Timing, start: int, clip_frames: int, frame_fd: np.ndarray | None) -> Window:
    last = start + clip_frames - 1
    return Window(
        first_frame=start,
        last_frame=last,
        onset_s=timing.onset_s(start),
        duration_s=clip_frames * timing.step_s,
        mean_fd_mm=None if frame_fd is None else _mean(frame_fd[start : last + 1]),
    )


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
