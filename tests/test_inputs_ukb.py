"""UK Biobank layouts: native runs, their FNIRT warp, their motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline_trees import FD_MM, LEFT, N_VOLUMES, STANDARD, brightest, find, ukb_tree

from neurostorm_bids.errors import NoUsableRun
from neurostorm_bids.inputs.motion import read_motion
from neurostorm_bids.inputs.ukb import participant_of
from neurostorm_bids.space import choose_route

ICA = "1000001_1_2_0/fMRI/rfMRI.ica"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("1000001_1_2_0", ("1000001", "1")),
        ("1000001_20227_3_0", ("1000001", "3")),
        ("sub-1000001_1_2_0", ("1000001", "1")),
        ("1000001", ("1000001", None)),
    ],
)
def test_participants_from_folder_names(folder: str, expected: tuple):
    assert participant_of(folder) == expected


def test_a_run_with_everything(tmp_path: Path):
    (run,) = find(ukb_tree(tmp_path / "ukb")).runs
    assert run.name == "sub-1000001_ses-1_task-rest"
    assert (run.source.pipeline, run.source.denoising) == ("UK Biobank pipeline", "ICA-FIX")
    assert run.images[0].space == "boldref" and run.t_r_s == 0.735 and not run.warnings
    assert read_motion(run, N_VOLUMES).fd_mm[1:] == pytest.approx(FD_MM, abs=1e-4)
    route = choose_route(run, STANDARD)
    assert route.kind == "transform" and route.files[0].name == "example_func2standard_warp.nii.gz"
    assert np.linalg.norm(brightest(run) - LEFT) < 10


@pytest.mark.parametrize("there", [True, False])
def test_the_reference_image_is_named_where_it_is_there(tmp_path: Path, there: bool):
    root = ukb_tree(tmp_path / "ukb")
    reference = root / ICA / "example_func.nii.gz"
    reference.unlink(missing_ok=True)
    if there:
        reference.write_bytes(b"x")
    assert find(root).runs[0].images[0].boldref == (reference if there else None)


def test_instances_are_sessions(tmp_path: Path):
    root = ukb_tree(ukb_tree(tmp_path / "ukb", "1000001_20227_2_0"), "1000001_20227_3_0")
    assert [run.session for run in find(root).runs] == ["2", "3"]
    assert len(find(root, participant_label=("sub-1000001",), session_label=("3",)).runs) == 1


def test_the_header_gives_the_repetition_time_where_no_json_does(tmp_path: Path):
    root = ukb_tree(tmp_path / "ukb")
    (root / "1000001_1_2_0/fMRI/rfMRI.json").unlink()
    assert find(root).runs[0].t_r_s is None


def test_a_broken_json_is_passed_over_and_told(tmp_path: Path):
    root = ukb_tree(tmp_path / "ukb")
    (root / "1000001_1_2_0/fMRI/rfMRI.json").write_text("{")
    (run,) = find(root).runs
    assert run.t_r_s is None and "Passed over" in run.warnings[0]


def test_the_series_without_fix_is_read_and_told_where_there_is_no_other(tmp_path: Path):
    root = ukb_tree(tmp_path / "ukb")
    (root / ICA / "filtered_func_data_clean.nii.gz").rename(root / ICA / "filtered_func_data.nii.gz")
    (run,) = find(root).runs
    assert run.source.denoising == "high-pass filter" and "without ICA-FIX" in run.warnings[0]
    (run,) = find(root, desc="minimal").runs
    assert not run.warnings


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("reg/example_func2standard_warp.nii.gz", "no reg/example_func2standard_warp.nii.gz"),
        ("filtered_func_data_clean.nii.gz", "no filtered_func_data_clean.nii.gz"),
    ],
)
def test_what_cannot_be_done_without(tmp_path: Path, missing: str, told: str):
    root = ukb_tree(tmp_path / "ukb")
    (root / ICA / missing).unlink()
    with pytest.raises(NoUsableRun, match=told):
        find(root)
