"""abcd-hcp-pipeline layouts, and how the input type is told from folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layout_trees import build, run_files
from pipeline_trees import FD_MM, LEFT, N_VOLUMES, brightest, dcan_tree, find, hcp_tree, ukb_tree

from neurostorm_bids.inputs.find import detect
from neurostorm_bids.inputs.motion import read_motion


def test_a_run_with_everything(tmp_path: Path):
    (run,) = find(dcan_tree(tmp_path / "abcd")).runs
    assert run.name == "sub-NDARINV1_ses-baselineYear1Arm1_task-rest_run-01"
    assert (run.source.pipeline, run.source.denoising) == ("abcd-hcp-pipeline", "none")
    assert run.images[0].mask is not None and run.images[0].mask.name == "brainmask_fs.2.0.nii.gz"
    assert run.images[0].space == "MNI152NLin6Asym"
    assert read_motion(run, N_VOLUMES).fd_mm[1:] == pytest.approx(FD_MM, abs=1e-4)
    assert np.linalg.norm(brightest(run) - LEFT) < 10


def test_sessions_and_labels(tmp_path: Path):
    root = dcan_tree(dcan_tree(tmp_path / "abcd"), session="2YearFollowUpYArm1")
    dcan_tree(root, "NDARINV2")
    assert len(find(root).runs) == 3
    assert len(find(root, session_label=("ses-2YearFollowUpYArm1",)).runs) == 1
    assert {run.participant for run in find(root, participant_label=("NDARINV2",)).runs} == {"NDARINV2"}


def test_only_what_lies_below_the_participant_names_a_session(tmp_path: Path):
    (run,) = find(hcp_tree(tmp_path / "ses-study" / "hcp")).runs
    assert run.session is None


def test_beneath_a_raw_dataset(tmp_path: Path):
    dcan_tree(tmp_path / "raw" / "derivatives" / "abcd-hcp-pipeline")
    assert len(find(tmp_path / "raw", input_type="dcan").runs) == 1
    assert len(find(tmp_path / "raw").runs) == 1
    build(tmp_path / "raw" / "derivatives" / "fmriprep", run_files("sub-01_task-rest"))
    assert {run.source.pipeline for run in find(tmp_path / "raw", skip_bids_validation=True).runs} == {"fMRIPrep"}


def test_without_sessions_when_the_pipeline_is_named(tmp_path: Path):
    hcp_tree(tmp_path / "dcan", "sub-01/files", ("task-rest_run-1",))
    (run,) = find(tmp_path / "dcan", input_type="dcan").runs
    assert run.name == "sub-01_task-rest_run-1"


def test_the_input_type_is_told_from_folders(tmp_path: Path):
    assert detect(hcp_tree(tmp_path / "hcp")) == "hcp"
    assert detect(hcp_tree(tmp_path / "wrapped", "sub-1/files")) == "hcp"
    assert detect(dcan_tree(tmp_path / "dcan")) == "dcan"
    assert detect(ukb_tree(tmp_path / "ukb")) == "ukb"
    fmriprep = build(tmp_path / "fmriprep", run_files("sub-01_task-rest"))
    assert detect(fmriprep) == "fmriprep"
    assert detect(fmriprep, tmp_path / "hcp") == "hcp"  # a raw dataset with named derivatives
    assert detect(tmp_path / "nowhere") == "fmriprep"
