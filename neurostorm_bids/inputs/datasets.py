"""Which datasets are meant: an fMRIPrep folder, or a raw dataset and the derivatives that belong to it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neurostorm_bids.errors import DatasetAmbiguous, DatasetMissing, NeurostormError
from neurostorm_bids.inputs.names import io_spec
from neurostorm_bids.inputs.presence import is_folder
from neurostorm_bids.inputs.runs import Source
from neurostorm_bids.inputs.sidecars import Metadata, read_json

PEEKED_PARTICIPANTS = 3  # enough to tell raw names from derivative ones

DERIVATIVE_NAME = re.compile(r"_desc-|_space-.*_(bold|boldref|mask|dseg|probseg)\.")

Kind = Literal["raw", "derivative", "container"]


@dataclass(frozen=True)
class Dataset:
    """A BIDS dataset as its description and its tree show it."""

    root: Path
    kind: Kind
    pipeline: str = "unknown"  # name in the first GeneratedBy entry
    version: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """The dataset as runs name it."""
        return Source(self.root, self.pipeline, self.version)

    @property
    def role(self) -> str | None:
        """What its pipeline does: "preprocessing", "denoising", "other" (no BOLD at all), or None where unknown."""
        return io_spec()["pipelines"].get(_plain(self.pipeline), {}).get("kind")


@dataclass(frozen=True)
class Scope:
    """The derivative datasets to search, in the user's order, and the raw dataset they come from."""

    derivatives: tuple[Dataset, ...]
    raw: Dataset | None = None
    warnings: tuple[str, ...] = ()


def locate(bids_dir: Path, named: tuple[tuple[str, Path], ...] = ()) -> Scope:
    """Datasets behind ``BIDS_DIR`` and ``--derivatives NAME=PATH``.

    Raises
    ------
    DatasetMissing
        When a folder does not exist or holds no derivatives.
    DatasetAmbiguous
        When a tree holds several preprocessed datasets and none is named.
    """
    own = _with_bold(describe(bids_dir))
    extra = tuple(_only(_with_bold(describe(path))) for _, path in named)
    if own.kind == "derivative":
        derivatives = (own, *(one for one in extra if one.root.resolve() != own.root.resolve()))
        raw = _raw_above(own.root)
    else:
        raw = own if own.kind == "raw" else None
        derivatives = extra or (_search(own),)
    found = (*derivatives, *([raw] if raw is not None else []))
    return Scope(derivatives, raw, tuple(warning for dataset in found for warning in dataset.warnings))


def describe(root: Path) -> Dataset:
    """A dataset from its ``dataset_description.json``, and from its tree where that says too little.

    Raises
    ------
    DatasetMissing
        When the folder does not exist or is empty.
    """
    if not root.is_dir() or not any(root.iterdir()):
        raise DatasetMissing(
            "is empty" if root.is_dir() else "is no folder",
            file=root,
            expected="an fMRIPrep output folder, or a raw BIDS dataset with derivatives",
            remedy="Check the path and, in a container, what is mounted; in a DataLad dataset run `datalad get` on it",
        )
    description, warnings = _description(root)
    pipeline, version = _generator(description)
    kind = _kind(root, description, pipeline)
    if kind == "derivative" and not warnings:
        warnings = _gaps(root, description, pipeline)
    return Dataset(root, kind, pipeline or "unknown", version, tuple(warnings) if kind != "container" else ())


def _description(root: Path) -> tuple[Metadata, list[str]]:
    path = root / "dataset_description.json"
    if not os.path.lexists(path):
        return {}, [f"{path}: missing; what wrote this dataset is judged from file names"]
    try:
        return read_json(path), []
    except NeurostormError as fault:
        return {}, [f"{fault} What wrote this dataset is judged from file names."]


def _generator(description: Metadata) -> tuple[str | None, str | None]:
    entries = description.get("GeneratedBy")
    entry = entries[0] if isinstance(entries, list) and entries else description.get("PipelineDescription")
    if not isinstance(entry, dict) or not entry.get("Name"):
        return None, None
    version = entry.get("Version")
    return str(entry["Name"]), str(version) if version else None


def _kind(root: Path, description: Metadata, pipeline: str | None) -> Kind:
    stated = description.get("DatasetType")
    if stated in ("raw", "derivative"):
        return stated
    # raw datasets name their converter in GeneratedBy, hence the look at the pipeline's name
    if "PipelineDescription" in description or (pipeline and _plain(pipeline) in io_spec()["pipelines"]):
        return "derivative"
    names = _some_names(root)
    if names is None:
        return "raw" if description else "container"
    return "derivative" if any(DERIVATIVE_NAME.search(name) for name in names) else "raw"


def _some_names(root: Path) -> list[str] | None:
    with os.scandir(root) as entries:
        folders = sorted(entry.path for entry in entries if entry.name.startswith("sub-") and is_folder(entry))
    if not folders:
        return None
    return [name for folder in folders[:PEEKED_PARTICIPANTS] for _, _, names in os.walk(folder) for name in names]


def _gaps(root: Path, description: Metadata, pipeline: str | None) -> list[str]:
    path = root / "dataset_description.json"
    missing = [] if description.get("DatasetType") else ["DatasetType"]
    missing += [] if description.get("GeneratedBy") or description.get("PipelineDescription") else ["GeneratedBy"]
    gaps = [f"{path}: {' and '.join(missing)} missing; taken for a derivative dataset"] if missing else []
    if pipeline and _plain(pipeline) not in io_spec()["pipelines"]:
        gaps.append(f"{path}: pipeline {pipeline!r} is not known; its files are read as fMRIPrep's")
    return gaps


def _plain(pipeline: str) -> str:
    return re.sub(r"[^a-z0-9]", "", pipeline.lower())


def _with_bold(dataset: Dataset) -> Dataset:
    if dataset.kind != "derivative" or dataset.role != "other":
        return dataset
    raise DatasetMissing(
        f"was written by {dataset.pipeline}",
        file=dataset.root,
        expected="the output of fMRIPrep or of a pipeline that names files as it does",
        remedy="Name that folder",
    )


# --- search -----------------------------------------------------------------------------------------------------


def _only(dataset: Dataset) -> Dataset:
    if dataset.kind == "derivative":
        return dataset
    if dataset.kind == "container":
        return _search(dataset)
    raise DatasetMissing(
        "is a raw dataset", file=dataset.root, expected="derivatives", remedy="Name a derivative with --derivatives"
    )


def _search(dataset: Dataset) -> Dataset:
    for place in (dataset.root / "derivatives", dataset.root):
        found = _derivatives_in(place)
        if found:
            return _choose(dataset.root, found)
    if dataset.root.name.startswith("sub-"):
        raise DatasetMissing(
            "is the folder of one participant",
            file=dataset.root,
            expected="the dataset",
            remedy=f"Give {dataset.root.parent} --participant-label {dataset.root.name.removeprefix('sub-')}",
        )
    raise DatasetMissing(
        "holds no derivatives of fMRIPrep",
        file=dataset.root,
        expected="an fMRIPrep output folder, or a raw dataset with derivatives/fmriprep*",
        remedy="Run fMRIPrep with --output-spaces MNI152NLin6Asym:res-2, or name its output: --derivatives NAME=PATH",
    )


def _derivatives_in(place: Path) -> list[Dataset]:
    if not place.is_dir():
        return []
    if place.name == "derivatives" and _some_names(place) is not None:
        return [describe(place)]
    folders = sorted(path for path in place.iterdir() if path.is_dir() and _is_candidate(path))
    described = [one for one in map(describe, folders) if one.role != "other"]
    versions = [version for one in described if one.kind == "container" for version in _derivatives_in(one.root)]
    return [one for one in described if one.kind == "derivative" or _is_named_so(one.root)] + versions


def _is_candidate(path: Path) -> bool:
    if path.name.startswith(("sub-", ".", "sourcedata")):
        return False
    return path.name.startswith("fmriprep") or _some_names(path) is not None


def _is_named_so(root: Path) -> bool:
    return root.name.startswith("fmriprep") and _some_names(root) is not None


def _choose(root: Path, found: list[Dataset]) -> Dataset:
    preprocessed = [
        one for one in found if one.role == "preprocessing" or "fmriprep" in (one.root.name[:8], one.root.parent.name)
    ]
    if len(preprocessed) == 1:
        return preprocessed[0]
    unknown = [one for one in found if one.role is None]
    if not preprocessed and len(unknown) == 1:
        return unknown[0]
    candidates = preprocessed or found
    raise DatasetAmbiguous(
        f"holds {_listed(candidates)}",
        file=root,
        expected="one preprocessed dataset",
        remedy="Name the one you mean: " + " or ".join(f"--derivatives {_option(one)}" for one in candidates),
    )


def _listed(datasets: Iterable[Dataset]) -> str:
    return " and ".join(
        f"{one.root.name} ({one.pipeline}{f' {one.version}' if one.version else ''})" for one in datasets
    )


def _option(dataset: Dataset) -> str:
    return f"{dataset.root.name}={dataset.root}"


def _raw_above(root: Path) -> Dataset | None:
    """The raw dataset of ``<raw>/derivatives/<pipeline>``: its events and sidecars are worth having."""
    if root.parent.name != "derivatives" or not (root.parent.parent / "dataset_description.json").is_file():
        return None
    above = describe(root.parent.parent)
    return above if above.kind == "raw" else None
