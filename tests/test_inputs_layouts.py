"""Real layouts of fMRIPrep 1.5 to 25.2 and its siblings, against tables typed by hand from the lists."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from layout_trees import build, copy_filled, ends, find, spaces

from neurostorm_bids.errors import DatasetAmbiguous, DatasetMissing, NoUsableRun

TABLE = Path(__file__).parent / "data" / "layouts" / "circleci.tsv"


def expected_rows() -> list[dict[str, str]]:
    with TABLE.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def listed(path: Path) -> list[str]:
    """Files of a list, without folders and without the folder that the release put around the dataset."""
    names = [line.strip() for line in path.read_text().splitlines()]
    files = [name for name in names if "." in Path(name).name and "_desc" not in Path(name).suffix]
    return [re.sub(r"^(fmriprep|bids)/", "", name.lstrip("/")) for name in files]


@pytest.mark.parametrize("row", expected_rows(), ids=lambda row: row["list"].removesuffix("_outputs.txt"))
def test_fmriprep_releases(shared, tmp_path, row):
    path = shared / "real/layouts/fmriprep/circleci" / row["list"]
    root = build(tmp_path / "fmriprep", listed(path), version=row["list"].partition("_")[0])
    if row["images"] == "surface":
        with pytest.raises(NoUsableRun, match=r"only surface data.*--output-spaces MNI152NLin6Asym:res-2") as caught:
            find(root)
        assert caught.value.exit_code == 65
        return
    found = find(root)
    assert [run.name for run in found.runs] == row["runs"].split()
    assert not found.rejected and not found.warnings
    anat = row["anat_transforms"].replace("-", "").split()
    both_ways = {*anat, *(f"{target}>{source}" for source, target in (name.split(">") for name in anat))}
    for run in found.runs:
        assert spaces(run) == row["images"].split()
        assert all(image.mask is not None and image.boldref is not None for image in run.images)
        assert {name for name in ends(run) if "MNI" in name} == both_ways
        func = {name for name in ends(run) if "MNI" not in name} - {"T1w>boldref"}
        assert func == set(row["bold_transforms"].replace("-", "").split())
        assert (run.t_r_s, run.start_time_s, run.mean_removed, run.warnings) == (2.0, 0.0, False, ())
        assert run.confounds is not None and run.source.version == row["list"].partition("_")[0]


def test_all_lists_are_in_the_table(shared):
    lists = {path.name for path in (shared / "real/layouts/fmriprep/circleci").glob("*_outputs.txt")}
    assert lists == {row["list"] for row in expected_rows()}


def test_openneuro_derivatives(shared, tmp_path):
    root = copy_filled(shared / "real/layouts/OpenNeuroDerivatives/ds000001-fmriprep", tmp_path / "fmriprep")
    found = find(root)
    assert [run.name for run in found.runs] == [
        f"sub-0{subject}_task-balloonanalogrisktask_run-{run}" for subject in (1, 2, 3) for run in (1, 2, 3)
    ]
    assert {tuple(spaces(run)) for run in found.runs} == {("boldref", "MNI152NLin2009cAsym:2", "T1w")}
    assert all(
        ends(run)
        == {
            "boldref>T1w",
            "T1w>boldref",
            "T1w>MNI152NLin6Asym",
            "MNI152NLin6Asym>T1w",
            "T1w>MNI152NLin2009cAsym",
            "MNI152NLin2009cAsym>T1w",
        }
        for run in found.runs
    )
    assert (found.dataset.pipeline, found.dataset.version) == ("fMRIPrep", "21.0.1")
    assert {run.t_r_s for run in found.runs} == {2.0}


def test_openneuro_derivatives_aroma(shared, tmp_path):
    root = copy_filled(shared / "real/layouts/OpenNeuroDerivatives/ds000001-fmriprep", tmp_path / "fmriprep")
    (run,) = find(root, desc="smoothAROMAnonaggr", participant_label=("02",)).runs[:1]
    assert spaces(run) == ["MNI152NLin6Asym"]
    assert run.images[0].mask is None  # none was written in this space
    assert "AROMA" in run.source.denoising and run.mean_removed is False


def test_openneuro_as_it_lies_has_placeholders(shared):
    with pytest.raises(NoUsableRun, match=r"is empty \(0 bytes\)") as caught:
        find(shared / "real/layouts/OpenNeuroDerivatives/ds000001-fmriprep")
    assert "placeholder" in str(caught.value) and len(str(caught.value)) < 2000


def test_bids_examples_fmriprep(shared, tmp_path):
    found = find(copy_filled(shared / "real/layouts/bids-examples/ds000001-fmriprep", tmp_path / "fmriprep"))
    assert [run.name for run in found.runs] == [
        f"sub-{subject}_task-balloonanalogrisktask_run-{run}" for subject in (10, 11, 13, 16) for run in (1, 2, 3)
    ]
    assert {tuple(spaces(run)) for run in found.runs} == {("MNI152NLin2009cAsym:2",)}


def test_bids_examples_synthetic_below_raw(shared, tmp_path):
    root = copy_filled(shared / "real/layouts/bids-examples/synthetic", tmp_path / "raw")
    found = find(root)  # a valid raw dataset: the validator has no objection
    assert found.raw == root and found.dataset.root == root / "derivatives" / "fmriprep"
    names = [
        f"sub-0{s}_ses-0{v}_task-{t}"
        for s in range(1, 6)
        for v in (1, 2)
        for t in ("nback_run-01", "nback_run-02", "rest")
    ]
    assert [run.name for run in found.runs] == names
    for run in found.runs:
        assert spaces(run) == ["MNI152NLin2009cAsym", "T1w"]
        assert all("label-brain_mask" in image.mask.name for image in run.images)
        assert run.t_r_s == 2.5 and run.confounds.name == f"{run.name}_timeseries.tsv"
        assert (run.events is not None) == ("nback" in run.name)  # by inheritance, from the raw dataset's own level


@pytest.mark.parametrize("start", ["synthetic", "synthetic/derivatives/fmriprep"])
def test_pybids_synthetic_twins(shared, tmp_path, start):
    copy_filled(shared / "real/layouts/pybids/synthetic", tmp_path / "synthetic")
    found = find(tmp_path / start, skip_bids_validation=True)
    assert len(found.runs) == 30
    assert found.raw == tmp_path / "synthetic"
    for run in found.runs:  # .nii and .nii.gz of every image lie side by side
        assert spaces(run) == ["MNI152NLin2009cAsym", "T1w"]
        assert all(path.suffix == ".gz" for image in run.images for path in (image.bold, image.mask))
        assert any("there is a .nii and a .nii.gz" in warning for warning in run.warnings)
        assert run.confounds.name.endswith("_desc-confounds_regressors.tsv")


def test_pybids_ds005_picks_fmriprep_among_siblings(shared, tmp_path):
    root = copy_filled(shared / "real/layouts/pybids/ds005", tmp_path / "ds005")
    found = find(root, skip_bids_validation=True)
    assert found.dataset.root == root / "derivatives" / "fmriprep"
    assert [run.name for run in found.runs] == [
        f"sub-{s:02d}_task-mixedgamblestask_run-{r:02d}" for s in range(1, 17) for r in (1, 2, 3)
    ]
    assert all(run.t_r_s == 2.0 and run.events.name == f"{run.name}_events.tsv" for run in found.runs)


def test_pybids_odd_derivatives(shared, tmp_path):
    root = copy_filled(shared / "real/layouts/pybids/ds005_derivs", tmp_path / "derivs")
    with pytest.raises(DatasetAmbiguous, match=r"dummy.*--derivatives dummy=.*--derivatives dummy-vx\.x\.x="):
        find(root)
    for name, gap in {
        "no_dataset_type": "DatasetType missing",
        "no_pipeline_description": "GeneratedBy missing",
        "no_type_or_description": "DatasetType and GeneratedBy missing",
    }.items():
        found = find(root / "format_errs" / name)
        assert [spaces(run) for run in found.runs] == [["boldref"]] * 3
        assert any(gap in warning for warning in found.warnings)
    assert len(find(tmp_path / "derivs", derivatives=(("dummy", root / "dummy"),)).runs) == 3


@pytest.mark.parametrize("name", ["bids-examples/ds005", "bids-examples/hcp_example_bids", "pybids/ds005_conflict"])
def test_raw_alone(shared, name):
    with pytest.raises(DatasetMissing, match=r"holds no derivatives of fMRIPrep.*--derivatives NAME=PATH"):
        find(shared / "real/layouts" / name)


@pytest.mark.parametrize(
    "name, desc, runs",
    [
        (
            "ds001419_nifti",
            "denoised",
            {
                "sub-01_task-imagery_run-01": ["MNI152NLin6Asym:2"],
                "sub-01_task-imagery_run-02": ["MNI152NLin6Asym:2"],
                "sub-01_task-rest": ["MNI152NLin6Asym:2"],
            },
        ),
        ("ukbiobank", "denoisedSmoothed", {"sub-0000001_ses-01_task-rest": ["MNI152NLin6Asym"]}),
        ("nibabies", "denoised", {"sub-01_ses-1mo_task-rest_acq-PA_run-001": ["MNIInfant:cohort-1"]}),
    ],
)
def test_xcp_d(shared, tmp_path, name, desc, runs):
    paths = listed(shared / "real/layouts/xcp_d/tests_data" / f"test_{name}_outputs.txt")
    root = build(tmp_path / "xcp_d", paths, pipeline="XCP-D", version="26.1.1")
    with pytest.raises(NoUsableRun, match=r"no desc-preproc volume.*found desc denoised.*--desc denoised"):
        find(root)
    found = find(root, desc=desc)
    assert {run.name: spaces(run) for run in found.runs} == runs
    assert all(run.mean_removed is True and "XCP-D" in run.source.denoising for run in found.runs)
    assert all(run.confounds.name.endswith("_motion.tsv") for run in found.runs)


@pytest.mark.parametrize("name", ["ds001419_cifti", "pnc_cifti", "pnc_cifti_t2wonly"])
def test_xcp_d_cifti_alone(shared, tmp_path, name):
    paths = listed(shared / "real/layouts/xcp_d/tests_data" / f"test_{name}_outputs.txt")
    root = build(tmp_path / "xcp_d", paths, pipeline="XCP-D", version="26.1.1")
    with pytest.raises(NoUsableRun, match=r"only surface data \(found space-fsLR dtseries.nii"):
        find(root, desc="denoised")


def test_nibabies(shared, tmp_path):
    paths = listed(shared / "real/layouts/nibabies/bcp_full_outputs.txt")
    (run,) = find(build(tmp_path / "nibabies", paths, pipeline="NiBabies", version="25.1.0")).runs
    assert run.name == "sub-01_ses-1mo_task-rest_acq-PA_run-001"
    assert spaces(run) == ["boldref", "MNIInfant:cohort-1"]
    assert {"boldref>T1w", "T1w>MNIInfant:cohort-1", "MNIInfant:cohort-1>T1w"} <= ends(run)


def test_nibabies_anatomy_alone(shared, tmp_path):
    paths = listed(shared / "real/layouts/nibabies/bcp_anat_outputs.txt")
    with pytest.raises(NoUsableRun, match="no functional files"):
        find(build(tmp_path / "nibabies", paths, pipeline="NiBabies"))


def test_fmripost_aroma(shared, tmp_path):
    paths = listed(shared / "real/layouts/fmripost-aroma/tests_data/test_ds005115_deriv_only_outputs.txt")
    root = build(tmp_path / "aroma", paths, pipeline="fMRIPost-AROMA", version="0.0.12")
    (run,) = find(root, desc="nonaggrDenoised").runs
    assert (run.name, spaces(run)) == ("sub-01_ses-01_task-rest", ["MNI152NLin6Asym:2"])
    assert run.source.denoising.startswith("ICA-AROMA")
