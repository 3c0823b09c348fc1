"""Targets: where they are written, what kind they are, and which clips an event labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neurostorm_bids.clips import Timing, plan_windows
from neurostorm_bids.errors import TargetUnusable
from neurostorm_bids.inputs.runs import BoldRun, Source
from neurostorm_bids.training.targets import (
    class_weights,
    event_starts,
    fitted,
    read_labels,
    window_labels,
)


def run(sub: str, ses: str | None = None, task: str = "rest", events: Path | None = None) -> BoldRun:
    entities = {"sub": sub, **({"ses": ses} if ses else {}), "task": task}
    return BoldRun(Source(Path("/in"), "fMRIPrep"), entities, (), events=events)


RUNS = [run("01"), run("02"), run("03"), run("04", task="faces"), run("04")]


def write(path: Path, rows: list[list[str]], description: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    if description is not None:
        path.with_suffix(".json").write_text(json.dumps(description))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [["participant_id", "age", "sex", "handed", "code", "constant"]]
    rows += [["sub-01", "20.5", "F", "1", "01", "7"], ["sub-02", "30.5", "M", "0", "02", "7"]]
    rows += [["sub-03", "n/a", "F", "1", "01", "7"], ["sub-04", "50.5", "X", "1", "n/a", "7"]]
    described = {"age": {"Units": "year"}, "sex": {"Levels": {"M": "male", "F": "female", "O": "other"}}}
    write(tmp_path / "participants.tsv", rows, described)
    return tmp_path


def values(labels) -> dict[int, object]:
    return {label.run: label.value for label in labels.labels}


# --- where and what -----------------------------------------------------------------------------------------------


def test_numbers_with_a_unit_are_a_regression(root: Path):
    age = read_labels("age", RUNS, [root])
    assert (age.target.name, age.target.kind, age.target.unit, age.target.classes) == ("age", "regression", "year", ())
    assert values(age) == {0: 20.5, 1: 30.5, 3: 50.5, 4: 50.5}
    assert age.participants == ("01", "02", "04")
    assert age.warnings == (f"{root}/participants.tsv: age is missing for 1 runs (1 participants); they are left out",)


def test_levels_give_classes_and_their_order(root: Path):
    sex = read_labels("sex", RUNS, [root])
    assert sex.target.kind == "classification" and sex.target.classes == ("M", "F", "X")
    assert sex.index("F") == 1 and sex.strata() == {"01": "F", "02": "M", "03": "F", "04": "X"}
    assert any("holds X, which its JSON does not declare" in text for text in sex.warnings)


def test_two_numbers_are_classes_and_codes_keep_their_zeros(root: Path):
    assert read_labels("handed", RUNS, [root]).target.classes == ("0", "1")
    code = read_labels("code", RUNS, [root])
    assert code.target.classes == ("01", "02") and values(code) == {0: "01", 1: "02", 2: "01"}


def test_the_kind_can_be_stated(root: Path):
    assert read_labels("age", RUNS, [root], kind="classification").target.classes == ("20.5", "30.5", "50.5")
    assert values(read_labels("handed", RUNS, [root], kind="regression"))[0] == 1.0
    with pytest.raises(TargetUnusable, match=r"sex 'F' is no number.*--target-kind"):
        read_labels("sex", RUNS, [root], kind="regression")


def test_a_phenotype_table_by_participant(root: Path):
    write(root / "phenotype" / "iq.tsv", [["participant_id", "score"], ["sub-01", "90"], ["sub-02", "110.5"]])
    score = read_labels("phenotype/iq.tsv:score", RUNS, [root])
    assert score.target.name == "score" and values(score) == {0: 90.0, 1: 110.5}


def test_a_phenotype_table_by_session(root: Path):
    rows = [["participant_id", "session_id", "mood"], ["sub-01", "ses-a", "3"], ["sub-01", "ses-b", "5"]]
    write(root / "phenotype" / "mood.tsv", [*rows, ["sub-02", "ses-a", "4"]])
    runs = [run("01", "a"), run("01", "b"), run("02", "a"), run("02", "b")]
    mood = read_labels("phenotype/mood.tsv:mood", runs, [root])
    assert values(mood) == {0: 3.0, 1: 5.0, 2: 4.0}
    assert mood.strata() is None  # one participant has two values


def test_the_sessions_table(root: Path):
    write(root / "sub-01" / "sub-01_sessions.tsv", [["session_id", "drug"], ["ses-1", "yes"], ["ses-2", "no"]])
    drug = read_labels("sessions:drug", [run("01", "1"), run("01", "2"), run("02", "1"), run("03")], [root])
    assert values(drug) == {0: "yes", 1: "no"} and "missing for 2 runs" in drug.warnings[0]


def test_entities_and_identity():
    task = read_labels("entity:task", RUNS, [])
    assert task.target.classes == ("faces", "rest") and values(task)[3] == "faces"
    identity = read_labels("identity", RUNS, [])
    assert (identity.target.kind, identity.target.head) == ("retrieval", "emb")
    assert values(identity)[4] == "04" and identity.strata() is None


def test_the_first_root_that_has_the_table_is_read(root: Path, tmp_path_factory):
    assert read_labels("age", RUNS, [tmp_path_factory.mktemp("derivative"), root]).participants == ("01", "02", "04")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("iq", "participants.tsv: has no column 'iq'. expected one of age, sex, handed, code, constant"),
        ("constant", "constant is 7.0 for everybody"),
        ("phenotype/none.tsv:iq", "there is no none.tsv"),
        ("phenotype/twice.tsv:iq", r"has several rows for \('01', None\)"),
        ("phenotype/twice.tsv:eq", "has no column 'eq'"),
        ("sessions:drug", "no run belongs to a sub-"),
        ("entity:dir", "dir is stated for none of the 5 runs"),
        ("entity:sub-01", "is stated for none"),
        ("events:trial_type", "none of the 5 runs has events with a trial_type"),
        ("table:age", "'table' is no place to find a target"),
    ],
)
def test_targets_that_are_not_there_are_refused(root: Path, name: str, words: str):
    write(root / "phenotype" / "twice.tsv", [["participant_id", "iq"], ["sub-01", "90"], ["sub-01", "91"]])
    with pytest.raises(TargetUnusable, match=words):
        read_labels(name, RUNS, [root])


def test_one_participant_cannot_be_told_apart():
    with pytest.raises(TargetUnusable, match="one participant only"):
        read_labels("identity", [run("01")], [])


# --- what is fitted on training participants ----------------------------------------------------------------------


def test_the_scaler_is_that_of_training_participants_each_counted_once(root: Path):
    target = fitted(read_labels("age", RUNS, [root]), ["01", "04"])  # 04 has two runs
    assert target.mean == pytest.approx(35.5) and target.std == pytest.approx(15.0)


def test_a_scaler_needs_values_that_differ(root: Path):
    with pytest.raises(TargetUnusable, match="the same for every training participant"):
        fitted(read_labels("age", RUNS, [root]), ["04"])


def test_every_class_needs_a_training_participant(root: Path):
    with pytest.raises(TargetUnusable, match="no training participant has sex X"):
        fitted(read_labels("sex", RUNS, [root]), ["01", "02", "03"])


def test_class_weights_give_each_class_the_same_say(root: Path):
    sex = read_labels("sex", RUNS, [root])
    weights = class_weights(sex, sex.participants)
    counts = np.array([1, 2, 2])  # runs of M, F, X
    np.testing.assert_allclose(weights * counts, 5 / 3)


def test_rare_classes_are_told(root: Path):
    many = [run(f"{number:03d}", task="faces" if number else "rest") for number in range(20)]
    assert "unequal (faces 19, rest 1 participants)" in read_labels("entity:task", many, []).warnings[0]


# --- events -------------------------------------------------------------------------------------------------------


def events(folder: Path, rows: list[list[str]]) -> list[BoldRun]:
    path = write(folder / "sub-01_task-x_events.tsv", [["onset", "duration", "trial_type"], *rows])
    return [run("01", task="x", events=path), run("02")]


BLOCKS = [["0", "20", "a"], ["20", "20", "n/a"], ["40", "20", "b"], ["60", "4", "a"]]


def test_events_label_stretches(tmp_path: Path):
    labels = read_labels("events:trial_type", events(tmp_path, BLOCKS), [])
    assert labels.target.classes == ("a", "b")
    assert [(label.value, label.start_s, label.end_s) for label in labels.labels] == [
        ("a", 0.0, 20.0),
        ("b", 40.0, 60.0),
        ("a", 60.0, 64.0),
    ]
    assert "missing for 1 runs" in labels.warnings[0]


@pytest.mark.parametrize("row", [["x", "20", "a"], ["0", "n/a", "a"], ["0", "-1", "a"]])
def test_events_without_times_are_refused(tmp_path: Path, row: list[str]):
    with pytest.raises(TargetUnusable, match="row 2 has no onset or duration"):
        read_labels("events:trial_type", events(tmp_path, [row]), [])


def test_clips_begin_a_haemodynamic_delay_after_their_event(tmp_path: Path):
    labels = read_labels("events:trial_type", events(tmp_path, BLOCKS), []).labels
    timing = Timing.of(100, 0.8, n_dummies=5)  # frames from 4 s on
    placed = event_starts(labels, timing, 20, delay_s=5.0)
    assert [(label.value, first) for label, first in placed] == [("a", 2), ("b", 52)]  # 4 s is too short a stretch
    assert timing.onset_s(2) == pytest.approx(5.6)
    assert event_starts(labels, Timing.of(70, 0.8), 20)[-1:] == [(labels[0], 7)]  # the later clip would pass the end


def test_windows_take_the_label_that_covers_most_of_them(tmp_path: Path):
    labels = read_labels("events:trial_type", events(tmp_path, BLOCKS), []).labels
    windows = plan_windows(Timing.of(100, 0.8), clip_frames=20, stride=20).kept  # 0, 16, 32, 48, 64 s
    assert window_labels(windows, labels, delay_s=5.0) == ["a", "a", None, "b", None]
    assert window_labels(windows, labels, delay_s=5.0, coverage=0.8) == [None, None, None, "b", None]
    whole = read_labels("entity:task", RUNS, []).labels[:1]
    assert window_labels(windows, whole) == ["rest"] * 5
