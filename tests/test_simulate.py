"""The simulated dataset: what lies on disk, where the signal is, and what the oracle makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurostorm_bids.inputs import find_runs
from neurostorm_bids.inputs.motion import read_motion
from neurostorm_bids.inputs.participants import read_participants
from neurostorm_bids.settings import Settings
from neurostorm_bids.simulate import EffectSizes, Expression, Levels, Simulation, ceilings, draw_cohort, read_simulation
from neurostorm_bids.simulate import write_dataset as simulate_dataset
from neurostorm_bids.simulate.brain import N_PAIRS, brain_on, grid_of, network_centres
from neurostorm_bids.simulate.cohort import expected_predictability
from neurostorm_bids.simulate.images import interpolation, mean_image, series
from neurostorm_bids.simulate.runs import persistence, runs_of
from neurostorm_bids.space.grid import TEMPLATE_LATTICES, apply_affine

TWO_SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
SMALL = {
    "n_subjects": 2,
    "sessions": (0, 2),
    "tasks": ("rest", "blocks"),
    "spaces": TWO_SPACES,
    "zoom_mm": 8.0,
    "n_volumes": 45,
    "n_dummies": 2,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("simulated")
    simulate_dataset(root, **SMALL)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def expected_files() -> set[str]:
    files = {"dataset_description.json", "participants.tsv", "participants.json", "README.md", ".bidsignore"}
    files |= {"code/simulation.json", "sub-02/sub-02_sessions.tsv", "sub-02/sub-02_sessions.json"}
    for folder, prefix in (("sub-01", "sub-01"), ("sub-02/ses-1", "sub-02_ses-1"), ("sub-02/ses-2", "sub-02_ses-2")):
        for task in ("rest", "blocks"):
            stem = f"{folder}/func/{prefix}_task-{task}"
            files |= {f"{stem}_desc-confounds_timeseries{end}" for end in (".tsv", ".json")}
            files |= {f"{stem}_events{end}" for end in (".tsv", ".json") if task == "blocks"}
            for space in ("MNI152NLin6Asym_res-8", "MNI152NLin2009cAsym"):
                for kind in ("desc-preproc_bold", "desc-brain_mask", "boldref"):
                    files |= {f"{stem}_space-{space}_{kind}{end}" for end in (".nii.gz", ".json")}
    return files


# --- on disk ----------------------------------------------------------------------------------------------------


def test_the_tree_is_that_of_fmriprep(dataset: Path):
    assert set(contents(dataset)) == expected_files()


def test_equal_plans_give_equal_bytes_and_other_seeds_do_not(dataset: Path, tmp_path: Path):
    simulate_dataset(tmp_path / "again", **SMALL)
    simulate_dataset(tmp_path / "other", **SMALL, seed=1)
    assert contents(tmp_path / "again") == contents(dataset)
    bold = "sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    assert contents(tmp_path / "other")[bold] != contents(dataset)[bold]


def test_the_plan_survives_the_file(dataset: Path):
    assert read_simulation(dataset) == Simulation(**SMALL)


def test_the_validator_finds_no_error(dataset: Path):
    program = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([program, dataset, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert done.returncode == 0


def test_the_program_reads_every_run_in_both_spaces(dataset: Path, tmp_path: Path):
    found = find_runs(Settings(bids_dir=dataset, output_dir=tmp_path, level="participant"))
    assert len(found.runs) == 6 and not found.rejected and not found.warnings
    for run in found.runs:
        assert {image.space for image in run.images} == set(TWO_SPACES) and not run.warnings
        assert (run.events is not None) == (run.entities["task"] == "blocks")
        motion = read_motion(run, SMALL["n_volumes"])
        assert motion.non_steady_volumes == 2 and not motion.warnings
        assert 0.02 < np.nanmean(motion.fd_mm) < 1.0
    assert list(read_participants(dataset).index) == ["01", "02"]


@pytest.mark.parametrize("space", ["MNI152NLin6Asym_res-8", "MNI152NLin2009cAsym"])
def test_images_are_int16_with_affine_and_repetition_time(dataset: Path, space: str):
    image = nib.load(dataset / f"sub-01/func/sub-01_task-rest_space-{space}_desc-preproc_bold.nii.gz")
    grid = grid_of(space.partition("_")[0], 8.0)
    assert image.get_data_dtype() == np.int16 and image.shape == (*grid.shape, 45)
    np.testing.assert_allclose(image.affine, grid.matrix)
    assert image.header.get_zooms()[3] == pytest.approx(0.8) and int(image.header["sform_code"]) == 4
    values = image.get_fdata()
    assert values.min() == 0 and 0.9 < values[values > 0].mean() / 1000 < 1.1
    assert values[..., 0].sum() > 1.3 * values[..., 2:].sum() / 43  # dummies are bright


def test_missing_phenotypes_are_written_as_such(tmp_path: Path):
    simulate_dataset(tmp_path, n_subjects=4, zoom_mm=8.0, n_volumes=4, missing=0.5)
    table = read_participants(tmp_path)
    assert table["age"].isna().sum() == 2 and table["cognition"].isna().sum() == 2
    assert table.attrs["columns"]["age"]["Units"] == "year"


@pytest.mark.parametrize(("version", "label"), [("20.2.7", "1"), ("21.0.1", "1"), ("22.0.0", "01"), ("25.2.5", "01")])
def test_runs_are_numbered_as_the_release_does(version: str, label: str):
    plan = Simulation(n_subjects=1, runs=2, fmriprep_version=version)
    assert runs_of(plan, draw_cohort(plan))[0].entities == {"sub": "01", "task": "rest", "run": label}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"n_conditions": 9}, "n_conditions is 9"),
        ({"n_subjects": 0}, "counted from 1"),
        ({"spaces": ()}, "a space and a task"),
        ({"n_dummies": 100}, "100 dummy volumes in a run of 100"),
    ],
)
def test_plans_without_sense_are_refused(fault: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Simulation(**fault)


def test_an_unknown_template_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="fsaverage"):
        simulate_dataset(tmp_path, spaces=("fsaverage",))


# --- the brain ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TWO_SPACES)
def test_two_millimetres_is_the_templates_own_array(template: str):
    assert grid_of(template, 2.0) in TEMPLATE_LATTICES


@pytest.mark.parametrize("template", TWO_SPACES)
def test_networks_lie_where_their_centres_say(template: str):
    brain = brain_on(grid_of(template, 4.0))
    points = apply_affine(brain.grid.matrix, np.argwhere(brain.mask))
    peaks = points[brain.networks.argmax(axis=0)]
    assert np.abs(peaks - network_centres()).max() <= 2.0
    assert 1.7e6 < brain.mask.sum() * 4**3 < 2.0e6  # mm3


def test_networks_are_as_wide_as_stated():
    grid = grid_of("MNI152NLin6Asym", 8.0)
    brain = brain_on(grid, 14.0)
    points = apply_affine(grid.matrix, np.argwhere(brain.mask))
    distance = np.linalg.norm(points[:, None] - network_centres(), axis=-1)  # (v, networks)
    np.testing.assert_allclose(brain.networks, np.exp(-(distance**2) / (2 * 14.0**2)), atol=1e-5)


def test_the_width_of_networks_is_a_level_of_the_images(tmp_path: Path):
    plan = {"n_subjects": 1, "zoom_mm": 16.0, "n_volumes": 4}
    for width in (7.0, 14.0):
        simulate_dataset(tmp_path / str(width), **plan, levels=Levels(network_mm=width, noise=0.0, motion_mm=0.0))
    narrow, wide = (next((tmp_path / name).rglob("*_bold.nii.gz")) for name in ("7.0", "14.0"))
    changes = [np.abs(np.diff(nib.load(path).get_fdata(), axis=-1)).sum() for path in (narrow, wide)]
    assert changes[1] > 2 * changes[0]


def test_the_second_space_shows_the_first_at_the_same_millimetres():
    first, second = (brain_on(grid_of(template, 4.0)) for template in TWO_SPACES)
    matrix = interpolation(first.grid, second.grid)
    np.testing.assert_allclose(matrix @ np.ones(first.mask.sum(), np.float32), 1, atol=1e-5)
    inside = second.edge < 0.2
    np.testing.assert_allclose((matrix @ first.networks)[inside], second.networks[inside], atol=0.15)


# --- where the signal is ------------------------------------------------------------------------------------------


def cross_validated(features: np.ndarray, truth: pd.Series) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return balanced_accuracy_score(truth, cross_val_predict(model, features, truth, cv=folds))


def views(plan: Simulation) -> tuple[pd.Series, dict[str, np.ndarray]]:
    """The diagnosis, and what may betray it: time means, motion, correlations of network regions."""
    cohort, brain = draw_cohort(plan), brain_on(grid_of(plan.spaces[0], plan.zoom_mm))
    found: dict[str, list[np.ndarray]] = {"mean": [], "motion": [], "covariance": []}
    for run in runs_of(plan, cohort):
        values = series(run, brain)
        regions = brain.networks.T @ values  # (networks, t)
        found["mean"].append(values.mean(axis=1))
        found["motion"].append(np.array([np.nanmean(run.fd_mm), np.nanstd(run.fd_mm), *run.motion.std(axis=0)]))
        correlation = np.corrcoef(regions)[:N_PAIRS, N_PAIRS : 2 * N_PAIRS]
        found["covariance"].append(np.arctanh(np.diag(correlation)))
    return cohort.phenotypes["diagnosis"], {name: np.stack(rows) for name, rows in found.items()}


def test_the_diagnosis_lies_in_temporal_covariance_alone():
    diagnosis, seen = views(Simulation(n_subjects=90, zoom_mm=8.0, n_volumes=150, seed=3))
    assert cross_validated(seen["covariance"], diagnosis) > 0.75
    assert cross_validated(seen["mean"], diagnosis) < 0.48  # chance is 0.33
    assert cross_validated(seen["motion"], diagnosis) < 0.48


def test_effects_can_be_moved_into_the_mean_image():
    effects = EffectSizes(diagnosis=Expression(mean_image=0.03))
    diagnosis, seen = views(Simulation(n_subjects=90, zoom_mm=8.0, n_volumes=60, seed=3, effects=effects))
    assert cross_validated(seen["mean"], diagnosis) > 0.75
    assert cross_validated(seen["covariance"], diagnosis) < 0.48


def test_whole_run_variance_does_not_tell_the_diagnosis():
    plan = Simulation(n_subjects=60, zoom_mm=8.0, n_volumes=100, seed=2)
    cohort, brain = draw_cohort(plan), brain_on(grid_of(plan.spaces[0], plan.zoom_mm))
    spread = np.array([series(run, brain).std() for run in runs_of(plan, cohort)])[:, None]
    assert cross_validated(spread, cohort.phenotypes["diagnosis"]) < 0.5


def test_networks_fluctuate_as_planned():
    plan = Simulation(n_subjects=1, n_volumes=20000, effects=EffectSizes(run_to_run=0.0))
    run = runs_of(plan, draw_cohort(plan))[0]
    first, second = run.courses[:N_PAIRS], run.courses[N_PAIRS : 2 * N_PAIRS]
    measured = (first * second).mean(axis=1)
    np.testing.assert_allclose(run.courses.std(axis=1), 1, atol=0.05)
    np.testing.assert_allclose(measured, run.coupling, atol=0.06)
    lagged = (first[:, 1:] * first[:, :-1]).mean(axis=1)
    np.testing.assert_allclose(lagged, persistence(plan), atol=0.05)


def test_time_courses_can_be_read_from_the_images():
    plan = Simulation(n_subjects=1, n_volumes=60)
    run, brain = runs_of(plan, draw_cohort(plan))[0], brain_on(grid_of("MNI152NLin6Asym", 4.0))
    values = series(run, brain)
    change = values / values.mean(axis=1, keepdims=True) - 1
    read = np.linalg.lstsq(brain.networks, change, rcond=None)[0] / plan.levels.fluctuation
    centred = run.courses - run.courses.mean(axis=1, keepdims=True)
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(read, centred, strict=True)) > 0.95


def test_task_blocks_answer_after_a_delay():
    plan = Simulation(n_subjects=1, tasks=("blocks",), n_volumes=150, n_dummies=2)
    run = runs_of(plan, draw_cohort(plan))[0]
    assert [block.onset_s for block in run.blocks] == [1.6, 21.6, 41.6, 61.6, 81.6]
    assert {block.condition for block in run.blocks} == {"motor", "visual", "memory"}
    block = run.blocks[1]
    own = run.responses[["motor", "visual", "memory", "language"].index(block.condition)]
    onset = round(block.onset_s / 0.8)
    assert own[onset] < 0.05 < 0.8 < own[onset + 15] < 1.25


def test_fingerprints_are_stable_across_runs_and_differ_between_people():
    plan = Simulation(n_subjects=12, runs=2)
    couplings = np.stack([run.coupling for run in runs_of(plan, draw_cohort(plan))]).reshape(12, 2, -1)
    within = np.abs(couplings[:, 0] - couplings[:, 1]).mean()
    between = np.abs(couplings[:-1, 0] - couplings[1:, 0]).mean()
    assert within < 0.4 * between


def test_motion_follows_age_only_where_it_is_told_to():
    for asked in (0.0, 0.6):
        plan = Simulation(n_subjects=400, draws="independent", effects=EffectSizes(motion_age=asked))
        cohort = draw_cohort(plan)
        assert np.corrcoef(cohort.phenotypes["age"], np.log(cohort.fd_mm))[0, 1] == pytest.approx(asked, abs=0.12)


def test_families_share_fingerprints_and_cognition():
    plan = Simulation(n_subjects=400, family_size=2, draws="independent", effects=EffectSizes(heritability=0.8))
    cohort = draw_cohort(plan)
    pairs = cohort.phenotypes.reset_index().groupby("family_id").indices.values()
    first, second = np.array(list(pairs)).T
    assert np.corrcoef(cohort.fingerprints[first, 0], cohort.fingerprints[second, 0])[0, 1] > 0.65
    cognition = cohort.phenotypes["cognition"].to_numpy()
    assert np.corrcoef(cognition[first], cognition[second])[0, 1] > 0.15


def test_sites_differ_in_field_and_noise():
    plan = Simulation(n_subjects=6, n_sites=2)
    cohort, brain = draw_cohort(plan), brain_on(grid_of("MNI152NLin6Asym", 8.0))
    runs = runs_of(replace(plan, effects=EffectSizes(fingerprint=Expression())), cohort)
    images = np.stack([mean_image(run, brain) for run in runs])
    site = cohort.phenotypes["site"].to_numpy()
    differences = np.abs(images[:, None] - images).mean(axis=-1)
    assert differences[site[:, None] != site].mean() > 1.2 * differences[site[:, None] == site].mean()
    assert len({round(run.noise_level, 6) for run in runs}) == 2


# --- the oracle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [11, 12])
def test_ceilings_of_sixty_people_lie_where_the_defaults_put_them(seed: int):
    found = ceilings(Simulation(n_subjects=60, runs=2, tasks=("rest", "blocks"), n_volumes=150, seed=seed))
    assert 0.95 <= found["sex"]["auroc"] <= 0.98
    assert 0.70 <= found["age"]["r2"] <= 0.80
    assert 0.90 <= found["diagnosis"]["balanced_accuracy"] <= 0.95
    assert found["state"]["accuracy"] > 0.95 and found["identity"] == {"rank1": 1.0, "gallery": 60.0}


def test_the_oracle_reaches_no_more_than_the_expressions_tell():
    plan = Simulation(n_subjects=600, draws="independent", n_volumes=40, seed=5)
    limit, found = expected_predictability(plan.effects), ceilings(plan)
    assert limit["age"] - 0.2 < found["age"]["r2"] < limit["age"] + 0.03
    assert limit["sex"] - 0.06 < found["sex"]["auroc"] < limit["sex"] + 0.015
    assert limit["diagnosis"] - 0.15 < found["diagnosis"]["balanced_accuracy"] < limit["diagnosis"] + 0.02


def test_without_effects_the_oracle_is_at_chance():
    nothing = {name: Expression() for name in ("sex", "age", "diagnosis", "cognition", "fingerprint")}
    found = ceilings(Simulation(n_subjects=60, runs=2, effects=EffectSizes(**nothing)))
    assert found["sex"]["auroc"] == pytest.approx(0.5)
    assert found["diagnosis"]["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.01)
    assert found["age"]["r2"] == pytest.approx(0, abs=0.01)
    assert found["identity"]["rank1"] < 0.15


def test_the_oracle_uses_the_mean_image_where_the_signal_is_there():
    effects = EffectSizes(sex=Expression(mean_image=0.03), diagnosis=Expression())
    found = ceilings(Simulation(n_subjects=60, effects=effects))
    assert found["sex"]["auroc"] > 0.94 and found["diagnosis"]["balanced_accuracy"] < 0.4


def test_a_handful_of_people_is_enough_for_the_demo():
    found = ceilings(Simulation(n_subjects=4, runs=2, tasks=("rest", "blocks")))
    assert {"age", "cognition", "identity", "state"} <= set(found)
