"""Bad input through the command line: a part of what `.ci/campaigns bad-input` runs, and the campaign itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from campaigns.bad_input import Workshop, all_defects, main, table  # noqa: E402
from campaigns.defect import End  # noqa: E402

DEFECTS = {defect.name: defect for defect in all_defects()}
CHOSEN = (
    "gzip stream cut at every twentieth",
    "a link to itself",
    "a Git LFS pointer that was not fetched",
    "voxels that begin nowhere (NaN)",
    "a volume of a gigabyte declared by a small file",
    "fewer volumes declared than there are",
    "a damaged mask",
    "a sidecar nested beyond reason",
    "a sidecar with a number of thousands of digits",
    "a repetition time beyond every number",
    "two repetition times in one sidecar",
    "a sidecar that is a folder",
    "a transform with parameters of text",
    "a transform outside the file (external HDF5 storage)",
    "a transform that links to another file",
    "a participant that is a link to itself",
    "a participant whose label has a space",
    "two participants whose labels differ in case alone",
    "a name that is no UTF-8",
    "a name with a dot",
    "GeneratedBy as a number",
    "a model.json nested beyond reason",
    "a checkpoint that would run a program",
    "a configuration nested beyond reason",
    "a configuration with a word for a number",
    "a plugin that does not exist",
    "a sidecar of a result that is nested beyond reason",
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("bad-input").resolve())


@pytest.mark.parametrize("name", CHOSEN)
def test_a_defect_is_told_and_harms_no_other_run(workshop, name):
    assert workshop.problems(DEFECTS[name]) == []


def test_the_campaign_sees_what_is_wrong(workshop):
    defect = DEFECTS["a link to itself"]
    for wrong, told in (
        ({"code": 0}, "exit code 1, expected 0"),
        ({"remedy": "ask an oracle"}, "lacks the remedy"),
        ({"end": End.SAME}, "files of good runs differ or are missing"),
        ({"end": End.WARNED}, "no embedding"),
        ({"plant": lambda case: None}, "results of the refused run"),
    ):
        assert any(told in text for text in workshop.problems(replace(defect, **wrong))), told


def test_the_campaign_ends_as_its_cases_do(capfd):
    outcome = main(["--only", "a filter file", "list"])
    assert outcome.counts["defects"] == 1
    assert outcome.failures == ()


def test_the_page_lists_the_defects():
    assert len(DEFECTS) == len(all_defects()) >= 60
    assert table(all_defects()) in (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
