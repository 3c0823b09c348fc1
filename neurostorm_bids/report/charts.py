"""Where points and lines of a plot go, in per cent of its width and height, so that text need not be scaled with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

EDGE = 6.0  # per cent left free around points


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` as per cent of a plot; ``flipped`` counts from above, as y does in SVG."""

    low: float
    high: float
    flipped: bool = False
    edge: float = 0.0

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        place = self.edge + (100 - 2 * self.edge) * share
        return round(100 - place if self.flipped else place, 2)

    def length(self, difference: float) -> float:
        """A difference as per cent."""
        span = self.high - self.low
        return round((100 - 2 * self.edge) * difference / span, 3) if span > 0 else 0.0

    @classmethod
    def around(cls, values: Iterable[float], *, flipped: bool = False, edge: float = EDGE) -> Scale:
        """The scale that shows all finite values."""
        finite = [value for value in values if math.isfinite(value)]
        return cls(min(finite, default=0.0), max(finite, default=1.0), flipped, edge)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two values, at most ``most``."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


# --- time -------------------------------------------------------------------------------------------------------


def timeline(content: Mapping[str, Any]) -> dict[str, Any]:
    """Motion, clips and carpet of a run on one axis of scanner time.

    Parameters
    ----------
    content : mapping
        ``RunFigures.content``.
    """
    motion, clips, carpet = content["Motion"], content["Clips"], content.get("Carpet")
    fd = [math.nan if value is None else float(value) for value in motion["FramewiseDisplacement"]]
    start, step = float(motion["Onset"]), float(motion["RepetitionTime"])
    ends = [start + len(fd) * step, *(clip["Onset"] + clip["Duration"] for clip in clips)]
    if carpet:
        ends.append(carpet["Onset"] + carpet["Duration"])
    time = Scale(start, max(ends))
    return {
        "end": max(ends),
        "ticks": [(time(tick), f"{tick:g}") for tick in ticks(start, max(ends))],
        "clips": [_clip(number, clip, time) for number, clip in enumerate(clips, 1)],
        "fd": _trace(fd, content.get("FramewiseDisplacementLimit")) if fd else None,
        "fd_width": time.length(len(fd) * step),
        "carpet": _carpet(carpet, time) if carpet else None,
    }


def _clip(number: int, clip: Mapping[str, Any], time: Scale) -> dict[str, Any]:
    onset, duration = float(clip["Onset"]), float(clip["Duration"])
    return {
        "number": number,
        "used": bool(clip["Used"]),
        "x": time(onset),
        "width": time.length(duration),
        "text": f"{onset:.1f} to {onset + duration:.1f} s" + ("" if clip["Used"] else ", left out for motion"),
    }


def _trace(fd: Sequence[float], limit: float | None) -> dict[str, Any]:
    """A path in a box of as many units as there are volumes, 100 high; gaps where motion is unknown."""
    known = [value for value in fd if math.isfinite(value)]
    top = max([0.5, *known, *([limit] if limit else [])])
    height = Scale(0.0, top, flipped=True)
    parts, pen = [], "M"
    for number, value in enumerate(fd):
        if math.isfinite(value):
            parts.append(f"{pen}{number + 0.5:g} {height(value):g}")
            pen = "L"
        else:
            pen = "M"
    return {
        "path": "".join(parts),
        "n": len(fd),
        "ticks": [(height(tick), f"{tick:g}") for tick in ticks(0, top, 3)],
        "limit": height(limit) if limit else None,
        "mean": sum(known) / len(known) if known else None,
        "highest": max(known, default=None),
    }


def _carpet(carpet: Mapping[str, Any], time: Scale) -> dict[str, Any]:
    rows = {str(name): int(n) for name, n in carpet["Rows"].items()}
    total, bands, above = max(sum(rows.values()), 1), [], 0
    for name, n in rows.items():
        bands.append({"name": name, "y": round(100 * above / total, 2), "height": round(100 * n / total, 2), "n": n})
        above += n
    return {
        "x": time(float(carpet["Onset"])),
        "width": time.length(float(carpet["Duration"])),
        "bands": bands,
        "limit": carpet["LimitInSD"],
        "volumes_per_column": carpet["VolumesPerColumn"],
    }


# --- embeddings -------------------------------------------------------------------------------------------------


def principal_plane(rows: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The first two principal components, signs fixed, and the shares of variance that they hold.

    Parameters
    ----------
    rows : ndarray of shape (n, d)

    Returns
    -------
    ndarray of shape (n, 2)
    tuple of float
    """
    centred = rows - rows.mean(axis=0)
    left, singular, directions = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(rows), 2))
    n = min(2, len(singular))
    for axis in range(n):
        # the sign of a component is free: its largest weight is made positive, so that equal data look equal
        sign = np.sign(directions[axis, np.argmax(np.abs(directions[axis]))]) or 1.0
        plane[:, axis] = sign * left[:, axis] * singular[axis]
    total = float((singular**2).sum())
    shares = [float(value**2 / total) if total > 0 else 0.0 for value in singular[:n]] + [0.0] * (2 - n)
    return plane, (shares[0], shares[1])


def trajectories(embeddings: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The way of each run's clips through one plane, which is that of all runs of the participant under a model.

    Parameters
    ----------
    embeddings : mapping of str to ndarray of shape (n_clips, d)
        By run.
    """
    stacked = np.concatenate(list(embeddings.values())) if embeddings else np.zeros((0, 1))
    if len(stacked) < 3 or not np.isfinite(stacked).all():
        return {}
    plane, shares = principal_plane(stacked)
    x, y = Scale.around(plane[:, 0]), Scale.around(plane[:, 1], flipped=True)
    places = [(x(a), y(b)) for a, b in plane]
    ways: dict[str, dict[str, Any]] = {}
    start = 0
    for name, rows in embeddings.items():
        own = places[start : start + len(rows)]
        others = places[:start] + places[start + len(rows) :]
        ways[name] = {"points": own, "lines": list(pairwise(own)), "others": others, "shares": shares}
        start += len(rows)
    return ways


# --- predictions ------------------------------------------------------------------------------------------------


def against_training(
    value: float, spread: float | None, mean: float, sd: float, interval: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A value on an axis that shows the training sample's mean and two standard deviations around it.

    ``spread`` is that of the run's clips; ``interval`` the ends of a calibrated one.
    """
    ends = [*(interval or ()), value - (spread or 0), value + (spread or 0)]
    axis = Scale.around([mean - 3 * sd, mean + 3 * sd, *ends], edge=2.0)

    def stretch(low: float, high: float) -> tuple[float, float]:
        return axis(low), axis.length(high - low)

    return {
        "value": axis(value),
        "spread": stretch(value - spread, value + spread) if spread else None,
        "interval": stretch(*interval) if interval else None,
        "mean": axis(mean),
        "two_sd": stretch(mean - 2 * sd, mean + 2 * sd),
        "one_sd": stretch(mean - sd, mean + sd),
        "ticks": [(axis(tick), f"{tick:g}") for tick in ticks(axis.low, axis.high, 5)],
        "z": (value - mean) / sd,
    }
