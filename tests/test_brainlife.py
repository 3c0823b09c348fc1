"""Brainlife: bare files and a config.json in, a folder of results and a small product.json out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fmriprep_tree
import pytest

from neurostorm_bids.cli import parse_settings
from neurostorm_bids.errors import ConfigUnreadable, DatasetMissing, UsageError
from neurostorm_bids.platforms import brainlife

ROOT = Path(__file__).resolve().parents[1]
SPACE = "MNI152NLin6Asym"


def files_of(folder: Path) -> dict[str, str]:
    """Read-only inputs as Brainlife stages them: without BIDS names."""
    bold = fmriprep_tree.write_run(folder / "made", "sub-01_task-rest", n_volumes=20)
    confounds = bold.with_name("sub-01_task-rest_desc-confounds_timeseries.tsv")
    mask = bold.with_name(bold.name.replace("preproc_bold", "brain_mask"))
    given = {}
    for key, source in (("bold", bold), ("mask", mask), ("regressors", confounds)):
        place = folder / "input" / key / (key + "".join(source.suffixes[-2:] if key != "regressors" else [".tsv"]))
        place.parent.mkdir(parents=True)
        source.rename(place).chmod(0o444)
        place.parent.chmod(0o555)
        given[key] = str(place)
    return given


def config_of(**changes) -> dict:
    owner = {"keys": ["bold"], "meta": {"subject": "sub-A_01", "session": 2, "run": "1"}}
    return {"bold": "bold.nii.gz", "space": SPACE, "task": "rest", "_inputs": [owner], **changes}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "task"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_main_needs_nothing_but_a_configuration_and_writes_nowhere_else(tmp_path: Path, here: Path):
    given = files_of(tmp_path)
    (here / "config.json").write_text(json.dumps(config_of(**given, model="demo")))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "input").rglob("*")}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "/nonexistent"}
    done = subprocess.run([ROOT / "main"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in here.iterdir()} == {"config.json", "neurostorm", "product.json", "work"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "input").rglob("*")} == before
    (table,) = here.glob("neurostorm/sub-A01/ses-2/func/*_embedding.tsv")
    assert table.name.startswith("sub-A01_ses-2_task-rest_run-1_space-MNI152NLin6Asym_res-model")
    product = json.loads((here / "product.json").read_text())
    kinds = [entry["type"] for entry in product["brainlife"]]
    assert kinds[0] == "success" and "error" not in kinds and "plotly" in kinds
    (plot,) = (entry for entry in product["brainlife"] if entry["type"] == "plotly")
    assert len(plot["data"][0]["y"]) == len(table.read_text().splitlines()) - 1
    assert (here / "product.json").stat().st_size <= brainlife.PRODUCT_LIMIT


def test_a_run_that_cannot_be_used_ends_with_the_programs_code_and_its_words(here: Path):
    (here / "bold.nii.gz").write_bytes(b"no image")
    (here / "config.json").write_text(json.dumps(config_of(model="demo")))
    assert brainlife.main() == 65
    messages = json.loads((here / "product.json").read_text())["brainlife"]
    assert {entry["type"] for entry in messages} == {"error"}
    assert "bold.nii.gz" in messages[-1]["msg"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bold": None}, ConfigUnreadable, "bold is not stated"),
        ({"space": ""}, ConfigUnreadable, "space is not stated"),
        ({"_inputs": []}, ConfigUnreadable, "whose the BOLD is"),
        ({"bold": "absent.nii.gz"}, DatasetMissing, "does not exist"),
        ({"model": ["a", "b"]}, UsageError, "not a single value"),
        ({"mask": 5}, ConfigUnreadable, "mask is 5"),
        ({"_inputs": 5}, ConfigUnreadable, "whose the BOLD is"),
        ({"_inputs": [{"meta": "01", "keys": 3}]}, ConfigUnreadable, "whose the BOLD is"),
        ({"json": "list.json"}, ConfigUnreadable, "list.json: is no JSON object"),
    ],
)
def test_configurations_that_say_too_little_are_refused(here: Path, change: dict, error: type, words: str):
    (here / "bold.nii.gz").touch()
    (here / "list.json").write_text('["RepetitionTime"]')
    (here / "config.json").write_text(json.dumps(config_of(**change)))
    with pytest.raises(error, match=words):
        config = brainlife.read_config(brainlife.CONFIG)
        brainlife.build_tree(config, brainlife.TREE)
        brainlife.arguments(config)
    assert brainlife.main() == error.exit_code
    assert words in json.loads((here / "product.json").read_text())["brainlife"][0]["msg"]


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_configuration_that_is_no_object_is_refused(here: Path, text: str):
    (here / "config.json").write_text(text)
    with pytest.raises(ConfigUnreadable):
        brainlife.read_config(brainlife.CONFIG)


def test_the_repetition_time_comes_from_the_sidecar_beside_the_image(here: Path):
    (here / "bold.nii.gz").touch()
    (here / "bold.json").write_text(json.dumps({"RepetitionTime": 1.5, "Manufacturer": "any"}))
    brainlife.build_tree(config_of(), brainlife.TREE)
    (sidecar,) = brainlife.TREE.rglob("*_bold.json")
    assert json.loads(sidecar.read_text()) == {"TaskName": "rest", "RepetitionTime": 1.5}


def test_a_second_call_links_anew(here: Path):
    for name in ("one.nii.gz", "two.nii.gz"):
        (here / name).touch()
        brainlife.build_tree(config_of(bold=name), brainlife.TREE)
    (place,) = brainlife.TREE.rglob("*_bold.nii.gz")
    assert place.resolve().name == "two.nii.gz"


def test_the_sample_is_a_configuration_that_the_program_takes():
    config = brainlife.read_config(ROOT / "config.json.sample")
    settings = parse_settings(brainlife.arguments(config))
    assert (settings.model, settings.clip_stride, settings.offline) == (("demo",), 20, True)
    assert brainlife.run_name(config)[0] == "sub-01_ses-1_task-rest_run-1"


def test_every_parameter_is_an_option_and_empty_ones_are_left_out():
    stated = {"fd_threshold": 0.5, "denoise": "24P", "output_bold": True, "model": "", "dummy_scans": 3}
    settings = parse_settings(brainlife.arguments(config_of(**stated, target_scaler="age=50,8")))
    assert settings.fd_threshold_mm == 0.5 and settings.denoise == "24P" and settings.output_bold
    assert settings.model == () and settings.target_scaler == (("age", 50.0, 8.0),) and settings.dummy_scans == 3


def test_product_json_stays_below_its_limit_and_keeps_what_matters(tmp_path: Path):
    plot = {"type": "plotly", "data": [{"y": [0.123] * 2000}]}
    entries = [{"type": "success", "msg": "done"}, plot, *({"type": "info", "msg": "x" * 400} for _ in range(40))]
    brainlife.write_product(tmp_path / "product.json", entries)
    kept = json.loads((tmp_path / "product.json").read_text())["brainlife"]
    assert (tmp_path / "product.json").stat().st_size <= brainlife.PRODUCT_LIMIT
    assert kept[0]["type"] == "success" and plot not in kept and len(kept) > 10


def test_root_main_has_the_headers_of_both_schedulers():
    text = (ROOT / "main").read_text()
    assert text.startswith("#!") and "#SBATCH --mem" in text and "#PBS -l" in text and os.access(ROOT / "main", os.X_OK)
