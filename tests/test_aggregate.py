"""Group aggregate: clips to runs to participants, several models, and what is missing or broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_outputs import MODEL, SMALL, clips, validate

from neurostorm_bids.aggregate import aggregate, weighted_mean
from neurostorm_bids.errors import ModelsMixed, NothingToAggregate
from neurostorm_bids.inputs.runs import Source
from neurostorm_bids.outputs import (
    ModelRecord,
    RunRecord,
    TargetRow,
    read_tsv,
    sidecar_of,
    write_dataset_files,
    write_embedding,
    write_predictions,
)

TRAINED = replace(MODEL, name="big", hash="b16", trained=True)


def run_of(sub: str, ses: str | None = None, run: str = "1", **changes) -> RunRecord:
    entities = {"sub": sub} | ({"ses": ses} if ses else {}) | {"task": "rest", "run": run}
    given = {"entities": entities, "sources": (), "datasets": {}, "grid": SMALL, "resume_key": "r"}
    return RunRecord(**(given | {"settings_hash": "s"} | changes))


def embed(out: Path, run: RunRecord, rows, model: ModelRecord = MODEL) -> Path:
    rows = np.array(rows, float)
    return write_embedding(out, run, model, clips(len(rows)), rows)


def predict(out: Path, run: RunRecord, *rows: TargetRow, model: ModelRecord = TRAINED) -> Path:
    embed(out, run, [[0.0]], model)
    return write_predictions(out, run, model, rows)


def age(value: float, n_clips: int, unit: str | None = "year") -> TargetRow:
    return TargetRow(target="age", kind="regression", value=value, unit=unit, n_clips=n_clips)


def sex(female: float, n_clips: int) -> TargetRow:
    chances = {"male": 1 - female, "female": female}
    best = max(chances, key=chances.__getitem__)
    return TargetRow(target="sex", kind="classification", value=best, n_clips=n_clips, probabilities=chances)


def table(out: Path, what: str) -> list[dict[str, str | None]]:
    return read_tsv(out / "phenotype" / f"neurostorm_{what}.tsv")


def test_every_clip_of_a_participant_counts_once(tmp_path: Path):
    embed(tmp_path, run_of("01", run="1"), [[0, 1], [0, 1], [0, 1]])
    embed(tmp_path, run_of("01", run="2"), [[4, 5]])
    embed(tmp_path, run_of("02"), [[7, 8]])
    result = aggregate(tmp_path)
    assert table(tmp_path, "embeddings") == [
        {"participant_id": "sub-01", "demo_n_runs": "2", "demo_n_clips": "4", "demo_d000": "1", "demo_d001": "2"},
        {"participant_id": "sub-02", "demo_n_runs": "1", "demo_n_clips": "1", "demo_d000": "7", "demo_d001": "8"},
    ]
    assert (result.n_participants, result.n_rows, result.models) == (2, 2, ("demo",))
    assert result.missing == result.rejected == ()
    assert "NOT trained" in result.warnings[0]


def test_each_session_has_its_row_and_runs_outside_sessions_too(tmp_path: Path):
    embed(tmp_path, run_of("01", "b"), [[2]])
    embed(tmp_path, run_of("01", "a"), [[1]])
    embed(tmp_path, run_of("02"), [[3]])
    aggregate(tmp_path)
    rows = table(tmp_path, "embeddings")
    assert [(row["participant_id"], row["session_id"], row["demo_d000"]) for row in rows] == [
        ("sub-01", "ses-a", "1"),
        ("sub-01", "ses-b", "2"),
        ("sub-02", None, "3"),
    ]


def test_several_models_stand_side_by_side_and_gaps_are_reported(tmp_path: Path):
    embed(tmp_path, run_of("01"), [[1]])
    embed(tmp_path, run_of("01"), [[2]], TRAINED)
    embed(tmp_path, run_of("02"), [[3]])
    result = aggregate(tmp_path, expected=[("01", None), ("02", None), ("03", "x")])
    first, second = table(tmp_path, "embeddings")
    assert (first["big_d000"], first["demo_d000"]) == ("2", "1")
    assert (second["big_n_runs"], second["big_d000"], second["demo_d000"]) == ("0", None, "3")
    assert result.missing == ("sub-03_ses-x: no result", "sub-02_task-rest_run-1: no result of big")
    sidecar = json.loads((tmp_path / "phenotype/neurostorm_embeddings.json").read_text())
    assert sidecar["Missing"] == list(result.missing)
    assert sidecar["Models"]["big"]["Hash"] == "b16"
    assert set(first) <= set(sidecar)


def test_predictions_are_pooled_by_clips_and_classes_by_probability(tmp_path: Path):
    predict(tmp_path, run_of("01", run="1"), age(20, 3), sex(0.4, 3))
    predict(tmp_path, run_of("01", run="2"), age(40, 1), sex(0.9, 1))
    predict(tmp_path, run_of("02"), age(30, 5))
    aggregate(tmp_path)
    first, second = table(tmp_path, "predictions")
    assert (first["big_age"], first["big_age_n_runs"], first["big_age_n_clips"]) == ("25", "2", "4")
    assert (first["big_sex"], first["big_sex_p_female"], first["big_sex_p_male"]) == ("female", "0.525", "0.475")
    assert (second["big_age"], second["big_sex"], second["big_sex_n_runs"]) == ("30", None, "0")
    sidecar = json.loads((tmp_path / "phenotype/neurostorm_predictions.json").read_text())
    assert sidecar["big_age"]["Units"] == "year"


def test_predictions_of_an_earlier_call_do_not_outlive_their_tables(tmp_path: Path):
    path = predict(tmp_path, run_of("01"), age(20, 3))
    assert len(aggregate(tmp_path).written) == 4
    path.unlink()
    assert len(aggregate(tmp_path).written) == 2
    assert not (tmp_path / "phenotype/neurostorm_predictions.tsv").exists()


def test_predictions_of_an_earlier_call_with_other_packs_are_left_out_and_told(tmp_path: Path):
    predict(tmp_path, run_of("01"), age(20, 3))
    predict(tmp_path, run_of("02"), age(30, 3))
    embed(tmp_path, run_of("01"), [[1]], replace(TRAINED, hash="without packs"))
    embed(tmp_path, run_of("02"), [[1]], replace(TRAINED, hash="without packs"))
    result = aggregate(tmp_path)
    (warning,) = result.warnings
    assert "big: predictions of 2 runs are left out, by an earlier call with other packs" in warning
    assert len(table(tmp_path, "embeddings")) == 2
    assert not (tmp_path / "phenotype/neurostorm_predictions.tsv").exists()


def test_the_selection_is_obeyed(tmp_path: Path):
    for sub, ses in (("01", "a"), ("01", "b"), ("02", "a")):
        embed(tmp_path, run_of(sub, ses), [[1]])
    aggregate(tmp_path, participants=["01"], sessions=["b"], tasks=["rest"])
    (row,) = table(tmp_path, "embeddings")
    assert (row["participant_id"], row["session_id"]) == ("sub-01", "ses-b")
    with pytest.raises(NothingToAggregate, match="no embedding is there to aggregate for task-nback") as caught:
        aggregate(tmp_path, tasks=["nback"])
    assert caught.value.exit_code == 66


def test_broken_tables_are_reported_and_the_others_pooled(tmp_path: Path):
    cut, orphan, _ = (embed(tmp_path, run_of(sub), [[1.5]]) for sub in ("01", "02", "03"))
    cut.write_text(cut.read_text()[:-2])
    sidecar_of(orphan).unlink()
    result = aggregate(tmp_path)
    assert [row["participant_id"] for row in table(tmp_path, "embeddings")] == ["sub-03"]
    first, second = (str(error) for error in result.rejected)
    assert "was cut or changed since it was written" in first and "run the participant level again" in first
    assert "cannot be read as JSON" in second
    with pytest.raises(NothingToAggregate, match="2 are broken"):
        aggregate(tmp_path, participants=["01", "02"])


def test_results_of_different_weights_under_one_name_are_never_pooled(tmp_path: Path):
    embed(tmp_path, run_of("01"), [[1]])
    embed(tmp_path, run_of("02"), [[1]], replace(MODEL, hash="other"))
    with pytest.raises(ModelsMixed, match="desc-demo come from 2 different models"):
        aggregate(tmp_path)


def test_one_target_in_two_units_is_never_pooled(tmp_path: Path):
    predict(tmp_path, run_of("01"), age(20, 3))
    predict(tmp_path, run_of("02"), replace(age(0.5, 3), standard_units=True))
    with pytest.raises(ModelsMixed, match="age is given in different units: training SD, year"):
        aggregate(tmp_path)


def test_different_settings_are_warned_about(tmp_path: Path):
    embed(tmp_path, run_of("01"), [[1]], TRAINED)
    embed(tmp_path, run_of("02", settings_hash="t"), [[1]], TRAINED)
    assert aggregate(tmp_path).warnings == (
        "runs of big were processed with different settings (SettingsHash in their sidecars)",
    )


def test_a_mean_of_unknown_values_is_unknown():
    assert np.isnan(weighted_mean([float("nan"), 1.0], [2, 0]))
    assert weighted_mean([1.0, float("nan"), 4.0], [1, 5, 2]) == pytest.approx(3)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root, out = tmp_path / "fmriprep", tmp_path / "out"
    root.mkdir()
    write_dataset_files(out, [Source(root=root, pipeline="fMRIPrep")], [MODEL])
    predict(out, run_of("01", "a"), age(20, 3), sex(0.4, 3))
    predict(out, run_of("02", "a"), age(20, 3), sex(0.4, 3))
    return out


def test_the_phenotype_tables_are_valid_bids(dataset: Path):
    ignored = (dataset / ".bidsignore").read_text()
    assert validate(dataset) == ([], 4)
    aggregate(dataset)
    assert validate(dataset) == ([], 8)  # both tables and their sidecars are looked at, not ignored
    assert (dataset / ".bidsignore").read_text() == ignored


def test_tables_with_sessions_as_rows_are_ignored_as_long_as_they_have_to_be(dataset: Path):
    second = predict(dataset, run_of("02", "b"), age(20, 3), sex(0.4, 3))
    aggregate(dataset)
    assert validate(dataset) == ([], 4)
    (dataset / ".bidsignore").write_text((dataset / ".bidsignore").read_text().replace("phenotype/neurostorm_*", ""))
    assert any(error.startswith("TSV_INDEX_VALUE_NOT_UNIQUE") for error in validate(dataset)[0])
    aggregate(dataset)
    assert validate(dataset) == ([], 4)
    for path in (second, second.with_name(second.name.replace("predictions", "embedding"))):
        path.unlink()
    aggregate(dataset)
    assert validate(dataset) == ([], 8)
