"""Dataset presets: well-formed, honest about what was verified, and applied where the user says nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from neurostorm_bids import presets
from neurostorm_bids.cli import parse_settings
from neurostorm_bids.errors import PresetUnusable
from neurostorm_bids.inputs.find import READERS
from neurostorm_bids.models_cli import main
from neurostorm_bids.settings import read_config, to_toml

GROUP = ("group", "--group-workflow", "finetune")


def settings(tmp_path: Path, *arguments: str):
    return parse_settings([str(tmp_path / "in"), str(tmp_path / "out"), *GROUP, *arguments])


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_well_formed(name: str):
    preset = presets.load(name)
    assert {"title", "citation", "access", "accession", "preprocessed", "t_r_s"} <= set(preset.facts)
    assert preset.targets and preset.pitfalls
    assert preset.input_type in {*READERS, "auto"}
    for alias in preset.aliases:
        assert presets.load(alias) == preset


def test_names_are_not_shared():
    every = [name for known in presets.names() for name in (known, *presets.load(known).aliases)]
    assert len(every) == len(set(every))


def test_accessions_are_verified_or_absent():
    for name in presets.names():
        accession = presets.load(name).facts["accession"]
        assert accession.verified == (accession.value is not None)


def test_targets_and_input_type_are_filled_in(tmp_path: Path):
    ucla = settings(tmp_path, "--dataset-preset", "UCLA")
    assert ucla.target == ("diagnosis", "age", "gender") and ucla.target_kind is None
    assert ucla.input_type == "fmriprep" and ucla.group_by is None and ucla.leave_out is None
    assert settings(tmp_path, "--dataset-preset", "hcp").target == ("entity:task",)
    assert settings(tmp_path, "--dataset-preset", "hcp").target_kind == "classification"


def test_what_the_user_states_has_precedence(tmp_path: Path):
    stated = settings(tmp_path, "--dataset-preset", "ucla", "--target", "age", "--group-by", "family")
    assert stated.target == ("age",) and stated.group_by == "family"
    assert settings(tmp_path, "--dataset-preset", "ucla", "--preset", "diagnosis").target == ()
    assert (
        settings(tmp_path, "--dataset-preset", "ukb", "--input-type", "fmriprep", "--target", "x").input_type
        == "fmriprep"
    )


def test_only_what_was_verified_is_filled_in(tmp_path: Path):
    """UK Biobank has no participants.tsv, and nobody verified a name for its columns: no target is made up."""
    with pytest.raises(Exception, match="without a target"):
        settings(tmp_path, "--dataset-preset", "ukb")


def test_settings_survive_the_configuration_file(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(settings(tmp_path, "--dataset-preset", "ucla")))
    assert "--dataset-preset" in read_config(path)


def test_families_are_grouped_once_their_column_is_verified(tmp_path: Path):
    content = minimal()
    content["family"] = {"value": "family", "verified": True, "source": "https://example.org"}
    namespace = copy.copy(_namespace(tmp_path))
    presets.apply(namespace, presets.parse(content, "x"))
    assert namespace.group_by == "family"


def _namespace(tmp_path: Path):
    from neurostorm_bids.cli import build_parser

    return build_parser().parse_args([str(tmp_path), str(tmp_path / "out"), "group"])


def minimal() -> dict:
    fact = {"value": "X", "verified": False}
    return {"name": "x", "title": fact, "targets": [], "pitfalls": []}


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("title", {"value": "X"}, "not marked"),
        ("title", "X", "not marked"),
        ("title", {"value": "X", "verified": True}, "a source for what is verified"),
        ("title", {"value": "X", "verified": False, "source": "u"}, "a source for what is verified"),
        ("targets", [{"column": "age", "verified": False}], "without column or kind"),
        ("colour", "red", "unknown entries"),
    ],
)
def test_statements_without_a_mark_or_a_source_are_refused(entry: str, value, told: str):
    with pytest.raises(PresetUnusable, match=told):
        presets.parse(minimal() | {entry: value}, "x")


def test_the_list_and_one_dataset(capsys: pytest.CaptureFixture[str]):
    assert main(["datasets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in presets.names())
    assert main(["datasets", "ds000030"]) == 0
    shown = capsys.readouterr().out
    assert "target: diagnosis (classification, CONTROL/SCHZ/BIPOLAR/ADHD)" in shown
    assert "t_r_s: 2.0 (unverified)" in shown and "https://openneuro.org/datasets/ds000030" in shown
    assert main(["datasets", "nonesuch"]) == 2
    assert "no such dataset" in capsys.readouterr().err
