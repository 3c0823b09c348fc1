"""What predictions go along with: motion, site, length, pipeline; and how they do within each site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from neurostorm_bids.evaluation.learning import Outcome, each_repeat
from neurostorm_bids.evaluation.problem import Problem

LEAST_AT_SITE = 10


def associations(problem: Problem, outcome: Outcome, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """How predictions and observed values go along with each nuisance variable.

    Numbers: Pearson correlation. Categories: correlation ratio (eta), the root of the share of variance between them.
    Of several classes, the class whose probability goes along most.
    """
    times = (~np.isnan(outcome.predicted)).sum(axis=0)  # (n, k)
    total = np.nansum(outcome.predicted, axis=0)
    predicted = np.where(times > 0, total / np.maximum(times, 1), np.nan)
    observed = problem.columns(problem.values[:, None])[:, 0]  # (n, k)
    return {
        str(name): {
            "Measure": "pearson" if pd.api.types.is_numeric_dtype(table[name]) else "eta",
            "WithPrediction": strongest(predicted, table[name]),
            "WithObserved": strongest(observed, table[name]),
        }
        for name in table
        if table[name].nunique() > 1
    }


def strongest(values: np.ndarray, nuisance: pd.Series) -> float | None:
    """The largest association of any column of values.  # (n, k)"""
    measure = _pearson if pd.api.types.is_numeric_dtype(nuisance) else _eta
    found = [measure(column, nuisance) for column in values.T]
    known = [value for value in found if value is not None]
    return max(known, key=abs, default=None)


def _pearson(values: np.ndarray, nuisance: pd.Series) -> float | None:
    other = nuisance.to_numpy(float)
    both = ~np.isnan(values) & ~np.isnan(other)
    if both.sum() < 3 or not values[both].std() > 1e-12 or not other[both].std() > 1e-12:
        return None
    return float(np.corrcoef(values[both], other[both])[0, 1])


def _eta(values: np.ndarray, nuisance: pd.Series) -> float | None:
    both = ~np.isnan(values) & nuisance.notna().to_numpy()
    values, groups = values[both], nuisance[both].astype(str).to_numpy()
    around = ((values - values.mean()) ** 2).sum() if len(values) else 0.0
    if not around > 1e-12:
        return None
    between = sum((groups == name).sum() * (values[groups == name].mean() - values.mean()) ** 2 for name in set(groups))
    return float(np.sqrt(between / around))


def within(problem: Problem, outcome: Outcome, groups: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Metrics within each site that has enough rows, mean over repeats.

    Parameters
    ----------
    groups : mapping of participant to site
    """
    sites = np.array([str(groups.get(participant, "n/a")) for participant in problem.participants])
    found = {}
    for site in sorted(set(sites)):
        mine = (sites == site).astype(float)[None]
        if mine.sum() >= LEAST_AT_SITE:
            each = each_repeat(problem, outcome, mine)
            means = {name: float(np.mean([scores[name][0] for scores in each])) for name in each[0]}
            known = {name: value for name, value in means.items() if not np.isnan(value)}
            found[site] = {"n_rows": float(mine.sum()), **known}
    return found
