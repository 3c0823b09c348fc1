"""Maps of one clip: integrated gradients (Sundararajan 2017, arXiv 1703.01365; captum) and occlusion by parcel.

Both give a value a voxel. Those of integrated gradients add up to the difference between the outputs for the clip and
for its baseline (completeness, proposition 1 of the paper); those of occlusion need not, since parcels act together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from neurostorm_bids.attribution.baseline import baseline_of

if TYPE_CHECKING:
    from torch import Tensor

    from neurostorm_bids.attribution.parcels import Parcels
    from neurostorm_bids.attribution.score import Score

Method = Literal["integrated-gradients", "occlusion"]
STEPS = (8, 16, 32, 64, 128, 256)  # of Gauss-Legendre quadrature, taken until the map adds up
TOLERANCE = 0.005  # of a clip's difference; what is promised of a run's is four times that
FLOOR = 1e-3  # of an output: differences below it are rounding
PASSES_PER_STEP = 6  # forward passes in inference that a step of forward and backward costs, measured


@dataclass(frozen=True, eq=False)
class ClipMap:
    """The map of a clip.

    Attributes
    ----------
    values : ndarray of shape (X, Y, Z)
        Summed over frames and channels, in the unit of the question.
    difference : float
        Output for the clip less output for its baseline.
    steps : int
        Steps of the quadrature, or parcels occluded.
    """

    values: np.ndarray
    difference: float
    steps: int

    @property
    def error(self) -> float:
        """How far the map is from adding up, as a share of the difference."""
        return abs(float(self.values.sum()) - self.difference) / max(abs(self.difference), 1e-30)


@dataclass(eq=False)
class MapTotal:
    """The sum over clips; holds one map, however many clips there are."""

    values: np.ndarray | float = 0.0
    difference: float = 0.0
    n_clips: int = 0
    steps: int = 0
    worst: float = 0.0
    differences: list[float] = field(default_factory=list)

    def add(self, clip: ClipMap) -> None:
        """Count a clip."""
        self.values = self.values + clip.values
        self.difference += clip.difference
        self.differences.append(clip.difference)
        self.n_clips += 1
        self.steps, self.worst = max(self.steps, clip.steps), max(self.worst, clip.error)

    def mean(self) -> ClipMap:
        """The map of the run: the mean over its clips."""
        return ClipMap(np.asarray(self.values) / self.n_clips, self.difference / self.n_clips, self.steps)


def explain(
    score: Score,
    clips: Iterable[Tensor],
    *,
    method: Method,
    background: float,
    baseline: str,
    parcels: Parcels,
) -> Iterator[ClipMap]:
    """The map of each clip, one at a time.

    Parameters
    ----------
    score : Score
    clips : iterable of Tensor
        Batches of clips.  # (n, ch, X, Y, Z, T)
    method : {"integrated-gradients", "occlusion"}
    background : float
        What voxels outside the brain hold.
    baseline : str
        See `baseline_of`.
    parcels : Parcels
        What occlusion hides in turn.
    """
    enough = 0
    for batch in clips:
        for clip in batch.split(1):
            clip = clip.to(score.device)
            other = baseline_of(clip, background, baseline)
            if method == "occlusion":
                yield occlusion(score, clip, other, parcels)
                continue
            found = integrated_gradients(score, clip, other, first=enough)
            enough = STEPS.index(found.steps)  # clips of a run are alike: begin with what was enough
            yield found


def integrated_gradients(score: Score, clip: Tensor, baseline: Tensor, *, first: int = 0) -> ClipMap:
    """Integrated gradients along the straight line from the baseline, with as many steps as it takes to add up.

    Parameters
    ----------
    clip, baseline : (1, ch, X, Y, Z, T)
    first : int
        Index of the number of steps to begin with.
    """
    from captum.attr import IntegratedGradients

    end, start = _output(score, clip), _output(score, baseline)
    captum = IntegratedGradients(score)
    for steps in STEPS[first:]:
        found = captum.attribute(clip, baseline, n_steps=steps, internal_batch_size=score.batch_size)
        result = ClipMap(_over_frames(found), end - start, steps)
        if result.error <= TOLERANCE or abs(end - start) <= FLOOR * max(abs(end), abs(start)):
            break
    return result


def occlusion(score: Score, clip: Tensor, baseline: Tensor, parcels: Parcels) -> ClipMap:
    """What the output loses when the baseline takes the place of a parcel, shared out evenly over its voxels.

    What lies in no parcel is hidden as one more.
    """
    import torch

    end, start = _output(score, clip), _output(score, baseline)
    labels = torch.from_numpy(parcels.labels).to(clip.device)
    inside = (clip != baseline).any(dim=-1)[0].any(dim=0)  # (X, Y, Z): where there is anything to hide
    values = torch.zeros(clip.shape[2:5], dtype=torch.float64)
    hidden = clip.clone()
    present = labels[inside].unique().tolist()
    for label in present:
        voxels = inside & (labels == label)  # (X, Y, Z)
        hidden[:, :, voxels] = baseline[:, :, voxels]
        values[voxels.cpu()] = (end - _output(score, hidden)) / int(voxels.sum())
        hidden[:, :, voxels] = clip[:, :, voxels]
    return ClipMap(values.numpy(), end - start, len(present))


def _output(score: Score, clip: Tensor) -> float:
    import torch

    with torch.no_grad():
        return float(score(clip)[0])


def _over_frames(found: Tensor) -> np.ndarray:
    """(1, ch, X, Y, Z, T) -> (X, Y, Z), in float64"""
    import torch

    return found.detach().sum(dim=(0, 1, 5), dtype=torch.float64).cpu().numpy()


def estimated_passes(method: Method, n_parcels: int) -> int:
    """What the map of one clip costs, in forward passes; the first clip of a run costs it twice (sanity check)."""
    return n_parcels + 3 if method == "occlusion" else PASSES_PER_STEP * STEPS[0] + 2
