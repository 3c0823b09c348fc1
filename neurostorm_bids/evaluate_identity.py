"""``--target identity``: how well features tell people apart, across runs and within them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurostorm_bids.cached import CachedRun
from neurostorm_bids.errors import EvaluationImpossible
from neurostorm_bids.evaluate_leakage import confessed, identity_leakage, leakage_json, overlap_unknown
from neurostorm_bids.evaluation.intervals import Interval
from neurostorm_bids.evaluation.leakage import Finding, require_none
from neurostorm_bids.evaluation.methods import identity_methods
from neurostorm_bids.evaluation.permutation import p_value
from neurostorm_bids.evaluation.retrieval import (
    DESCRIPTIONS,
    RETRIEVAL,
    Ranks,
    chance_of,
    credits_of,
    difference_of,
    interval_of,
    permuted_scores,
    ranks,
    retrieval_scores,
)
from neurostorm_bids.evaluation.statements import shown
from neurostorm_bids.evaluation_tables import IDENTIFYING, ignore_evaluation
from neurostorm_bids.outputs.atomic import write_json, write_text
from neurostorm_bids.outputs.sidecars import software_versions
from neurostorm_bids.outputs.tables import Column, describe_columns, tsv_text
from neurostorm_bids.settings import Settings

if TYPE_CHECKING:
    from neurostorm_bids.evaluate import Material

LEAST = 5
WITHIN, ACROSS = "within runs", "across runs"
WHOLE, FIRST, SECOND = "whole", "first half", "second half"
Of = Callable[[str, str], np.ndarray]  # run and part of it -> features
Found = Mapping[tuple[str, str], Ranks]  # by features and setting


def evaluate_identity(material: Material, settings: Settings) -> Path:
    """Write ``evaluation/identity``; returns the folder.

    Raises
    ------
    EvaluationImpossible
        When fewer than five people can be looked for.
    LeakageFound
        Unless ``--allow-leakage``.
    """
    findings = identity_leakage(material, settings)
    require_none(findings, allowed=settings.allow_leakage)
    found = {
        (name, which): ranked
        for name, features in _features(material, settings).items()
        for which, pairs in (
            (ACROSS, _across(material, features)),
            (WITHIN, _within(material, features)),
        )
        if (ranked := _ranked(pairs)) is not None
    }
    if not found:
        raise EvaluationImpossible(
            f"fewer than {LEAST} participants have two runs, or a run of two clips",
            expected="something to look for, and something to find it in",
            remedy="Run the participant level for more runs",
        )
    folder = settings.output_dir / "evaluation" / "identity"
    said = [*confessed(findings), *_statements(found, material, settings)]
    _write(folder, found, material, settings, findings, said)
    print("\n".join(said))
    return folder


def _features(material: Material, settings: Settings) -> dict[str, Of]:
    """What identifies: embeddings, and functional connectivity of the same clips."""
    features = {label: _embedding_of(of_model) for label, of_model in material.cached.items()}
    if "fc" in settings.compare:
        from neurostorm_bids.evaluate_images import run_courses
        from neurostorm_bids.evaluation.baselines import correlations

        courses = run_courses(material, settings)
        features["fc-correlation"] = lambda run, part: correlations(_part(courses[run], part))
    return features


def _embedding_of(cached: Mapping[str, CachedRun]) -> Of:
    return lambda run, part: _part(cached[run].clips, part).mean(axis=0)


def _part(clips: np.ndarray, part: str) -> np.ndarray:
    """The clips of a run, or of a half of it; models differ in how many there are."""
    half = len(clips) // 2
    return {WHOLE: clips, FIRST: clips[:half], SECOND: clips[half:]}[part]


def _across(material: Material, of: Of) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each participant the first run as query, the last as gallery."""
    mine: dict[str, list[str]] = defaultdict(list)
    for run in material.runs:
        mine[run.participant].append(run.name)
    return {
        participant: (of(names[0], WHOLE), of(names[-1], WHOLE))
        for participant, names in mine.items()
        if len(names) > 1
    }


def _within(material: Material, of: Of) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each participant's first run, the first half of the clips as query, the second as gallery."""
    halves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for run in material.runs:
        least = min(len(of_model[run.name].clips) for of_model in material.cached.values())
        if run.participant not in halves and least > 1:
            halves[run.participant] = (of(run.name, FIRST), of(run.name, SECOND))
    return halves


def _ranked(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Ranks | None:
    if len(pairs) < LEAST:
        return None
    query, gallery = (np.stack([pair[side] for pair in pairs.values()]) for side in (0, 1))
    return ranks(query, gallery, tuple(pairs))


# --- what it says -----------------------------------------------------------------------------------------------


def _statements(found: Found, material: Material, settings: Settings) -> list[str]:
    """Sentences on rank-1: of each set of features, and of each model against the others."""
    said = []
    for (name, which), ranked in found.items():
        value, interval = retrieval_scores(ranked)["rank1"], interval_of(credits_of(ranked.rank)["rank1"])
        p = _p_values(ranked, settings)["rank1"]
        verdict = "no permutations" if np.isnan(p) else f"p = {p:.2g} of {settings.n_permutations} permutations"
        said.append(
            f"{name}, {which}: rank-1 {value:.3f} {shown(interval, '.3f')} among {ranked.gallery} "
            f"(guessing {chance_of(ranked.gallery)['rank1']:.3f}, {verdict})."
        )
    for model, other, which in _pairs(found, material):
        value, interval = _differences(found, model, other, which, settings)["rank1"]
        told = "more often" if interval.low > 0 else "less often" if interval.high < 0 else "not reliably more often"
        said.append(
            f"{model} against {other}, {which}: it finds people {told} (rank-1 {value:+.3f} {shown(interval, '+.3f')})."
        )
    if any(which == WITHIN for _, which in found):
        said.append("Within runs, halves of one run share its day and head position: no evidence of re-identification.")
    return said


def _p_values(ranked: Ranks, settings: Settings) -> dict[str, float]:
    """One-sided p values: it is permuted whose each entry of the gallery is."""
    permuted = permuted_scores(ranked, settings.n_permutations, settings.random_seed)
    return {name: p_value(name, value, permuted[name]) for name, value in retrieval_scores(ranked).items()}


def _pairs(found: Found, material: Material) -> list[tuple[str, str, str]]:
    """Each model and what stands beside it in one setting, models once."""
    models = [name for name in dict.fromkeys(name for name, _ in found) if name in material.models]
    return [
        (model, other, which)
        for number, model in enumerate(models)
        for other, which in found
        if other not in models[: number + 1] and (model, which) in found
    ]


def _differences(
    found: Found, model: str, other: str, which: str, settings: Settings
) -> dict[str, tuple[float, Interval]]:
    return difference_of(found[model, which], found[other, which], settings.n_bootstrap, settings.random_seed)


# --- on paper ---------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    found: Found,
    material: Material,
    settings: Settings,
    findings: Sequence[Finding],
    said: Sequence[str],
) -> None:
    (folder / "evaluation.json").unlink(missing_ok=True)
    tables = {
        "metrics": _metric_columns(found, settings),
        "differences": _difference_columns(found, material, settings),
        "predictions": _query_columns(found),
    }
    for name, columns in tables.items():
        write_text(folder / f"{name}.tsv", tsv_text(columns))
        write_json(folder / f"{name}.json", describe_columns(columns))
    write_text(folder / "methods.md", identity_methods(settings.n_permutations, settings.n_bootstrap, said))
    ignore_evaluation(settings.output_dir)
    content = {
        "Description": f"How well features tell people apart. {IDENTIFYING}",
        "Models": {label: next(iter(of_model.values())).model for label, of_model in material.cached.items()},
        "Settings": {
            ACROSS: "query: a participant's first run; gallery: everybody's last run",
            WITHIN: "query: the first half of a participant's first run; gallery: everybody's second half. Easier, and "
            "no evidence of re-identification",
        },
        "Statements": list(said),
        "Leakage": leakage_json(findings, settings),
        "Warnings": overlap_unknown(material, settings),
        "Software": software_versions(),
    }
    write_json(folder / "evaluation.json", content)


def _metric_columns(found: Found, settings: Settings) -> list[Column]:
    rows = [(*key, ranked, metric) for key, ranked in found.items() for metric in RETRIEVAL]
    values = [retrieval_scores(ranked)[metric] for _, _, ranked, metric in rows]
    intervals = [interval_of(credits_of(ranked.rank)[metric]) for _, _, ranked, metric in rows]
    p = [value for ranked in found.values() for value in _p_values(ranked, settings).values()]
    return [
        Column("features", [row[0] for row in rows], "What people are told apart by."),
        Column("setting", [row[1] for row in rows], "Across runs, or within one."),
        Column("metric", [row[3] for row in rows], "Metric.", levels=DESCRIPTIONS),
        Column("value", values, "Over all queries."),
        Column("ci_low", [interval.low for interval in intervals], "Lower end of the 95 % interval over queries."),
        Column("ci_high", [interval.high for interval in intervals], "Upper end of that interval."),
        Column("chance", [chance_of(row[2].gallery)[row[3]] for row in rows], "What guessing reaches."),
        Column("p", p, "Share of permuted galleries (and the observed one) that do as well."),
        Column("n_permutations", [settings.n_permutations] * len(rows), "Permutations behind p."),
        Column("gallery", [row[2].gallery for row in rows], "Participants to choose from."),
    ]


def _difference_columns(found: Found, material: Material, settings: Settings) -> list[Column]:
    rows = [
        (model, other, which, metric, *of_metric)
        for model, other, which in _pairs(found, material)
        for metric, of_metric in _differences(found, model, other, which, settings).items()
    ]
    return [
        Column("model", [row[0] for row in rows], "Model."),
        Column("features", [row[1] for row in rows], "What it is compared with."),
        Column("setting", [row[2] for row in rows], "Across runs, or within one."),
        Column("metric", [row[3] for row in rows], "Metric.", levels=DESCRIPTIONS),
        Column("difference", [row[4] for row in rows], "The model's metric less that of the comparison."),
        Column(
            "ci_low", [row[5].low for row in rows], "Lower end of its 95 % interval over resampled queries, paired."
        ),
        Column("ci_high", [row[5].high for row in rows], "Upper end of that interval."),
    ]


def _query_columns(found: Found) -> list[Column]:
    rows: Sequence[tuple[str, str, str, int]] = [
        (*key, participant, int(rank))
        for key, ranked in found.items()
        for participant, rank in zip(ranked.participants, ranked.rank, strict=True)
    ]
    return [
        Column("participant_id", [f"sub-{row[2]}" for row in rows], "Participant who was looked for."),
        Column("features", [row[0] for row in rows], "What people are told apart by."),
        Column("setting", [row[1] for row in rows], "Across runs, or within one."),
        Column("rank", [row[3] for row in rows], "Place of the own participant, 1 the first; of ties the last."),
    ]
