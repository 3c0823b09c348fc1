"""HCP layouts: which runs, which volume of them, and their motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline_trees import FD_MM, LEFT, N_VOLUMES, STANDARD, brightest, find, hcp_run, hcp_tree

from neurostorm_bids.errors import ConfoundsUnusable, DatasetMissing, NothingSelected, NoUsableRun
from neurostorm_bids.inputs import BoldRun, MotionFile, Source
from neurostorm_bids.inputs.hcp import participant_of, run_of
from neurostorm_bids.inputs.motion import read_motion
from neurostorm_bids.resume import input_files
from neurostorm_bids.space import choose_route, to_grid

CLEAN = "_hp2000_clean"


@pytest.mark.parametrize(
    ("folder", "entities"),
    [
        ("rfMRI_REST1_LR", {"task": "rest", "run": "1", "dir": "LR"}),
        ("rfMRI_REST2_PA", {"task": "rest", "run": "2", "dir": "PA"}),
        ("tfMRI_EMOTION_RL", {"task": "emotion", "dir": "RL"}),
        ("tfMRI_RETCCW_7T_PA", {"task": "retccw", "acq": "7T", "dir": "PA"}),
        ("tfMRI_FACENAME_PA", {"task": "facename", "dir": "PA"}),
        ("rfMRI_REST1_7T_PA", {"task": "rest", "run": "1", "acq": "7T", "dir": "PA"}),
        ("tfMRI_MOVIE4_7T_AP", {"task": "movie", "run": "4", "acq": "7T", "dir": "AP"}),
        ("rfMRI_REST1a_AP", {"task": "rest", "run": "1", "acq": "a", "dir": "AP"}),
        ("rfMRI_REST", {"task": "rest"}),
        ("ses-1_task-rest_run-02", {"task": "rest", "run": "02"}),
        ("something else", {"task": "somethingelse"}),
    ],
)
def test_entities_from_folder_names(folder: str, entities: dict):
    assert {key: value for key, value in run_of(folder).items() if value is not None} == entities


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("100307", ("100307", None)),
        ("sub-100307", ("100307", None)),
        ("HCA6002236_V1_MR", ("HCA6002236", "V1")),
        ("100610_7T", ("100610", None)),
        ("S_001", ("S001", None)),
    ],
)
def test_participants_from_folder_names(folder: str, expected: tuple):
    assert participant_of(folder) == expected


@pytest.mark.parametrize("there", [True, False])
def test_the_reference_image_is_named_where_it_is_there(tmp_path: Path, there: bool):
    root = hcp_tree(tmp_path / "hcp", "100307", endings=("", CLEAN))
    folder = next(root.rglob("rfMRI_REST1_LR"))
    reference = folder / "rfMRI_REST1_LR_SBRef.nii.gz"
    reference.unlink(missing_ok=True)
    if there:
        reference.write_bytes(b"x")
    assert find(root).runs[0].images[0].boldref == (reference if there else None)


@pytest.mark.parametrize("wrapping", ["100307", "sub-100307", "sub-100307/files"])
def test_a_run_with_everything(tmp_path: Path, wrapping: str):
    root = hcp_tree(tmp_path / "hcp", wrapping, endings=("", CLEAN))
    (run,) = find(root).runs
    assert run.name == "sub-100307_task-rest_dir-LR_run-1"
    assert (run.source.pipeline, run.source.denoising) == ("HCP Pipelines", "ICA-FIX")
    (image,) = run.images
    assert image.bold.name == "rfMRI_REST1_LR_hp2000_clean.nii.gz" and image.space == "MNI152NLin6Asym"
    assert image.mask is not None and image.mask.name == "brainmask_fs.2.nii.gz"
    assert run.t_r_s is None and not run.warnings
    motion = read_motion(run, N_VOLUMES)
    assert np.isnan(motion.fd_mm[0]) and motion.fd_mm[1:] == pytest.approx(FD_MM, abs=1e-4)
    assert run.motion.path in input_files(run)  # the resume key sees it


def test_the_header_gives_the_repetition_time_and_left_stays_left(tmp_path: Path):
    (run,) = find(hcp_tree(tmp_path / "hcp")).runs
    assert to_grid(choose_route(run, STANDARD), STANDARD).t_r_s == 0.8
    assert np.linalg.norm(brightest(run) - LEFT) < 10


@pytest.mark.parametrize(
    ("endings", "chosen", "denoising"),
    [
        (("", CLEAN, "_hp0_clean"), CLEAN, "ICA-FIX"),
        (("", "_hp0_clean", "_hp0_clean_rclean_tclean"), "_hp0_clean", "ICA-FIX"),
        (("", "_hp0_clean_rclean_tclean"), "_hp0_clean_rclean_tclean", "ICA-FIX and temporal ICA"),
        (("", "_hp0_clean_vn"), "", "none"),
    ],
)
def test_which_volume_is_read(tmp_path: Path, endings: tuple, chosen: str, denoising: str):
    (run,) = find(hcp_tree(tmp_path / "hcp", endings=endings)).runs
    assert run.images[0].bold.name == f"rfMRI_REST1_LR{chosen}.nii.gz"
    assert run.source.denoising == denoising
    assert bool(run.warnings) == (denoising == "none")  # a resting run without ICA-FIX is told


def test_the_volume_before_denoising_can_be_asked_for(tmp_path: Path):
    (run,) = find(hcp_tree(tmp_path / "hcp", endings=("", CLEAN)), desc="minimal").runs
    assert run.images[0].bold.name == "rfMRI_REST1_LR.nii.gz" and run.source.denoising == "none" and not run.warnings


def test_visits_are_sessions_and_concatenations_are_left_out(tmp_path: Path):
    root = tmp_path / "aging"
    for visit in ("V1", "V2"):
        hcp_tree(root, f"HCA6002236_{visit}_MR", ("rfMRI_REST1_AP",), endings=("_hp0_clean",))
    results = root / "HCA6002236_V1_MR" / "MNINonLinear" / "Results"
    hcp_run(results, "rfMRI_REST", endings=("_hp0_clean",))
    (results / "tfMRI_WM").mkdir()  # second-level results of a task
    hcp_run(results, "tfMRI_WM_PA")
    selection = find(root)
    assert [run.name for run in selection.runs] == [
        "sub-HCA6002236_ses-V1_task-rest_dir-AP_run-1",
        "sub-HCA6002236_ses-V1_task-wm_dir-PA",
        "sub-HCA6002236_ses-V2_task-rest_dir-AP_run-1",
    ]
    assert any("concatenation" in warning for warning in selection.warnings)
    assert len(find(root, session_label=("V2",)).runs) == 1
    assert len(find(root, task_id=("wm",)).runs) == 1
    assert len(find(root, participant_label=("HCA6002236_V2_MR",)).runs) == 1  # a folder's own name


def test_labels_and_filters(tmp_path: Path):
    root = hcp_tree(tmp_path / "hcp", names=("rfMRI_REST1_LR", "rfMRI_REST1_RL"))
    hcp_tree(root, "100408")
    filters = tmp_path / "filter.json"
    filters.write_text('{"bold": {"direction": "RL"}}')
    (run,) = find(root, bids_filter_file=filters).runs
    assert run.entities["dir"] == "RL"
    assert {run.participant for run in find(root, participant_label=("sub-100408", "9")).runs} == {"100408"}
    with pytest.raises(NothingSelected, match="--task-id"):
        find(root, task_id=("nback",))


# --- faults -----------------------------------------------------------------------------------------------------


def test_surface_data_alone_is_no_run(tmp_path: Path):
    root = hcp_tree(tmp_path / "hcp", endings=())
    (root / "100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas.dtseries.nii").write_bytes(b"x")
    with pytest.raises(NoUsableRun, match="only surface data"):
        find(root)


def test_an_unfetched_clean_volume_is_not_replaced_in_silence(tmp_path: Path):
    root = hcp_tree(tmp_path / "hcp")
    folder = root / "100307/MNINonLinear/Results/rfMRI_REST1_LR"
    (folder / f"rfMRI_REST1_LR{CLEAN}.nii.gz").symlink_to("nowhere")
    with pytest.raises(NoUsableRun, match="datalad get"):
        find(root)


def test_missing_motion_is_told(tmp_path: Path):
    root = hcp_tree(tmp_path / "hcp")
    (root / "100307/MNINonLinear/Results/rfMRI_REST1_LR/Movement_Regressors.txt").unlink()
    (run,) = find(root).runs
    assert run.motion is None and "head motion is not known" in " ".join(run.warnings)
    assert read_motion(run, N_VOLUMES).fd_mm is None


def test_other_folders_are_refused_by_name(tmp_path: Path):
    root = hcp_tree(tmp_path / "hcp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetMissing, match="MNINonLinear/Results"):
        find(tmp_path / "empty", input_type="hcp")
    with pytest.raises(DatasetMissing, match="--participant-label 100307"):
        find(root / "100307", input_type="hcp")


def test_two_folders_for_one_participant(tmp_path: Path):
    root = hcp_tree(tmp_path / "hcp")
    hcp_tree(root, "sub-100307", ("rfMRI_REST1_LR", "rfMRI_REST2_LR"))
    selection = find(root)
    assert [run.entities["run"] for run in selection.runs] == ["2"]
    (fault,) = selection.rejected
    assert "several folders stand for sub-100307_task-rest_dir-LR_run-1" in str(fault)


def motion_run(path: Path, convention: str) -> BoldRun:
    return BoldRun(Source(path.parent, "HCP"), {"sub": "01"}, (), motion=MotionFile(path, convention))


@pytest.mark.parametrize(
    ("convention", "text", "told"),
    [
        ("hcp", "1 2 3\n" * 3, "3 columns"),
        ("mcflirt", "0 0 0 0 0 0 0 0 0 0 0 0\n" * 3, "12 columns"),
        ("mcflirt", "0 0 0 0 0 0\n12 0 0 0 0 0\n0 0 0 0 0 0\n", "turns the head by 688 degrees"),
        ("hcp", "0 0 0 0 0 0\n0 0 0 0 x 0\n0 0 0 0 0 0\n", "no table of numbers"),
        ("hcp", "0 0 0 0 0 0\n0 0 0\n0 0 0 0 0 0\n", "no table of numbers"),
        ("hcp", "0 0 0 0 0 nan\n" * 3, "not finite"),
        ("hcp", "0 0 0 0 0 0\n" * 4, "4 rows for 3 volumes"),
        ("hcp", "", "empty"),
    ],
)
def test_motion_files_that_are_not_what_they_should_be(tmp_path: Path, convention: str, text: str, told: str):
    path = tmp_path / "motion.txt"
    path.write_text(text)
    with pytest.raises(ConfoundsUnusable, match=told):
        read_motion(motion_run(path, convention), 3)


def test_units_and_column_orders_differ_between_programs(tmp_path: Path):
    """The same movement in both files: 1 mm in z and a rotation of 2 degrees about y."""
    hcp, mcflirt = tmp_path / "Movement_Regressors.txt", tmp_path / "mcf.par"
    np.savetxt(hcp, np.hstack([[[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 2, 0]], np.ones((2, 6))]))
    np.savetxt(mcflirt, [[0, 0, 0, 0, 0, 0], [0, np.radians(2), 0, 0, 0, 1]])
    for path, convention in ((hcp, "hcp"), (mcflirt, "mcflirt")):
        fd_mm = read_motion(motion_run(path, convention), 2).fd_mm
        assert fd_mm[1] == pytest.approx(1 + 50 * np.pi / 90)
