"""``--target identity``: how well features tell people apart, across runs and within them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurostorm_bids.cached import CachedRun
from neurostorm_bids.errors import EvaluationImpossible
from neurostorm_bids.evaluation.intervals import percentile
from neurostorm_bids.evaluation.retrieval import DESCRIPTIONS, RETRIEVAL, Ranks, chance_of, ranks, retrieval_scores
from neurostorm_bids.evaluation_tables import IDENTIFYING, ignore_evaluation
from neurostorm_bids.outputs.atomic import write_json, write_text
from neurostorm_bids.outputs.sidecars import software_versions
from neurostorm_bids.outputs.tables import Column, describe_columns, tsv_text
from neurostorm_bids.settings import Settings

if TYPE_CHECKING:
    from neurostorm_bids.evaluate import Material

LEAST = 5
WITHIN, ACROSS = "within runs", "across runs"
Of = Callable[[str, int, int], np.ndarray]  # run, first and last clip -> features


def evaluate_identity(material: Material, settings: Settings) -> Path:
    """Write ``evaluation/identity``; returns the folder.

    Raises
    ------
    EvaluationImpossible
        When fewer than five people can be looked for.
    """
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
    _write(folder, found, material, settings)
    return folder


def _features(material: Material, settings: Settings) -> dict[str, Of]:
    """What identifies: embeddings, and functional connectivity of the same clips."""
    features = {label: _embedding_of(of_model) for label, of_model in material.cached.items()}
    if "fc" in settings.compare:
        from neurostorm_bids.evaluate_images import run_courses
        from neurostorm_bids.evaluation.baselines import correlations

        courses = run_courses(material, settings)
        features["fc-correlation"] = lambda run, first, last: correlations(courses[run][first : last + 1])
    return features


def _embedding_of(cached: Mapping[str, CachedRun]) -> Of:
    return lambda run, first, last: cached[run].clips[first : last + 1].mean(axis=0)


def _across(material: Material, of: Of) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each participant the first run as query, the last as gallery."""
    mine: dict[str, list[str]] = defaultdict(list)
    for run in material.runs:
        mine[run.participant].append(run.name)
    return {
        participant: (_whole(names[0], material, of), _whole(names[-1], material, of))
        for participant, names in mine.items()
        if len(names) > 1
    }


def _whole(name: str, material: Material, of: Of) -> np.ndarray:
    return of(name, 0, len(next(iter(material.cached.values()))[name].clips) - 1)


def _within(material: Material, of: Of) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each participant's first run, the first half of the clips as query, the second as gallery."""
    cached = next(iter(material.cached.values()))
    halves = {}
    for run in material.runs:
        n_clips = len(cached[run.name].clips)
        if run.participant not in halves and n_clips > 1:
            half = n_clips // 2
            halves[run.participant] = (of(run.name, 0, half - 1), of(run.name, half, n_clips - 1))
    return halves


def _ranked(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Ranks | None:
    if len(pairs) < LEAST:
        return None
    query, gallery = (np.stack([pair[side] for pair in pairs.values()]) for side in (0, 1))
    return ranks(query, gallery, tuple(pairs))


# --- on paper ---------------------------------------------------------------------------------------------------


def _write(folder: Path, found: Mapping[tuple[str, str], Ranks], material: Material, settings: Settings) -> None:
    tables = {"metrics": _metric_columns(found, settings), "predictions": _query_columns(found)}
    for name, columns in tables.items():
        write_text(folder / f"{name}.tsv", tsv_text(columns))
        write_json(folder / f"{name}.json", describe_columns(columns))
    ignore_evaluation(settings.output_dir)
    content = {
        "Description": f"How well features tell people apart. {IDENTIFYING}",
        "Models": {label: next(iter(of_model.values())).model for label, of_model in material.cached.items()},
        "Settings": {
            ACROSS: "query: a participant's first run; gallery: everybody's last run",
            WITHIN: "query: the first half of a participant's first run; gallery: everybody's second half. Easier, and "
            "no evidence of re-identification",
        },
        "Software": software_versions(),
    }
    write_json(folder / "evaluation.json", content)


def _metric_columns(found: Mapping[tuple[str, str], Ranks], settings: Settings) -> list[Column]:
    rows = [(*key, ranked, metric) for key, ranked in found.items() for metric in RETRIEVAL]
    values = [float(retrieval_scores(ranked)[metric][0]) for _, _, ranked, metric in rows]
    intervals = [percentile(_resampled(ranked, settings)[metric], widening=1.0) for _, _, ranked, metric in rows]
    return [
        Column("features", [row[0] for row in rows], "What people are told apart by."),
        Column("setting", [row[1] for row in rows], "Across runs, or within one."),
        Column("metric", [row[3] for row in rows], "Metric.", levels=DESCRIPTIONS),
        Column("value", values, "Over all queries."),
        Column("ci_low", [interval.low for interval in intervals], "Lower end of the 95 % interval over queries."),
        Column("ci_high", [interval.high for interval in intervals], "Upper end of that interval."),
        Column("chance", [chance_of(row[2].gallery)[row[3]] for row in rows], "What guessing reaches."),
        Column("gallery", [row[2].gallery for row in rows], "Participants to choose from."),
    ]


def _resampled(ranked: Ranks, settings: Settings) -> dict[str, np.ndarray]:
    n = len(ranked.rank)
    rng = np.random.default_rng([settings.random_seed, 99])
    return retrieval_scores(ranked, rng.multinomial(n, np.full(n, 1 / n), size=settings.n_bootstrap).astype(float))


def _query_columns(found: Mapping[tuple[str, str], Ranks]) -> list[Column]:
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
