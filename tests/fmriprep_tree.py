"""Small fMRIPrep-style trees for tests: every part of a run can be left out or spoiled by the caller."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

# 8 mm, RAS, around the brain in MNI152NLin6Asym
SHAPE = (20, 24, 20)
AFFINE = np.array([[8.0, 0, 0, -76], [0, 8, 0, -112], [0, 0, 8, -68], [0, 0, 0, 1]])


def brain_mask() -> np.ndarray:
    """An ellipsoid of the size of a brain.  # (20, 24, 20) bool"""
    points = np.indices(SHAPE).reshape(3, -1).T @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    inside = ((points - [0, -18, 8]) ** 2 / np.array([66, 84, 66]) ** 2).sum(axis=1) < 1
    return inside.reshape(SHAPE)


def bold_data(seed: int, n_volumes: int = 20) -> np.ndarray:
    """Anatomy and fluctuations inside the ellipsoid, 0 outside.  # (20, 24, 20, n_volumes) float32"""
    generator = np.random.default_rng(seed)
    anatomy = 800 + 150 * generator.standard_normal((*SHAPE, 1))
    return ((anatomy + 15 * generator.standard_normal((*SHAPE, n_volumes))) * brain_mask()[..., None]).astype("f4")


def write_dataset(root: Path, **entries) -> Path:
    """An empty fMRIPrep dataset."""
    root.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "fMRIPrep - test",
        "BIDSVersion": "1.4.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}],
        **entries,
    }
    (root / "dataset_description.json").write_text(json.dumps(description))
    return root


def write_run(
    root: Path,
    name: str,
    *,
    seed: int = 0,
    t_r_s: float = 2.0,
    n_volumes: int = 20,
    data: np.ndarray | None = None,
    affine: np.ndarray = AFFINE,
    space: str = "MNI152NLin6Asym_res-2",
    mask: bool = True,
    confounds: bool = True,
) -> Path:
    """Add a run (``sub-01_ses-a_task-rest_run-1``) to a dataset; returns its BOLD file."""
    entities = dict(part.split("-") for part in name.split("_"))
    folder = root / f"sub-{entities['sub']}"
    folder = (folder / f"ses-{entities['ses']}" if "ses" in entities else folder) / "func"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}_space-{space}"
    image = nib.Nifti1Image(bold_data(seed, n_volumes) if data is None else data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = t_r_s
    bold = Path(f"{stem}_desc-preproc_bold.nii.gz")
    image.to_filename(bold)
    Path(f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": t_r_s, "TaskName": "rest"}))
    if mask:
        nib.Nifti1Image(brain_mask().astype("u1"), affine).to_filename(f"{stem}_desc-brain_mask.nii.gz")
    if confounds:
        rows = ["framewise_displacement", "n/a", *(f"{0.1 + 0.01 * (i % 5):.2f}" for i in range(n_volumes - 1))]
        (folder / f"{name}_desc-confounds_timeseries.tsv").write_text("\n".join(rows) + "\n")
    return bold
