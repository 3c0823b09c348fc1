"""Skeleton datasets from lists of file names, with a few bytes in each file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from neurostorm_bids.inputs import Selection, find_runs
from neurostorm_bids.settings import Settings

CONTENT = b"stands for data"
FULL = (  # what fMRIPrep 23.1 writes for a run, at --level full
    "desc-preproc_bold.nii.gz",
    "desc-brain_mask.nii.gz",
    "boldref.nii.gz",
    "space-T1w_desc-preproc_bold.nii.gz",
    "space-T1w_desc-brain_mask.nii.gz",
    "space-T1w_boldref.nii.gz",
    "space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
    "space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz",
    "space-MNI152NLin6Asym_res-2_boldref.nii.gz",
    "desc-confounds_timeseries.tsv",
    "desc-confounds_timeseries.json",
    "from-scanner_to-T1w_mode-image_xfm.txt",
    "from-T1w_to-scanner_mode-image_xfm.txt",
)
ANAT = ("from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5", "from-MNI152NLin6Asym_to-T1w_mode-image_xfm.h5")


def run_files(prefix: str, endings: Iterable[str] = FULL) -> list[str]:
    """Paths of a run's files: ``run_files("sub-01_ses-1_task-rest", ["desc-preproc_bold.nii.gz"])``."""
    folder = "/".join(part for part in prefix.split("_") if part.startswith(("sub-", "ses-")))
    return [f"{folder}/func/{prefix}_{ending}" for ending in endings]


def anat_files(prefix: str, endings: Iterable[str] = ANAT) -> list[str]:
    """Paths of a participant's anatomical files, at the level of the session if the prefix names one."""
    folder = "/".join(part for part in prefix.split("_") if part.startswith(("sub-", "ses-")))
    return [f"{folder}/anat/{prefix}_{ending}" for ending in endings]


def build(
    root: Path, paths: Iterable[str], *, pipeline: str | None = "fMRIPrep", version: str = "23.1.4", t_r_s: float = 2.0
) -> Path:
    """Write the files; every BOLD volume gets a JSON sidecar with its repetition time."""
    root.mkdir(parents=True, exist_ok=True)
    if pipeline is not None:
        describe(root, DatasetType="derivative", GeneratedBy=[{"Name": pipeline, "Version": version}])
    for path in paths:
        if path == "dataset_description.json":
            continue
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{}" if path.endswith(".json") else CONTENT)
        if path.endswith(("_bold.nii.gz", "_bold.nii")):
            write_json(file.with_name(file.name.partition(".")[0] + ".json"), RepetitionTime=t_r_s)
    return root


def describe(root: Path, **content) -> None:
    """Write ``dataset_description.json``."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / "dataset_description.json", Name="skeleton", BIDSVersion="1.8.0", **content)


def write_json(path: Path, **content) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content))


def copy_filled(source: Path, target: Path, but: Iterable[str] = ("_tree.tsv",)) -> Path:
    """Copy a tree of real names, with a few bytes in place of each empty image, table or transform."""
    for file in sorted(source.rglob("*")):
        if file.is_file() and file.name not in but:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.stat().st_size == 0 and file.suffix != ".json":
                copy.write_bytes(CONTENT)
            else:
                shutil.copyfile(file, copy)
    return target


def find(root: Path, **options) -> Selection:
    """Runs of a dataset under the given settings."""
    return find_runs(
        Settings(
            bids_dir=root, output_dir=root.parent / "out", level="participant", work_dir=root.parent / "w", **options
        )
    )


def spaces(run) -> list[str]:
    """Spaces of a run's images, with ``:res`` where there is one."""
    return [image.space + (f":{image.resolution}" if image.resolution else "") for image in run.images]


def ends(run) -> set[str]:
    """Transforms of a run as ``source>target``."""
    return {f"{transform.source}>{transform.target}" for transform in run.transforms}
