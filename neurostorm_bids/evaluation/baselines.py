"""What stands beside a model: functional connectivity, mean image, nuisance variables, age and sex, and chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from neurostorm_bids.evaluation.learning import Features
from neurostorm_bids.evaluation.metrics import Kind

FC_CITATION = "nilearn ConnectivityMeasure with the Ledoit-Wolf covariance"


def connectivity(courses: Sequence[Sequence[np.ndarray]]) -> list[Features]:
    """Functional connectivity of each row: correlations, and tangent vectors around the training rows' mean.

    Parameters
    ----------
    courses : sequence (rows) of sequences (runs) of ndarray (t, parcels)
        The runs of a row are standardised and joined in time.
    """
    covariances = [_covariance(np.concatenate([_standard(run) for run in runs])) for runs in courses]
    correlation = _measure("correlation").fit_transform(covariances)  # (n, pairs)
    return [
        Features.fixed("fc-correlation", "Functional connectivity: Ledoit-Wolf correlations", correlation),
        Features("fc-tangent", "Functional connectivity: tangent space of the training rows", _tangent(covariances)),
    ]


def correlations(clips: np.ndarray) -> np.ndarray:
    """Functional connectivity of one stretch.  # (clips, t, parcels) -> (pairs,)"""
    return _measure("correlation").fit_transform([_covariance(_standard(np.concatenate(list(clips))))])[0]


def _standard(course: np.ndarray) -> np.ndarray:
    centred = course - course.mean(axis=0)
    spread = centred.std(axis=0)
    return centred / np.where(spread > 1e-6, spread, 1.0)  # an empty parcel stays 0


def _covariance(course: np.ndarray) -> np.ndarray:
    """Ledoit-Wolf covariance of a row, computed once for all folds.  # (t, parcels) -> (parcels, parcels)"""
    from sklearn.covariance import LedoitWolf

    return LedoitWolf(store_precision=False).fit(course).covariance_


class _Known:
    """An estimator, as nilearn asks for one, of covariances that are known."""

    def fit(self, covariance: np.ndarray) -> _Known:
        """Take a covariance for its own."""
        self.covariance_ = covariance
        return self

    def __sklearn_clone__(self) -> _Known:
        return _Known()


def _measure(kind: str):
    from nilearn.connectome import ConnectivityMeasure

    return ConnectivityMeasure(
        cov_estimator=_Known(), kind=kind, vectorize=True, discard_diagonal=True, standardize=False
    )


def _tangent(covariances: list[np.ndarray]):
    from threadpoolctl import threadpool_limits

    def of_fold(train: np.ndarray) -> np.ndarray:
        # thousands of decompositions of small matrices: several threads would wait for one another most of the time
        with threadpool_limits(limits=1, user_api="blas"):
            return _measure("tangent").fit([covariances[row] for row in train]).transform(covariances)

    return of_fold


def table_features(name: str, description: str, table: pd.DataFrame) -> Features | None:
    """Columns as numbers: categories as indicators, missing values at 0 with an indicator of their own.

    Numbers are not scaled here: what is missing is filled with the mean of the training rows. None without a column
    that varies.
    """
    columns: list[np.ndarray] = []
    for column in table:
        values = table[column]
        if not varies(values):
            continue
        if pd.api.types.is_numeric_dtype(values):
            columns.append(values.to_numpy(float)[:, None])
            columns += [values.isna().to_numpy(float)[:, None]] if values.isna().any() else []
        else:
            columns.append(pd.get_dummies(values.astype(object), dummy_na=bool(values.isna().any())).to_numpy(float))
    return None if not columns else Features(name, description, _filled(np.concatenate(columns, axis=1)))


def varies(values: pd.Series) -> bool:
    """Whether rows differ in a column, or in having a value there."""
    return values.nunique() > 1 or 0 < values.isna().sum() < len(values)


def _filled(values: np.ndarray):
    def of_fold(train: np.ndarray) -> np.ndarray:
        known = ~np.isnan(values[train])
        total = np.where(known, values[train], 0.0).sum(axis=0)
        means = total / np.maximum(known.sum(axis=0), 1)
        return np.where(np.isnan(values), means, values)

    return of_fold


def chance(n_rows: int, kind: Kind) -> Features:
    """No features at all."""
    known = "mean of the training rows" if kind == "regression" else "shares of the classes among the training rows"
    return Features.fixed("chance", f"The {known}", np.zeros((n_rows, 0)))
