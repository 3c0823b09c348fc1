"""``--attribution`` from the command line: files, means, resume, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from neurostorm_bids.cli import main
from neurostorm_bids.model import Encoder, EncoderConfig, InputSpec
from neurostorm_bids.model.config import Target
from neurostorm_bids.model.description import INPUT_FIELDS, ModelDescription
from neurostorm_bids.model.folder import weights_of, write_model_folder
from neurostorm_bids.model.heads import head_for
from neurostorm_bids.outputs import read_tsv
from neurostorm_bids.simulate import write_dataset
from neurostorm_bids.space.grid import Grid

VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"
AFFINE = [[-16, 0, 0, 89], [0, 16, 0, -107], [0, 0, 16, -71], [0, 0, 0, 1]]
TARGETS = (
    Target("age", "regression", unit="year", mean=45.0, std=12.0),
    Target("diagnosis", "classification", classes=("control", "typeA", "typeB")),
)
FUNC, SPACE = "sub-01/func", "space-MNI152NLin6Asym_res-model"


def write_model(folder: Path, targets: tuple[Target, ...]) -> None:
    config = EncoderConfig(img_size=(12, 12, 12, 20), embed_dim=8, patch_size=(4, 4, 4, 1), depths=(1, 1))
    grid = Grid.of((12, 12, 12), AFFINE, "MNI152NLin6Asym")
    spec = InputSpec(grid=grid, provenance=dict.fromkeys(INPUT_FIELDS, "stated"))
    generator = torch.Generator().manual_seed(0)
    weights = weights_of(
        Encoder(config, generator=generator), {target.name: head_for(target, 16, generator) for target in targets}
    )
    description = ModelDescription(name=folder.name, config=config, input=spec, targets=targets, trained=True)
    write_model_folder(folder, description, weights)


class Place:
    """A dataset of one participant with two runs, models, and an output folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"

    def call(self, *words: str, level: str = "participant", model: str = "tiny") -> int:
        start = [str(self.root / "fmriprep"), str(self.out), level, "--model", str(self.root / model)]
        return main([*start, "--nprocs", "1", "-w", str(self.root / "work"), "--quiet", *words])

    def map(self, stem: str) -> tuple[np.ndarray, dict, list[dict]]:
        path = self.out / FUNC / f"{stem}_{SPACE}_desc-ageAttribution"
        values = np.asarray(nib.load(f"{path}_boldmap.nii.gz").dataobj)[..., 0]
        sidecar = json.loads(Path(f"{path}_boldmap.json").read_text())
        return values, sidecar, read_tsv(Path(f"{path}_attribution.tsv"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("attribution")
    write_dataset(root / "fmriprep", n_subjects=1, runs=2, n_volumes=45, zoom_mm=8.0, seed=3)
    write_model(root / "tiny", TARGETS)
    write_model(root / "bare", ())
    made = Place(root)
    words = ("--attribution", "integrated-gradients", "occlusion", "--attribution-targets", "age", "diagnosis:typeA")
    assert made.call(*words, "--debug") == 0  # in this process: a pool would import everything a second time
    return made


def test_every_run_and_the_participant_have_maps_that_add_up(place):
    labels = ("ageAttribution", "ageOcclusionAttribution", "diagnosistypeAAttribution",
              "diagnosistypeAOcclusionAttribution")  # fmt: skip
    for stem in ("sub-01_task-rest_run-01", "sub-01_task-rest_run-02", "sub-01"):
        for label in labels:
            assert (place.out / FUNC / f"{stem}_{SPACE}_desc-{label}_boldmap.nii.gz").is_file()
        values, sidecar, rows = place.map(stem)
        entry = sidecar["Attribution"]
        assert values.shape == (12, 12, 12) and sidecar["Units"] == "year"
        sums = entry["Completeness"]
        assert values.sum() == pytest.approx(sums["SumOfMap"], rel=1e-3)
        assert sums["RelativeError"] <= 0.02
        assert sums["SumOfMap"] == pytest.approx(sums["OutputDifference"], rel=0.02)
        assert abs(entry["SanityCheck"]["Correlation"]) < 0.5 and entry["SanityCheck"]["Differs"] is True
        assert sum(float(row["attribution"]) for row in rows) == pytest.approx(values.sum(), rel=1e-3)
        assert sum(float(row["mass"]) for row in rows) == pytest.approx(1, rel=1e-3)


def test_the_output_difference_is_that_of_the_predictions(place):
    found = read_tsv(place.out / FUNC / f"sub-01_task-rest_run-01_{SPACE}_desc-tiny_predictions.tsv")
    value = float(next(row["value"] for row in found if row["target"] == "age"))
    _, sidecar, _ = place.map("sub-01_task-rest_run-01")
    assert 0 < abs(sidecar["Attribution"]["Completeness"]["OutputDifference"]) < abs(value - 45) + 12


def test_the_participant_has_the_mean_of_the_runs(place):
    runs = [place.map(f"sub-01_task-rest_run-0{number}") for number in (1, 2)]
    values, sidecar, _ = place.map("sub-01")
    weights = [run[1]["Attribution"]["Clips"] for run in runs]
    assert values == pytest.approx(np.average([run[0] for run in runs], axis=0, weights=weights), abs=1e-7)
    assert sidecar["Attribution"]["Runs"] == 2 and sidecar["Attribution"]["Clips"] == sum(weights)
    assert len(sidecar["Sources"]) == 2


def test_what_is_there_is_not_computed_again(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*ttribution*")}
    broken = place.out / FUNC / f"sub-01_task-rest_run-01_{SPACE}_desc-ageAttribution_boldmap.nii.gz"
    broken.write_bytes(b"cut")
    assert place.call("--attribution", "integrated-gradients", "--attribution-targets", "age", "--debug") == 0
    after = {path: path.stat().st_mtime_ns for path in place.out.rglob("*ttribution*")}
    changed = {path for path in before if before[path] != after[path]}
    assert broken in changed and all("_run-01_" in path.name for path in changed)


def test_a_dry_run_says_what_maps_would_cost(place, capsys):
    assert place.call("--attribution", "occlusion", "--attribution-targets", "age", "--dry-run") == 0
    assert "Attribution, 1 map(s) a run: about" in capsys.readouterr().out


def test_labels_are_described(place):
    rows = {row["desc_id"]: row["description"] for row in read_tsv(place.out / "descriptions.tsv")}
    assert rows["desc-ageAttribution"] == "What each voxel adds to the prediction of age, by integrated-gradients."
    assert "diagnosis:typeA" in rows["desc-diagnosistypeAOcclusionAttribution"]


def test_the_results_are_valid_bids(place):
    done = subprocess.run([VALIDATOR, str(place.out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        (("--attribution", "occlusion", "--attribution-targets", "height"), "tiny", "height: no model predicts it"),
        (("--attribution", "occlusion"), "bare", "bare predicts nothing that could be explained"),
        (("--attribution-targets", "age"), "tiny", "without --attribution"),
        (("--attribution", "occlusion", "--preprocessing", "reference"), "tiny", "array space has no affine"),
        (("--attribution", "occlusion", "occlusion"), "tiny", "two maps would be called desc-ageOcclusionAttribution"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_anything_runs(place, capsys, words, model, message):
    assert place.call(*words, model=model) == 2
    assert message in capsys.readouterr().err


def test_the_group_level_makes_no_maps(place, capsys):
    assert place.call("--attribution", "occlusion", level="group") == 2
    assert "participant level" in capsys.readouterr().err


def test_an_atlas_that_cannot_be_read_is_refused_by_name(place, tmp_path, capsys):
    (tmp_path / "atlas.nii.gz").write_text("no image")
    assert place.call("--attribution", "occlusion", "--atlas", str(tmp_path / "atlas.nii.gz")) == 2
    assert "atlas.nii.gz: cannot be read" in capsys.readouterr().err


def test_a_run_without_a_map_is_told_and_the_others_are_made(place, monkeypatch, capsys):
    from neurostorm_bids import attribute
    from neurostorm_bids.errors import ClipsInvalid

    made = attribute.map_run

    def fail_once(prepared, job, sources, settings):
        if "run-01" in prepared.run.name:
            raise ClipsInvalid("the gradient is not finite")
        made(prepared, job, sources, settings)

    monkeypatch.setattr(attribute, "map_run", fail_once)
    words = (
        "--attribution",
        "integrated-gradients",
        "--attribution-targets",
        "age",
        "--attribution-baseline",
        "static",
    )
    assert place.call(*words, "--debug") == 1
    said = capsys.readouterr().err
    assert "no map: the gradient is not finite" in said
    assert place.map("sub-01_task-rest_run-02")[1]["Attribution"]["Baseline"]["Kind"] == "static"
