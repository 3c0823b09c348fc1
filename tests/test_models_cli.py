"""``neurostorm-models``: what it prints, what it writes, and with which code it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from neurostorm_bids.models_cli import StatedTarget, build_parser, main

HEAVY = ("torch", "nibabel", "bids", "nipype", "numpy", "pandas", "nilearn", "templateflow")
HYPER_PARAMETERS = {
    "img_size": [12, 12, 12, 4],
    "patch_size": [6, 6, 6, 1],
    "embed_dim": 8,
    "depths": [1],
    "first_window_size": [2, 2, 2, 2],
    "last_layer_full_MSA": False,
    "sequence_length": 4,
}


@pytest.fixture(autouse=True)
def no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neurostorm_bids.model import registry

    monkeypatch.setenv("NEUROSTORM_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(registry, "IMAGE_MODELS", tmp_path / "image")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A fine-tuned checkpoint that says neither its window size nor what its head predicts."""
    from neurostorm_bids.model import Encoder, EncoderConfig
    from neurostorm_bids.model.heads import regression_head

    config = EncoderConfig(img_size=(12, 12, 12, 4), embed_dim=8, depths=(1,), last_layer_full_MSA=False)
    state = {f"model.{name}": tensor for name, tensor in Encoder(config).state_dict().items()}
    state |= {f"output_head.{name}": tensor for name, tensor in regression_head(8).state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": HYPER_PARAMETERS}, tmp_path / "tuned.ckpt")
    return tmp_path / "tuned.ckpt"


CONVERT = ["--window-size", "2", "2", "2", "2", "--target", "age:regression:years:54.2,7.6"]


def test_parsing_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from neurostorm_bids.models_cli import build_parser\n"
        "build_parser().parse_args(['convert', 'a.ckpt', 'b', '--target', 'age:regression:years:54.2,7.6'])\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "HEAVY []"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("age:regression", StatedTarget("age", "regression")),
        ("age:regression:years", StatedTarget("age", "regression", "years")),
        ("age:regression::54.2,7.6", StatedTarget("age", "regression", scaler=(54.2, 7.6))),
        ("sex:classification", StatedTarget("sex", "classification")),
        ("sex:classification:f,m", StatedTarget("sex", "classification", classes=("f", "m"))),
    ],
)
def test_targets_on_the_command_line(text: str, target: StatedTarget):
    assert build_parser().parse_args(["convert", "a", "b", "--target", text]).target == target


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--target", "age"], "is not NAME:regression|classification|retrieval"),
        (["--target", ":regression"], "is not NAME:regression"),
        (["--target", "age:regression:years:1"], "the scaler is MEAN,SD"),
        (["--target", "age:regression:years:1,x"], "'x' is not a number"),
        (["--target", "age:regression:years:nan,1"], "nan is not a finite number"),
        (["--tr", "0"], "0 is not a positive number"),
        (["--orientation", "LPI"], "invalid choice"),
        (["--window-size", "4", "4"], "expected 4 arguments"),
    ],
)
def test_usage_errors(arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "a.ckpt", "b", *arguments])
    assert caught.value.code == 2 and fault in capsys.readouterr().err


def test_both_spellings(checkpoint: Path, tmp_path: Path):
    arguments = [argument.replace("window-size", "window_size") for argument in CONVERT]
    assert main(["convert", str(checkpoint), str(tmp_path / "m"), *arguments]) == 0


def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "WHAT"]
    (demo,) = [line for line in lines if line.startswith("demo ")]
    assert demo.split()[1] == "bundled"
    assert all("unverified" in line for line in lines if line.startswith("neurostorm-"))


def test_convert_says_what_it_found_and_assumed(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["convert", str(checkpoint), str(tmp_path / "ages"), *CONVERT, "--tr", "0.72", "--licence", "CC0"])
    out = capsys.readouterr().out
    assert code == 0 and "encoder weights" in out and "assumed, not stated: grid, normalisation, background" in out
    values = json.loads((tmp_path / "ages" / "model.json").read_text())
    assert (values["name"], values["licence"], values["architecture"]["window_size"]) == ("ages", "CC0", [2, 2, 2, 2])
    assert values["input"]["t_r_s"] == {"value": 0.72, "provenance": "stated"}
    assert values["targets"][0]["unit"] == "years" and values["targets"][0]["mean"] == 54.2


def test_convert_with_a_grid_from_an_image(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    affine = np.array([[3.0, 0, 0, -18], [0, 3, 0, -20], [0, 0, 3, -22], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((12, 12, 12), np.float32), affine), tmp_path / "grid.nii.gz")
    stated = ["--grid", str(tmp_path / "grid.nii.gz"), "--template", "MNI152NLin2009cAsym", "--name", "other"]
    assert main(["convert", str(checkpoint), str(tmp_path / "m"), *CONVERT, *stated]) == 0
    grid = json.loads((tmp_path / "m" / "model.json").read_text())["input"]["grid"]
    assert grid["provenance"] == "stated" and grid["value"]["template"] == "MNI152NLin2009cAsym"
    assert np.array_equal(grid["value"]["affine"], affine)

    assert main(["convert", str(checkpoint), str(tmp_path / "n"), *CONVERT, *stated, "--orientation", "LAS"]) == 2
    assert "--grid and --orientation both state the grid" in capsys.readouterr().err
    (tmp_path / "bad.nii.gz").write_bytes(b"x")
    assert main(["convert", str(checkpoint), str(tmp_path / "n"), "--grid", str(tmp_path / "bad.nii.gz")]) == 2
    assert "bad.nii.gz: --grid cannot be read" in capsys.readouterr().err


def test_convert_refuses_what_nobody_stated(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", str(checkpoint), str(tmp_path / "m")]) == 66
    assert "does not say window_size" in capsys.readouterr().err
    assert main(["convert", str(checkpoint), str(tmp_path / "m"), *CONVERT[:5]]) == 66
    assert "a value or the logit of two classes" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "absent.ckpt"), str(tmp_path / "m")]) == 66
    assert "absent.ckpt: does not exist" in capsys.readouterr().err
    assert main(["convert", str(checkpoint), str(tmp_path), *CONVERT]) == 73
    assert "exists already" in capsys.readouterr().err


def test_verify_goes_on_after_a_failure(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = tmp_path / "models" / "good", tmp_path / "models" / "bad"
    for folder in (good, bad):
        main(["convert", str(checkpoint), str(folder), *CONVERT])
    with (bad / "weights.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    capsys.readouterr()
    assert main(["verify", "all"]) == 1
    captured = capsys.readouterr()
    assert "demo: ok, hashes match, embedding within" in captured.out
    assert f"{good}: ok, hashes match" in captured.out
    assert f"{bad}: FAILED." in captured.err and "its hash is" in captured.err
    assert main(["verify", str(good)]) == 0


def test_cards(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["card", "demo"]) == 0
    assert "Trained on simulated data" in capsys.readouterr().out
    main(["convert", str(checkpoint), str(tmp_path / "m"), *CONVERT])
    assert main(["card", str(tmp_path / "m")]) == 0
    assert "`age`: regression in years (offset 54.2, scale 7.6)" in capsys.readouterr().out
    assert main(["card", "neurostorm-mae-0.5", "--offline"]) == 66
    assert "put it here as" in capsys.readouterr().err
