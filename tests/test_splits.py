"""Splits: by participant, families together, sites left out whole, the same whatever the order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neurostorm_bids.errors import SplitImpossible, SplitsOverlap, SplitsUnusable
from neurostorm_bids.training.splits import Split, make_splits, read_splits, require_disjoint, splits_text

LABELS = [f"{number:02d}" for number in range(1, 61)]


@st.composite
def cohorts(draw):
    n = draw(st.integers(8, 40))
    labels = [f"{number:03d}" for number in range(n)]
    families = draw(st.lists(st.integers(0, n // 2), min_size=n, max_size=n))
    groups = dict(zip(labels, (f"F{family}" for family in families), strict=True)) if draw(st.booleans()) else None
    numbers = draw(st.lists(st.floats(18, 90), min_size=n, max_size=n))
    strata = dict(zip(labels, numbers, strict=True)) if draw(st.booleans()) else None
    return labels, groups, strata, draw(st.integers(2, 4)), draw(st.integers(0, 1000))


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.randoms(use_true_random=False))
def test_everyone_is_tested_once_and_nobody_is_on_two_sides(cohort, shuffler):
    labels, groups, strata, folds, seed = cohort
    asked = {"folds": folds, "groups": groups, "strata": strata, "seed": seed}
    try:
        splits = make_splits(labels, **asked)
    except SplitImpossible:
        assume(groups is None)  # a few large families may leave a fold without anybody
        raise
    assert Counter(label for split in splits for label in split.test) == Counter(labels)
    for split in splits:
        assert sorted((*split.train, *split.validation, *split.test)) == labels
        assert split.train and split.validation and split.test
        if groups:
            sides = [{groups[label] for label in part} for part in (split.train, split.validation, split.test)]
            assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    shuffled = list(labels)
    shuffler.shuffle(shuffled)
    assert make_splits(shuffled, **asked) == splits


def test_classes_are_spread_evenly():
    classes = dict(zip(LABELS, ["a"] * 40 + ["b"] * 20, strict=True))
    for split in make_splits(LABELS, strata=classes):
        assert Counter(classes[label] for label in split.test) == {"a": 8, "b": 4}
        assert 0.2 < np.mean([classes[label] == "b" for label in split.validation]) < 0.5


def test_numbers_are_spread_by_quartile():
    age = dict(zip(LABELS, np.linspace(20, 80, 60), strict=True))
    means = [np.mean([age[label] for label in split.test]) for split in make_splits(LABELS, strata=age)]
    assert np.ptp(means) < 8


def test_seeds_differ_and_repeat():
    assert make_splits(LABELS, seed=1) == make_splits(LABELS, seed=1) != make_splits(LABELS, seed=2)


def test_each_site_is_tested_by_models_that_saw_none_of_it():
    site = {label: f"site{number % 3}" for number, label in enumerate(LABELS)}
    splits = make_splits(LABELS, leave_out=site)
    assert [split.name for split in splits] == ["site0", "site1", "site2"]
    for split in splits:
        assert {site[label] for label in split.test} == {split.name}
        assert split.name not in {site[label] for label in (*split.train, *split.validation)}


def test_a_family_over_two_sites_is_refused():
    site = {label: f"site{number % 2}" for number, label in enumerate(LABELS)}
    with pytest.raises(SplitsOverlap, match=r"groups on two sides: F1.*--group-by"):
        make_splits(LABELS, leave_out=site, groups=dict.fromkeys(LABELS[:2], "F1"))


def test_those_without_a_family_are_alone():
    groups = {"01": "02", "03": float("nan"), "04": None}  # a family that bears the label of a participant
    splits = make_splits(LABELS[:6], folds=6, groups=groups, validation_share=0)
    assert sorted(split.test for split in splits) == [(label,) for label in LABELS[:6]]
    assert all(not split.validation for split in splits)


@pytest.mark.parametrize(("share", "n"), [(0.15, 8), (0.1, 5), (0.25, 12), (0.5, 24), (0.9, 24)])
def test_validation_takes_its_share_of_those_who_are_not_tested(share: float, n: int):
    """Of 48; a share is rounded to one part of so many, and at most half."""
    for split in make_splits(LABELS, validation_share=share):
        assert abs(len(split.validation) - n) <= 1


def test_validation_takes_its_share_of_families_and_of_classes_that_are_too_small():
    groups = {label: f"F{number // 2}" for number, label in enumerate(LABELS)}
    for split in make_splits(LABELS, groups=groups, validation_share=0.25):
        assert len(split.validation) == 12
    # one of a class for each fold but not for each part of validation, so that parts are drawn from all alike
    classes = dict(zip(LABELS, ["rare"] * 5 + ["common"] * 55, strict=True))
    for split in make_splits(LABELS, folds=5, strata=classes, validation_share=0.1):
        assert 4 <= len(split.validation) <= 6


def test_validation_takes_its_share_where_every_class_is_too_small_for_it():
    classes = {label: f"class {number % 6}" for number, label in enumerate(LABELS[:12])}
    for split in make_splits(LABELS[:12], folds=2, strata=classes, validation_share=0.5):
        assert (len(split.train), len(split.validation), len(split.test)) == (3, 3, 6)


def test_what_is_not_asked_for_is_five_folds_a_seventh_and_seed_0():
    assert make_splits(LABELS) == make_splits(LABELS, folds=5, validation_share=0.15, seed=0)
    assert len(make_splits(LABELS)) == 5


def test_labels_of_different_lengths_are_kept_whole():
    labels = [*LABELS, "sherlock"]
    assert sorted(label for split in make_splits(labels) for label in split.test) == sorted(labels)


def test_as_many_of_a_class_as_folds_suffice():
    classes = dict(zip(LABELS, ["rare"] * 5 + ["common"] * 55, strict=True))
    for split in make_splits(LABELS, strata=classes, validation_share=0):
        assert Counter(classes[label] for label in split.test) == {"rare": 1, "common": 11}


def test_two_of_whom_one_validates_are_enough():
    (first, second, third) = make_splits(LABELS[:3], folds=3, validation_share=0.5)
    for split in (first, second, third):
        assert (len(split.train), len(split.validation), len(split.test)) == (1, 1, 1)


def test_a_site_of_one_participant_has_its_own_name():
    site = dict(zip(LABELS[:5], "AABBC", strict=True))
    splits = make_splits(LABELS[:5], leave_out=site, validation_share=0)
    assert [(split.name, split.test) for split in splits] == [("A", ("01", "02")), ("B", ("03", "04")), ("C", ("05",))]


MORE = "Choose another number with --folds, or give more participants"


@pytest.mark.parametrize(
    ("labels", "asked", "fault", "expected", "remedy"),
    [
        (LABELS[:4], {"folds": 5}, "4 participants cannot be split into 5 folds", "2 to 4 folds", MORE),
        (LABELS[:2], {"folds": 3}, "2 participants cannot be split into 3 folds", "2 to 2 folds", MORE),
        (
            LABELS[:4], {"folds": 2, "groups": dict.fromkeys(LABELS, "F")},
            "1 groups cannot be split into 2 folds", "2 groups or more", MORE,
        ),
        (
            LABELS[:4], {"folds": 2, "strata": dict(zip(LABELS[:4], "aaab", strict=True))},
            "class 'b' has 1 participants for 2 folds", "a member of every class in every fold",
            "Choose fewer --folds, or leave the class out",
        ),
        (
            LABELS[:5], {"leave_out": {}},
            "nothing is stated for 01, 02, 03, 04, 05", "a value for each participant, and two values or more",
            "Choose another column with --leave-out, or split into folds",
        ),
        (
            LABELS[:2], {"folds": 2}, "fold 1 leaves nobody to validate on",
            "participants (of different groups) for training, validation and test",
            "Choose other --folds, --group-by or --leave-out, or give more participants",
        ),
    ],
)  # fmt: skip
def test_a_refusal_says_what_was_expected_and_what_to_do(
    labels: list[str], asked: dict, fault: str, expected: str, remedy: str
):
    with pytest.raises(SplitImpossible) as caught:
        make_splits(labels, **asked)
    assert (caught.value.fault, caught.value.expected, caught.value.remedy) == (fault, expected, remedy)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"folds": 61}, "60 participants cannot be split into 61 folds"),
        ({"folds": 1}, "into 1 folds"),
        ({"groups": dict.fromkeys(LABELS, "F1"), "folds": 2}, "1 groups cannot be split"),
        ({"strata": dict(zip(LABELS, ["rare"] * 3 + ["common"] * 57, strict=True))}, "'rare' has 3 participants"),
        ({"leave_out": dict.fromkeys(LABELS, "A")}, "every participant has 'A'"),
        ({"leave_out": {"01": "A", "02": "B"}}, "nothing is stated for 03, 04, 05, 06, 07 and 53 more"),
    ],
)
def test_what_cannot_be_split_is_refused(asked: dict, words: str):
    with pytest.raises(SplitImpossible, match=words):
        make_splits(LABELS, **asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"validation_share": 0.5}, "fold 1 leaves nobody to validate on"),
        ({"groups": dict.fromkeys(LABELS[1:9], "F") | {"01": "A"}}, "leaves nobody to validate on"),
    ],
)
def test_a_side_without_anybody_is_refused(asked: dict, words: str):
    labels = LABELS[:9] if "groups" in asked else LABELS[:2]
    with pytest.raises(SplitImpossible, match=words):
        make_splits(labels, folds=2, **asked)


def test_overlap_is_found_at_run_time():
    with pytest.raises(SplitsOverlap, match="fold 1 has participants on two sides: b"):
        require_disjoint(Split("1", ("a", "b"), ("c",), ("b",)))
    with pytest.raises(SplitsOverlap, match="groups on two sides: F"):
        require_disjoint(Split("1", ("a",), (), ("b",)), {"a": "F", "b": "F"})


def test_a_participant_who_is_there_twice_is_found_too():
    with pytest.raises(SplitsOverlap) as caught:
        require_disjoint(Split("1", ("a", "a", "b"), ("c",), ("d",)))
    assert caught.value.fault == "fold 1 has participants on two sides: a"
    assert caught.value.expected == "training, validation and test without anything in common"
    assert caught.value.remedy == "Mend splits.tsv, or the column that --group-by names"


# --- splits.tsv -------------------------------------------------------------------------------------------------


def test_a_table_gives_back_what_was_written(tmp_path: Path):
    splits = make_splits(LABELS)
    path = tmp_path / "splits.tsv"
    path.write_text(splits_text(splits))
    assert read_splits(path, LABELS) == splits
    fewer = read_splits(path, LABELS[:30])
    assert sorted(fewer[0].role_of()) == LABELS[:30]


def test_a_table_without_folds_is_one_fold(tmp_path: Path):
    path = tmp_path / "splits.tsv"
    path.write_text("participant_id\tsplit\nsub-01\ttrain\nsub-02\tval\nsub-03\ttest\n")
    assert read_splits(path, LABELS[:3]) == (Split("1", ("01",), ("02",), ("03",)),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("participant_id\trole\nsub-01\ttrain\n", "has no column split"),
        ("participant_id\tsplit\nsub-01\ttraining\n", "the role 'training'"),
        ("participant_id\tsplit\nsub-01\ttrain\nsub-02\ttest\n", "says nothing of 03 in fold 1"),
        ("participant_id\tsplit\nsub-01\ttrain\nsub-02\ttrain\nsub-03\tval\n", "no test participants"),
        ("participant_id\tsplit\n", "has no rows"),
    ],
)
def test_tables_that_say_too_little_are_refused(tmp_path: Path, text: str, words: str):
    path = tmp_path / "splits.tsv"
    path.write_text(text)
    with pytest.raises(SplitsUnusable, match=words) as caught:
        read_splits(path, LABELS[:3])
    assert caught.value.file == path and caught.value.remedy == "See docs/reference for the columns of splits.tsv"
    if caught.value.fault != "has no rows":
        assert caught.value.expected == "columns fold, participant_id, split (train, validation, test)"


def test_a_table_that_parts_a_family_is_refused(tmp_path: Path):
    path = tmp_path / "splits.tsv"
    path.write_text("participant_id\tsplit\nsub-01\ttrain\nsub-02\ttest\n")
    assert read_splits(path, LABELS[:2], {"01": "F1", "02": "F2"})
    with pytest.raises(SplitsOverlap, match="fold 1 has groups on two sides: F1"):
        read_splits(path, LABELS[:2], {"01": "F1", "02": "F1"})


def test_a_table_that_tests_on_its_training_set_is_refused(tmp_path: Path):
    path = tmp_path / "splits.tsv"
    path.write_text("participant_id\tsplit\nsub-01\ttrain\nsub-01\ttest\n")
    with pytest.raises(SplitsOverlap, match="01"):
        read_splits(path, ["01"])
