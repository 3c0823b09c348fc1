"""The Boutiques descriptor is that of the parser, is valid, and its commands are ones that the parser takes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from neurostorm_bids import cli
from neurostorm_bids.cli import build_parser, parse_settings
from neurostorm_bids.errors import NeurostormError
from neurostorm_bids.platforms.boutiques import EXIT_CODES, TOOL_VERSION, descriptor

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "boutiques.json"
BOSH = Path(sys.executable).parent / "bosh"


def inputs() -> dict[str, dict]:
    return {entry["id"]: entry for entry in descriptor(build_parser())["inputs"]}


def test_the_committed_descriptor_is_that_of_the_parser():
    assert json.loads(FILE.read_text()) == descriptor(build_parser()), (
        "make it anew: python -m neurostorm_bids.platforms.boutiques > boutiques.json"
    )


def test_every_option_is_an_input_and_stands_on_the_command_line():
    wanted = {action.dest for action in build_parser()._actions} - {"help", "version"}
    assert set(inputs()) == wanted
    line = descriptor(build_parser())["command-line"].split()
    assert line[:4] == ["neurostorm", "[BIDS_DIR]", "[OUTPUT_DIR]", "[LEVEL]"]
    assert sorted(line[1:]) == sorted(entry["value-key"] for entry in inputs().values())


def test_kinds_of_values_are_those_of_the_parser():
    known = inputs()
    assert known["clip_stride"]["type"] == "Number" and known["clip_stride"]["minimum"] == 1
    assert known["offline"]["type"] == "Flag" and "list" not in known["offline"]
    assert known["participant_label"] | {"type": "String", "list": True} == known["participant_label"]
    assert known["bids_filter_file"]["type"] == "File" and known["work_dir"]["type"] == "String"
    assert known["interpolation"]["value-choices"] == ["linear", "nearest", "lanczos"]
    assert known["fd_threshold_mm"]["command-line-flag"] == "--fd-threshold"
    assert [key for key, entry in known.items() if not entry["optional"]] == ["bids_dir", "output_dir", "level"]


def test_exit_codes_are_those_of_the_errors():
    def below(cls: type[NeurostormError]) -> set[int]:
        return {cls.exit_code}.union(*(below(child) for child in cls.__subclasses__()))

    assert below(NeurostormError) <= set(EXIT_CODES)


def test_the_version_is_one_that_was_released():
    assert TOOL_VERSION in (ROOT / "CHANGELOG.md").read_text()


def bosh(*words: object) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("boutiques")
    return subprocess.run([BOSH, *map(str, words)], capture_output=True, text=True, check=False)


def test_boutiques_finds_it_valid():
    done = bosh("validate", FILE)
    assert done.returncode == 0 and done.stdout.strip() == "OK", done.stdout + done.stderr


def test_a_simulated_execution_gives_a_command_that_the_parser_takes(tmp_path: Path):
    invocation = {
        "bids_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "level": "participant",
        "participant_label": ["01", "02"],
        "model": ["demo"],
        "target_scaler": ["age=54.2,7.6"],
        "clip_stride": 10,
        "fd_threshold_mm": 0.5,
        "min_coverage": 0.25,
        "offline": True,
    }
    (tmp_path / "invocation.json").write_text(json.dumps(invocation))
    done = bosh("exec", "simulate", "-i", tmp_path / "invocation.json", FILE)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("neurostorm "))
    settings = parse_settings(shlex.split(line)[1:])
    assert settings.participant_label == ("01", "02") and settings.model == ("demo",) and settings.offline
    assert (settings.clip_stride, settings.fd_threshold_mm, settings.min_coverage) == (10, 0.5, 0.25)
    assert settings.target_scaler == (("age", 54.2, 7.6),)


def test_boutiques_refuses_what_the_parser_refuses(tmp_path: Path):
    wrong = {"bids_dir": str(tmp_path), "output_dir": "out", "level": "session", "clip_stride": 0}
    (tmp_path / "invocation.json").write_text(json.dumps(wrong))
    done = bosh("exec", "simulate", "-i", tmp_path / "invocation.json", FILE)
    assert done.returncode != 0
    with pytest.raises(SystemExit):
        cli.parse_settings([str(tmp_path), "out", "session", "--clip-stride", "0"])
