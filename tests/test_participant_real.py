"""The participant level on real images that nobody on this project made (skipped where they are not at hand)."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fmriprep_tree import write_dataset

from neurostorm_bids.cli import main
from neurostorm_bids.outputs import read_tsv

ON_GRID = (
    "bold/derived/sub-01_task-mixedgamblestask_run-02_space-MNI152NLin6Asym_res-2_desc-subcortexFromCifti_bold.nii.gz"
)


def add_run(root: Path, label: str, image: nib.Nifti1Image, t_r_s: float, mask: nib.Nifti1Image | None = None) -> Path:
    folder = root / f"sub-{label}" / "func"
    folder.mkdir(parents=True)
    stem = folder / f"sub-{label}_task-rest_space-MNI152NLin6Asym_res-2"
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = t_r_s
    image.to_filename(f"{stem}_desc-preproc_bold.nii.gz")
    Path(f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": t_r_s}))
    if mask is not None:
        mask.to_filename(f"{stem}_desc-brain_mask.nii.gz")
    return Path(f"{stem}_desc-preproc_bold.nii.gz")


def call(root: Path, *extra: str) -> int:
    plugin = root.parent / "linear.yml"
    plugin.write_text("plugin: Linear\n")
    return main(
        [str(root), str(root.parent / "out"), "participant", "-w", str(root.parent / "work"), "--model", "demo",
         "--use-plugin", str(plugin), "--offline", "--min-coverage", "0", *extra]
    )  # fmt: skip


def embedding(root: Path, label: str) -> np.ndarray:
    (path,) = (root.parent / "out" / f"sub-{label}").rglob("*_embedding.tsv")
    rows = read_tsv(path)
    return np.array([[float(row[key]) for key in row if key[1:].isdigit()] for row in rows])


def test_sixteen_volumes_on_the_grid_suffice_at_2_s_and_not_at_08_s(shared, tmp_path, capfd):
    image = nib.load(shared / "real" / ON_GRID)
    data = np.asarray(image.dataobj)
    mask = nib.Nifti1Image((data != 0).any(axis=-1).astype("u1"), image.affine)
    root = write_dataset(tmp_path / "fmriprep")
    add_run(root, "slow", nib.Nifti1Image(data, image.affine), 2.0, mask)
    short = add_run(root, "fast", nib.Nifti1Image(data, image.affine), 0.8, mask)
    assert call(root) == 1
    assert embedding(root, "slow").shape == (2, 96)
    err = capfd.readouterr().err
    assert f"failed: {short}" not in err.splitlines()[0]
    assert "16 volumes at TR 0.8 s are 12.8 s, or 16 frames of 0.8 s. expected at least 20 frames" in err


def test_one_brain_stored_left_to_right_and_right_to_left_gives_one_embedding(shared, tmp_path):
    root = write_dataset(tmp_path / "fmriprep")
    factors = 1 + 0.02 * np.random.default_rng(0).standard_normal(12)
    for label in ("LR", "RL"):
        still = nib.load(shared / "real/bold/oro.nifti" / f"mni{label}.nii.gz")
        data = np.asarray(still.dataobj, dtype=np.float32)[..., None] * factors.astype(np.float32)
        add_run(root, label, nib.Nifti1Image(data, still.affine), 2.0)
    assert call(root) == 0
    left, right = embedding(root, "LR"), embedding(root, "RL")
    assert np.abs(left - right).max() <= 1e-6 * np.abs(left).max()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("oro.nifti/filtered_func_data.nii.gz", "sform_code and qform_code are 0"),
        ("nipype/ds003_sub-01_mc.nii.gz", "sform_code and qform_code are 0"),
        ("qap/mean_functional.nii.gz", "the image is 3D"),
        ("niimath/3vols.nii.gz", "3 volumes"),
        ("nibabel/example4d.nii.gz", "2000"),
    ],
)
def test_real_images_that_cannot_be_used_say_why(shared, tmp_path, capfd, name, fault):
    root = write_dataset(tmp_path / "fmriprep")
    folder = root / "sub-01/func"
    folder.mkdir(parents=True)
    bold = folder / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    bold.symlink_to(shared / "real/bold" / name)
    assert call(root) == 65
    err = capfd.readouterr().err
    assert fault in err
    assert str(bold) in err
    assert "Traceback" not in err


def test_a_real_run_of_82_volumes_off_the_grid(shared, tmp_path, capfd):
    root = write_dataset(tmp_path / "fmriprep")
    folder = root / "sub-01/func"
    folder.mkdir(parents=True)
    bold = folder / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    name = "sub-ds205s03_task-functionallocalizer_run-01_bold_volreg.nii.gz"
    bold.symlink_to(shared / "real/bold/niworkflows" / name)
    assert call(root) == 0
    # 82 volumes of 2.2 s are 225 or 226 frames of 0.8 s: eleven clips
    assert embedding(root, "01").shape == (11, 96)
    assert "template brain is outside the image" in capfd.readouterr().err
