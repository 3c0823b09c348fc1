"""The command line: both spellings, configuration files, and one paragraph and one exit code for every misuse."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from neurostorm_bids.cli import main, parse_settings
from neurostorm_bids.errors import ConfigUnreadable, NeurostormError, UnknownLevel, UsageError
from neurostorm_bids.settings import Settings, to_toml


def arguments(tmp_path: Path, *extra: str) -> list[str]:
    return [str(tmp_path / "in"), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work"), *extra]


@pytest.mark.parametrize("flag", ["--participant-label", "--participant_label"])
def test_labels_come_with_or_without_prefix_in_both_spellings(tmp_path, flag):
    settings = parse_settings(arguments(tmp_path, flag, "sub-01", "02", "--session_id", "ses-a", "-t", "task-rest"))
    assert settings.participant_label == ("01", "02")
    assert settings.session_label == ("a",)
    assert settings.task_id == ("rest",)


@pytest.mark.parametrize("flag", ["--nprocs", "--nthreads", "--n-cpus", "--n_cpus"])
def test_every_name_of_the_core_limit(tmp_path, flag):
    assert parse_settings(arguments(tmp_path, flag, "3")).nprocs == 3


@pytest.mark.parametrize(
    ("text", "megabytes"), [("800", 800), ("2G", 2048), ("2gb", 2048), ("1T", 1048576), ("4096K", 4)]
)
def test_memory_with_and_without_suffix(tmp_path, text, megabytes):
    assert parse_settings(arguments(tmp_path, "--mem", text)).mem_mb == megabytes


def test_paths_are_absolute_and_a_bare_derivative_takes_its_folder_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse_settings(["in", "out", "participant", "-d", "a=x", "derivs/fmriprep"])
    assert settings.bids_dir == tmp_path / "in"
    assert settings.work_dir == tmp_path / "work"
    assert settings.derivatives == (("a", tmp_path / "x"), ("fmriprep", tmp_path / "derivs/fmriprep"))


FULL = ("--participant-label", "01", "--model", "demo", "--target-scaler", "age=54.2,7.6", "--dummy-scans", "4",
        "--fd-threshold", "0.5", "--mem", "2G", "-d", "fmriprep=/data", "--output-bold", "-vv")  # fmt: skip


def test_saved_settings_read_back_equal(tmp_path):
    settings = parse_settings(arguments(tmp_path, *FULL))
    saved = tmp_path / "saved.toml"
    saved.write_text(to_toml(settings))
    assert parse_settings(arguments(tmp_path, "--config-file", str(saved))) == settings
    assert set(tomllib.loads(saved.read_text())) <= {field.name for field in dataclasses.fields(Settings)}


def test_the_command_line_overrides_the_configuration_file(tmp_path):
    saved = tmp_path / "lab.toml"
    saved.write_text('clip-stride = 5\nmodel = ["demo"]\noffline = true\n')
    settings = parse_settings(arguments(tmp_path, "--config-file", str(saved), "--clip-stride", "7"))
    assert (settings.clip_stride, settings.model, settings.offline) == (7, ("demo",), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [("clip_strid = 5\n", "'clip_strid' is no setting"), ("clip_stride = [\n", "cannot be read as TOML")],
)
def test_a_broken_configuration_file_is_named(tmp_path, text, message):
    saved = tmp_path / "lab.toml"
    saved.write_text(text)
    with pytest.raises(ConfigUnreadable, match=message) as caught:
        parse_settings(arguments(tmp_path, "--config-file", str(saved)))
    assert str(saved) in str(caught.value)


def test_a_value_of_the_configuration_file_is_checked_like_a_flag(tmp_path, capsys):
    saved = tmp_path / "lab.toml"
    saved.write_text("clip_stride = -5\n")
    with pytest.raises(SystemExit) as caught:
        parse_settings(arguments(tmp_path, "--config-file", str(saved)))
    assert caught.value.code == 2
    assert "clip-stride" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad",
    [
        ("--clip-stride", "0"),
        ("--clip-stride", "two"),
        ("--mem", "lots"),
        ("--mem", "-1"),
        ("--dummy-scans", "-1"),
        ("--fd-threshold", "nan"),
        ("--min-coverage", "1.5"),
        ("--target-scaler", "age=54.2"),
        ("--target-scaler", "age=54.2,0"),
        ("--normalization", "sideways"),
        ("--no-such-flag",),
    ],
)
def test_bad_values_exit_with_usage(tmp_path, bad, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(arguments(tmp_path, *bad))
    assert caught.value.code == 2
    assert bad[0] in capsys.readouterr().err


def test_an_unknown_level_has_its_own_code(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out"), "subject"]) == UnknownLevel.exit_code == 17
    assert "unknown analysis level 'subject'. expected participant or group" in capsys.readouterr().err


def test_output_into_the_input_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the output folder is the input folder"):
        parse_settings([str(tmp_path), str(tmp_path), "participant"])


def test_work_folder_inside_the_input_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the work folder lies inside the input"):
        parse_settings([str(tmp_path), str(tmp_path / "../out"), "participant", "-w", str(tmp_path / "work")])


def test_two_derivatives_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="names 'a' twice"):
        parse_settings(arguments(tmp_path, "-d", "a=/x", "a=/y"))


def test_reports_of_nothing_are_refused(tmp_path, capsys):
    assert main(arguments(tmp_path, "--reports-only")) == 66
    assert "no results are there to report" in capsys.readouterr().err


def test_array_space_has_no_affine_to_write(tmp_path):
    with pytest.raises(UsageError, match="array space has no affine"):
        parse_settings(arguments(tmp_path, "--preprocessing", "reference", "--output-bold"))


def test_an_error_survives_the_border_between_processes():
    import pickle

    error = UsageError("fault", file="f", expected="e", remedy="r")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (UsageError, "f: fault. expected e. r.")
    assert isinstance(again, NeurostormError)
