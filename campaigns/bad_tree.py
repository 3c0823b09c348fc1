"""What defects are planted in: two good runs, and one that a defect spoils."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from campaigns.scenarios import write_tiny_model

SHAPE, N_VOLUMES, T_R_S = (14, 16, 14), 20, 2.0
AFFINE = np.array([[12.0, 0, 0, -78], [0, 12, 0, -108], [0, 0, 12, -70], [0, 0, 0, 1]])
TEMPLATE = "MNI152NLin6Asym"
VICTIM = "sub-02_task-rest"
OTHERS = ("sub-01_task-rest", "sub-02_task-nback")
DESCRIPTION = {
    "Name": "fMRIPrep - campaign",
    "BIDSVersion": "1.4.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}],
}


@dataclass(frozen=True)
class Case:
    """The files of one case, below a folder of its own; what a defect is planted in."""

    folder: Path
    space: str = TEMPLATE

    @property
    def dataset(self) -> Path:
        """The fMRIPrep derivatives."""
        return self.folder / "fmriprep"

    @property
    def func(self) -> Path:
        """The folder of the spoilt run."""
        return self.dataset / "sub-02/func"

    @property
    def anat(self) -> Path:
        """The folder of the spoilt run's transforms."""
        return self.dataset / "sub-02/anat"

    @property
    def bold(self) -> Path:
        """The series of the spoilt run."""
        return self.func / f"{VICTIM}_space-{self.space}_desc-preproc_bold.nii.gz"

    @property
    def sidecar(self) -> Path:
        """Its JSON file."""
        return Path(str(self.bold).replace(".nii.gz", ".json"))

    @property
    def mask(self) -> Path:
        """Its brain mask."""
        return Path(str(self.bold).replace("desc-preproc_bold", "desc-brain_mask"))

    @property
    def confounds(self) -> Path:
        """Its confounds."""
        return self.func / f"{VICTIM}_desc-confounds_timeseries.tsv"

    @property
    def transform(self) -> Path:
        """The way from its T1w image to the template, where the run lies in T1w space."""
        return self.anat / f"sub-02_from-T1w_to-{TEMPLATE}_mode-image_xfm.h5"

    @property
    def model(self) -> Path:
        """A model folder."""
        return self.folder / "tiny"

    def words(self, text: str) -> str:
        """A word of a command line: {} stands for the folder."""
        return text.replace("{}", str(self.folder))

    def image(self, change: Callable[[Any], Any], path: Path | None = None) -> None:
        """Change the header or the voxels of an image, and write it as it is then."""
        path = path or self.bold
        raw = nibabel.load(path)
        image = nibabel.Nifti1Image(np.asarray(raw.dataobj), raw.affine, raw.header)  # type: ignore[attr-defined]
        (change(image) or image).to_filename(path)

    def bytes(self, change: Callable[[bytearray], Any], path: Path | None = None) -> None:
        """Change an image's uncompressed bytes: header fields that no library would write."""
        import gzip

        path = path or self.bold
        content = bytearray(gzip.decompress(path.read_bytes()))
        change(content)
        path.write_bytes(gzip.compress(bytes(content), 1))


def write_base(folder: Path, space: str = TEMPLATE, victim: bool = True) -> Case:
    """A dataset with the run to spoil (or without it), and a small model."""
    case = Case(folder, space)
    case.dataset.mkdir(parents=True)
    (case.dataset / "dataset_description.json").write_text(json.dumps(DESCRIPTION))
    for seed, name in enumerate(OTHERS):
        write_run(case.dataset, name, seed)
    if victim:
        write_run(case.dataset, VICTIM, len(OTHERS), space)
    if victim and space == "T1w":
        write_h5(case.transform)
    write_tiny_model(folder)
    (folder / "linear.yml").write_text("plugin: Linear\n")
    return case


def write_run(root: Path, name: str, seed: int, space: str = TEMPLATE, n_volumes: int = N_VOLUMES) -> Path:
    """One run with mask, sidecar and confounds."""
    folder = root / name.split("_")[0] / "func"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}_space-{space}"
    image = nibabel.Nifti1Image(series(seed, n_volumes), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = T_R_S
    image.to_filename(f"{stem}_desc-preproc_bold.nii.gz")
    Path(f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": T_R_S, "TaskName": "rest"}))
    nibabel.Nifti1Image(brain().astype("u1"), AFFINE).to_filename(f"{stem}_desc-brain_mask.nii.gz")
    rows = [
        "framewise_displacement\tcsf",
        "n/a\t1.5",
        *(f"{0.1 + 0.01 * (i % 5):.2f}\t1.{i}" for i in range(n_volumes - 1)),
    ]
    (folder / f"{name}_desc-confounds_timeseries.tsv").write_text("\n".join(rows) + "\n")
    return Path(f"{stem}_desc-preproc_bold.nii.gz")


def brain() -> np.ndarray:
    """An ellipsoid of the size of a brain.  # (x, y, z) bool"""
    points = np.indices(SHAPE).reshape(3, -1).T @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    return (((points - [0, -18, 8]) ** 2 / np.array([66, 84, 66]) ** 2).sum(axis=1) < 1).reshape(SHAPE)


def series(seed: int, n_volumes: int = N_VOLUMES) -> np.ndarray:
    """Anatomy and fluctuations inside the ellipsoid.  # (x, y, z, t) float32"""
    generator = np.random.default_rng(seed)
    anatomy = 800 + 150 * generator.standard_normal((*SHAPE, 1))
    changes = 15 * generator.standard_normal((*SHAPE, n_volumes))
    return ((anatomy + changes) * brain()[..., None]).astype("f4")


def write_h5(path: Path, parameters: Any = None, kind: str = "AffineTransform_double_3_3") -> None:
    """An ITK transform file as HDF5; without parameters it moves nothing."""
    import h5py

    values = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], float) if parameters is None else np.asarray(parameters)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        groups = [("CompositeTransform_double_3_3", None), (kind, values)]
        for number, (name, stored) in enumerate(groups):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = [name.encode()]
            if stored is not None:
                group["TransformFixedParameters"] = np.zeros(3)
                group["TransformParameters"] = stored
