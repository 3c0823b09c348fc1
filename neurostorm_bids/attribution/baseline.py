"""What a clip is compared with. A prediction is explained as a difference, so the other side must be stated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTIONS = {
    "flat": "the same brain with the run's mean intensity in every voxel and frame: explains anatomy and activity",
    "static": "the clip's own mean over time in every frame: explains changes over time alone",
}


def baseline_of(clip: Tensor, background: float, kind: str) -> Tensor:
    """The clip that a clip is compared with; outside the brain the two are equal.

    Parameters
    ----------
    clip : Tensor
        (1, ch, X, Y, Z, T), normalised: the run's mean is 0.
    background : float
        What voxels outside the brain hold.
    kind : str
        "flat" or "static", see `DESCRIPTIONS`.

    Returns
    -------
    Tensor
        (1, ch, X, Y, Z, T)
    """
    if kind == "static":
        return clip.mean(dim=-1, keepdim=True).expand_as(clip).contiguous()
    outside = (clip == background).all(dim=-1, keepdim=True)  # (1, ch, X, Y, Z, 1)
    return (outside * background).to(clip.dtype).expand_as(clip).contiguous()
