"""What the figures say, in sentences: by the first metric of the target's kind, and only as far as intervals go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np

from neurostorm_bids.evaluation.intervals import Interval
from neurostorm_bids.evaluation.metrics import LOWER_IS_BETTER, metrics_of
from neurostorm_bids.evaluation.problem import Problem
from neurostorm_bids.evaluation.summary import Difference, MetricRow, Summary

ALPHA = 0.05
FEW = 50  # participants below which a difference that is not seen says little

# what it means when the model is better, cannot be told apart, or is worse; {what}: the description of the features
MEANINGS = {
    "static": (
        "what it predicts rests in part on dynamics",
        "the figures do not show that it uses dynamics: the run's mean image does as well",
        "the mean image alone does better: dynamics add nothing that was used",
    ),
    "shuffled": (
        "the order of the volumes matters to it",
        "the figures do not show that it uses the order of the volumes",
        "it does better when the order of the volumes is lost",
    ),
    "fc": (
        "it does better than a linear model of functional connectivity",
        "a linear model of functional connectivity cannot be told apart from it",
        "a linear model of functional connectivity does better",
    ),
    "mean-image": (
        "it does better than a linear model of the parcels' mean image",
        "a linear model of the parcels' mean image cannot be told apart from it",
        "a linear model of the parcels' mean image does better",
    ),
    "nuisance": (
        "motion, site and acquisition alone do not explain it",
        "motion, site and acquisition alone cannot be told apart from it",
        "motion, site and acquisition alone do better",
    ),
    "demographics": (
        "it does better than a prediction from {what} alone",
        "a prediction from {what} alone cannot be told apart from it",
        "a prediction from {what} alone does better",
    ),
    "chance": (
        "it is better than {what}",
        "it cannot be told apart from {what}",
        "it is worse than {what}",
    ),
}


def statements(
    problem: Problem,
    summary: Summary,
    models: Sequence[str],
    fixed: Sequence[str] = (),
    descriptions: Mapping[str, str] | None = None,
) -> list[str]:
    """Sentences on each model, then on the controls and comparisons that are at chance or not.

    ``fixed`` are models whose training was not repeated with permuted labels; ``descriptions`` are of the features, by
    name.
    """
    metric = metrics_of(problem.kind)[0]
    names = list(dict.fromkeys(row.features for row in summary.rows))
    found = {name: _standing(summary, name, metric) for name in names if name != "chance"}
    said = [_above_chance(summary.row(name, metric), metric, found[name], name in fixed) for name in found]
    for number, model in enumerate(models):
        for name in (name for name in names if name not in models[: number + 1] and _concerns(name, model)):
            difference = summary.difference(model, name, metric)
            if difference is not None:
                told = _compared(difference, metric, (descriptions or {}).get(name, name))
                nothing = {found.get(model), found.get(name)} <= {Standing.NOT_ABOVE, Standing.NO_BETTER}
                said.append(told + " Neither is above chance." * nothing)
    if len(problem.labels) < FEW:
        said.append(
            f"With {len(problem.labels)} participants only large differences can be seen: what is not shown here "
            "may well be there."
        )
    return said


def _concerns(name: str, model: str) -> bool:
    """Whether a comparison says something of a model: controls are those of one model."""
    control, _, of = name.partition("-")
    return control not in ("static", "shuffled") or of == model


class Standing(Enum):
    """What permuted labels, and what is guessed without any features, say of a metric."""

    UNKNOWN = "no permutations were asked for"
    ABOVE = "above chance"
    NO_BETTER = "not above chance: better than with permuted labels, but no better than without any features"
    NOT_ABOVE = "not above chance"


def _standing(summary: Summary, name: str, metric: str) -> Standing:
    row, guessed = summary.row(name, metric), summary.value("chance", metric)
    if not row.n_permutations:
        return Standing.UNKNOWN
    if not row.p <= ALPHA:
        return Standing.NOT_ABOVE
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return Standing.NO_BETTER if guessed is not None and sign * row.value <= sign * guessed else Standing.ABOVE


def _above_chance(row: MetricRow, metric: str, standing: Standing, fixed: bool) -> str:
    figures = f"{metric} {row.value:.3f} {shown(row.interval, '.3f')}"
    if standing is Standing.UNKNOWN:
        return f"{row.features}: {figures}; {standing.value}."
    how = " without training again" if fixed else ""
    return f"{row.features}: {standing.value} ({figures}, p = {row.p:.2g} of {row.n_permutations} permutations{how})."


def on_confounds(model: str, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on how a model's predictions, and what was observed, go along with nuisance variables.

    ``found`` is that of `confounds.associations`.
    """
    told = [
        f"{name} {_figure(each['WithPrediction'])} (observed values {_figure(each['WithObserved'])}; {each['Measure']})"
        for name, each in found.items()
        if each["WithPrediction"] is not None
    ]
    return [f"{model}: its predictions go along with {', '.join(told)}."] if told else []


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def on_age_bias(model: str, figures: Mapping[str, float], unit: str | None) -> str:
    """A sentence on errors without and with the correction of their dependence on age (`calibration`)."""
    parts = [
        f"MAE {figures[f'MAE{way}']:.2f}{' ' + unit if unit else ''}, R2 {figures[f'R2{way}']:.2f}, correlation of the "
        f"error with age {figures[f'ErrorWithValue{way}']:+.2f}"
        for way in ("Uncorrected", "BiasCorrected")
    ]
    return f"{model}, age bias: {parts[0]} as predicted; {parts[1]} after correction learnt on training participants."


def shown(interval: Interval, form: str) -> str:
    """An interval in a sentence."""
    if np.isnan(interval.low):
        return "(resampling gives no interval)"
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def verdict_of(difference: Difference, metric: str) -> int:
    """1: the model is better, -1: it is worse, 0: they cannot be told apart."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    if sign * difference.interval.low > 0 and sign * difference.interval.high > 0:
        return 1
    return -1 if sign * difference.interval.low < 0 and sign * difference.interval.high < 0 else 0


def _compared(difference: Difference, metric: str, description: str) -> str:
    figures = f"{metric} {difference.value:+.3f} {shown(difference.interval, '+.3f')}"
    kind = next((kind for kind in MEANINGS if difference.features.startswith(kind)), None)
    verdict = verdict_of(difference, metric)
    told = ("it is better", "they cannot be told apart", "it is worse")
    meaning = (MEANINGS[kind] if kind else told)[{1: 0, 0: 1, -1: 2}[verdict]]
    meaning = meaning.format(what=description[:1].lower() + description[1:])
    return f"{difference.model} against {difference.features}: {meaning} ({figures})."
