"""``--denoise``: confound regression while streaming, with the mean image kept.

Released checkpoints saw ICA-FIX data where there were any; fMRIPrep's ``desc-preproc`` has nothing regressed out.
The strategies are nilearn's reading of fMRIPrep's confounds table; the regression is ours, because a run streams.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurostorm_bids.clips.series import VolumeSeries, foreground_voxels
from neurostorm_bids.errors import ConfoundsUnusable

Strategy = Literal["24P", "36P", "acompcor"]

# 24P: Friston et al. 1996; 36P: Satterthwaite et al. 2013, Ciric et al. 2017; acompcor: Behzadi et al. 2007, five
# components of white matter and five of fluid, with the cosines that fMRIPrep high-passed them by
STRATEGIES: dict[str, dict[str, Any]] = {
    "24P": {"strategy": ("motion",), "motion": "full"},
    "36P": {
        "strategy": ("motion", "wm_csf", "global_signal"),
        "motion": "full",
        "wm_csf": "full",
        "global_signal": "full",
    },
    "acompcor": {
        "strategy": ("motion", "high_pass", "compcor"),
        "motion": "derivatives",
        "compcor": "anat_separated",
        "n_compcor": 5,
    },
}
GROUP = 16  # volumes that share one read of the coefficients
SMALLEST_SINGULAR_VALUE = 1e-6  # relative: regressors below it are sums of the others


def confound_regressors(confounds: Path, confounds_json: Path | None, strategy: Strategy) -> np.ndarray:
    """Columns of a confounds table that a strategy regresses out.

    Parameters
    ----------
    confounds, confounds_json : Path
        Table of fMRIPrep (or of a pipeline with the same column names) and its sidecar, which acompcor needs.
    strategy : {"24P", "36P", "acompcor"}

    Returns
    -------
    ndarray of shape (n_volumes, n_regressors)

    Raises
    ------
    ConfoundsUnusable
        When a column or the sidecar is missing.
    """
    from nilearn.interfaces.fmriprep import load_confounds

    with tempfile.TemporaryDirectory() as folder:
        # nilearn finds the table by the name of its image, which differs between pipelines and releases
        for path in filter(None, (confounds, confounds_json)):
            (Path(folder) / f"sub-x_task-x_desc-confounds_timeseries{path.suffix}").symlink_to(path.absolute())
        image = Path(folder) / "sub-x_task-x_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        try:
            table, _ = load_confounds(str(image), demean=False, **STRATEGIES[strategy])
        except (ValueError, KeyError, OSError) as fault:
            raise ConfoundsUnusable(
                f"--denoise {strategy} cannot be built from it: {' '.join(str(fault).split())}",
                file=confounds,
                expected="the confounds table and sidecar of fMRIPrep at level full",
                remedy="Choose another strategy, or leave out --denoise",
            ) from None
    values = table.to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise ConfoundsUnusable(
            f"columns that --denoise {strategy} needs hold missing values", file=confounds, remedy="Leave out --denoise"
        )
    return values


class DenoisedSeries:
    """A run with confounds regressed out of every foreground voxel; its mean image is that of the run.

    Made by `denoised`; it is a `VolumeSeries`. The background and dropped volumes pass through.

    Attributes
    ----------
    n_regressors : int
        Independent ones, the linear trend among them.
    """

    def __init__(self, series: VolumeSeries, basis: np.ndarray, coefficients: np.ndarray) -> None:
        self.n_volumes, self.t_r_s, self.mask = series.n_volumes, series.t_r_s, series.mask
        self.n_regressors = basis.shape[1]
        self._series, self._basis, self._coefficients = series, basis, coefficients
        self._voxels = foreground_voxels(series.mask)
        self._observe: Callable[[np.ndarray], None] | None = None

    def observed_by(self, observe: Callable[[np.ndarray], None]) -> DenoisedSeries:
        """The same series; ``observe`` is called with each cleaned volume as it passes."""
        observed = copy(self)
        observed._observe = observe
        return observed

    def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
        """Volumes from ``start`` on.  # (x, y, z) float32"""
        for first, group in _groups(self._series, start):
            explained = self._basis[first : first + len(group)].astype(np.float32) @ self._coefficients
            for volume, part in zip(group, explained, strict=True):
                # a copy: the series may lend its volume to others
                cleaned = np.array(volume, np.float32, order="C")
                cleaned.reshape(-1)[self._voxels] -= part
                if self._observe is not None:
                    self._observe(cleaned)
                yield cleaned


def denoised(series: VolumeSeries, regressors: np.ndarray, *, n_dummies: int = 0) -> DenoisedSeries:
    """Regress confounds and a linear trend out of a run, in one pass over it.

    y' = y - Q Q^T y, where Q is an orthonormal basis of the regressors without their means over the kept volumes:
    the mean image stays as it is. What is held is one float32 number per voxel and regressor, however long the run.

    Parameters
    ----------
    series : VolumeSeries
    regressors : ndarray of shape (n_volumes, n_regressors)
        One row a volume, dummies included.
    n_dummies : int
        Volumes at the start that neither count nor are changed.

    Raises
    ------
    ConfoundsUnusable
        When rows and volumes differ in number, or the run has too few volumes for its regressors.
    """
    if len(regressors) != series.n_volumes:
        raise ConfoundsUnusable(
            f"the confounds table has {len(regressors)} rows for {series.n_volumes} volumes",
            expected="one a volume",
            remedy="Take the confounds that the pipeline wrote beside this run",
        )
    kept = orthonormal_basis(regressors[n_dummies:])
    basis = np.zeros((series.n_volumes, kept.shape[1]))
    basis[n_dummies:] = kept
    return DenoisedSeries(series, basis, _coefficients(series, basis, n_dummies))


def orthonormal_basis(regressors: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the regressors and a linear trend, each without its mean.  # (n_volumes, k)

    Raises
    ------
    ConfoundsUnusable
        When they leave fewer than one degree of freedom in two.
    """
    n_volumes = len(regressors)
    columns = np.column_stack([np.arange(n_volumes), regressors])
    columns = columns - columns.mean(axis=0)
    lengths = np.linalg.norm(columns, axis=0)
    columns = columns[:, lengths > 0] / lengths[lengths > 0]
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    basis = left[:, singular > SMALLEST_SINGULAR_VALUE * singular.max(initial=0)]
    if 2 * basis.shape[1] > n_volumes:
        raise ConfoundsUnusable(
            f"{basis.shape[1]} independent regressors for {n_volumes} volumes would take most of the signal away",
            expected=f"at least {2 * basis.shape[1]} volumes",
            remedy="Choose a strategy with fewer regressors, or leave out --denoise",
        )
    return basis


def _coefficients(series: VolumeSeries, basis: np.ndarray, n_dummies: int) -> np.ndarray:
    """Q^T y of each foreground voxel.  # (k, v) float32"""
    voxels = foreground_voxels(series.mask)
    total = np.zeros((basis.shape[1], voxels.size), np.float32)
    origin: np.ndarray | None = None
    for first, group in _groups(series, n_dummies):
        values = np.stack([np.ascontiguousarray(volume).reshape(-1)[voxels] for volume in group])  # (volumes, v)
        if origin is None:
            origin = values[0].copy()
        # Q is orthogonal to constants: without the first volume, float32 is spent on what changes
        values -= origin
        total += basis[first : first + len(group)].T.astype(np.float32) @ values
    return total


def _groups(series: VolumeSeries, start: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Volumes a few at a time, with the number of the first."""
    stream = series.volumes(start)
    while group := list(islice(stream, GROUP)):
        yield start, group
        start += len(group)
