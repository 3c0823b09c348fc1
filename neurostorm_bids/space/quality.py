"""Is the brain where the model expects it, and is there a signal? Figures of one run.

Overlap alone sees neither a mirrored brain nor a shift of a centimetre, so several figures are taken; their
thresholds come from simulated misplacements (docs/normalization.md). The template is symmetric: none of these figures
tells left from right, which is the affine's business alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurostorm_bids.errors import CoverageTooLow
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.resample import sampler_in_space
from neurostorm_bids.space.series import GridSeries
from neurostorm_bids.space.template import template_brain

MOST_OUTSIDE_FOV = 0.10
LEAST_DICE = 0.88
MOST_OFFSET_MM = 6.0
LEAST_CORRELATION = 0.62
T_R_RANGE_S = (0.7, 1.0)  # of the data that the published checkpoints were trained on

# figure -> (unit, description), as tables and sidecars state them
FIGURES: dict[str, tuple[str | None, str]] = {
    "coverage": (None, "Share of the template brain that the run's brain mask covers."),
    "outside_fov": (None, "Share of the template brain outside the run's field of view."),
    "dice": (None, "Dice overlap of the run's brain mask with the template brain, in the field of view."),
    "centroid_offset": ("mm", "Distance between the centroids of brain mask and template brain, in the field of view."),
    "template_correlation": (None, "Correlation of the mean image with the template, over the brain and 12 mm around."),
    "lr_asymmetry": (None, "1 minus the correlation of the mean image with its mirror image, inside the brain mask."),
    "tsnr": (None, "Median over the brain of the mean over time divided by the standard deviation over time."),
    "t_r_in_range": (None, "Whether the repetition time is one that the published checkpoints saw (0.7 to 1.0 s)."),
}


@dataclass(frozen=True)
class RunQuality:
    """Figures of one run, named and described in ``FIGURES``, and what they warn of.

    A figure that cannot be computed (``tsnr`` of a single volume, correlations without variance) is None.
    """

    coverage: float
    outside_fov: float
    dice: float
    centroid_offset: float | None
    template_correlation: float | None
    lr_asymmetry: float | None
    tsnr: float | None
    t_r_in_range: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should look at."""
        offset, correlation = self.centroid_offset, self.template_correlation
        texts = (
            (self.outside_fov > MOST_OUTSIDE_FOV, f"{self.outside_fov:.0%} of the template brain is outside the image"),
            (self.dice < LEAST_DICE, f"the brain mask overlaps the template poorly (Dice {self.dice:.2f})"),
            (
                offset is not None and offset > MOST_OFFSET_MM,
                f"the brain mask lies {offset or 0:.1f} mm off the template's centre",
            ),
            (
                correlation is not None and correlation < LEAST_CORRELATION,
                f"the mean image resembles the template little (r = {correlation or 0:.2f}): is it in this space?",
            ),
            (not self.t_r_in_range, "the repetition time is outside the 0.7 to 1.0 s that the checkpoints saw"),
        )
        return tuple(text for is_so, text in texts if is_so)


class Tally:
    """Sums over a run's volumes, gathered while another reader streams them.

    Give ``add`` to ``GridSeries.observed_by``, read the observed series once, then ``assess``.
    """

    def __init__(self, series: GridSeries) -> None:
        self._shape = series.grid.shape
        brain = np.flatnonzero(series.brain)
        around = np.flatnonzero(template_brain(series.grid).region & ~series.brain)
        self._voxels = np.concatenate([brain, around])  # the brain first, so that it is a slice
        self._brain = slice(0, len(brain))
        self._first: np.ndarray | None = None
        self._sum = np.zeros(len(self._voxels))
        self._square = np.zeros(len(brain))
        self.n_volumes = 0

    def add(self, volume: np.ndarray) -> None:
        """Count one volume.  # (X, Y, Z)"""
        values = volume.ravel().take(self._voxels)
        if self._first is None:
            self._first = values
        deviation = values - self._first  # around the first volume: a large mean costs no digits
        self._sum += deviation
        self._square += np.square(deviation[self._brain], dtype=np.float64)
        self.n_volumes += 1

    def mean_image(self) -> np.ndarray:
        """Mean over time in the region of comparison, 0 elsewhere.  # (X, Y, Z) float64"""
        mean = np.zeros(int(np.prod(self._shape)))
        if self._first is not None:
            mean[self._voxels] = self._first + self._sum / self.n_volumes
        return mean.reshape(self._shape)

    def tsnr(self) -> float | None:
        """Median over the brain of mean / SD; voxels that never change do not count."""
        if self.n_volumes < 2 or self._first is None:
            return None
        shift = self._sum[self._brain] / self.n_volumes
        variance = (self._square / self.n_volumes - shift**2) * self.n_volumes / (self.n_volumes - 1)
        mean = self._first[self._brain] + shift
        varies = variance > 1e-10 * mean**2
        return float(np.median(mean[varies] / np.sqrt(variance[varies]))) if varies.any() else None


def coverage(series: GridSeries) -> float:
    """Share of the template brain that the run's brain mask covers."""
    template = template_brain(series.grid).brain
    return float(np.count_nonzero(series.brain & template) / np.count_nonzero(template))


def require_coverage(series: GridSeries, minimum: float) -> None:
    """Refuse a run that covers too little of the template brain; only its mask is read.

    Raises
    ------
    CoverageTooLow
    """
    covered = coverage(series)
    if covered < minimum:
        raise CoverageTooLow(
            f"the run's brain mask covers {covered:.0%} of the template brain",
            file=series.route.image.bold,
            expected=f"at least {minimum:.0%}",
            remedy="Look at its placement and mask; --min-coverage lowers the limit for partial acquisitions",
        )


def assess(series: GridSeries, tally: Tally) -> RunQuality:
    """The figures of a run whose volumes ``tally`` has seen."""
    template = template_brain(series.grid)
    mean = tally.mean_image()
    low, high = T_R_RANGE_S
    overlap = np.count_nonzero(series.brain & template.brain)
    n_template = np.count_nonzero(template.brain)
    seen = template.brain & series.inside  # a cut field of view is not a misplacement
    return RunQuality(
        coverage=float(overlap / n_template),
        outside_fov=float(1 - np.count_nonzero(seen) / n_template),
        dice=float(2 * overlap / max(1, np.count_nonzero(seen) + np.count_nonzero(series.brain))),
        centroid_offset=_centroid_offset(series, seen),
        template_correlation=_correlation(mean, template.image, template.region & series.inside),
        lr_asymmetry=_asymmetry(mean, series.brain, series.grid),
        tsnr=tally.tsnr(),
        t_r_in_range=low <= round(series.t_r_s, 3) <= high,
    )


def _centroid_offset(series: GridSeries, seen: np.ndarray) -> float | None:
    if not seen.any() or not series.brain.any():
        return None
    apart = np.argwhere(series.brain).mean(axis=0) - np.argwhere(seen).mean(axis=0)
    return float(np.linalg.norm(series.grid.matrix[:3, :3] @ apart))


def _correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float | None:
    x, y = a[where].astype(np.float64), b[where].astype(np.float64)
    if x.size < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _asymmetry(mean: np.ndarray, brain: np.ndarray, grid: Grid) -> float | None:
    mirrored = Grid.of(grid.shape, np.diag([-1.0, 1, 1, 1]) @ grid.matrix, grid.template)
    mirror = sampler_in_space(grid, mirrored, "nearest")
    other_side, brain_too = mirror(mean), mirror(brain) > 0
    correlation = _correlation(mean, other_side, brain & brain_too)
    return None if correlation is None else 1 - correlation
