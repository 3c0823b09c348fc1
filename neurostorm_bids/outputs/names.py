"""Names of output files: entities in BIDS order, suffixes, and the ``.bidsignore`` patterns that they need."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from neurostorm_bids.errors import ModelNamesCollide

# order of entities in file names, BIDS 1.11.1
_ORDER = "sub ses sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip inv mt part proc"
_ORDER += " hemi space split recording chunk seg res den label desc"
ENTITIES = tuple(_ORDER.split())
APP_DESC = "neurostorm"  # desc- of what does not depend on the model
_RUN_ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part")

# Suffixes that BIDS does not know. "sub-*" keeps the phenotype/ tables out: those are BIDS and stay validated.
BIDSIGNORE = (
    "figures",
    "group.html",
    "log",
    "sub-*.html",
    "sub-*_attribution.json",
    "sub-*_attribution.tsv",
    "sub-*_boldmap.json",
    "sub-*_boldmap.nii.gz",
    "sub-*_embedding.json",
    "sub-*_embedding.tsv",
    "sub-*_predictions.json",
    "sub-*_predictions.tsv",
    "sub-*_qc.json",
    "sub-*_qc.tsv",
)
SESSIONS_AS_ROWS = "phenotype/neurostorm_*"  # ignored only while a participant has more than one row in them


def desc_label(model_name: str) -> str:
    """A model's name as a BIDS label: letters and digits only (``ratio0.5`` becomes ``ratio05``)."""
    return re.sub(r"[^0-9a-zA-Z]", "", model_name)


def check_model_names(names: Iterable[str]) -> None:
    """Refuse models whose results would land in the same files.

    Raises
    ------
    ModelNamesCollide
        Two names are equal once reduced to letters and digits, or one has neither.
    """
    seen: dict[str, str] = {}
    for name in names:
        label = desc_label(name)
        if not label or label in seen:
            raise ModelNamesCollide(
                f"model names {seen.get(label, '')!r} and {name!r} give the same file names (desc-{label})",
                expected="names that differ in their letters and digits",
                remedy="rename one model folder, or run the models in separate output folders",
            )
        seen[label] = name


def file_name(entities: Mapping[str, str], suffix: str, extension: str) -> str:
    """BIDS file name with its entities in the order of the specification.

    Raises
    ------
    ValueError
        An entity is unknown, or a label holds anything but letters, digits and ``+``.
    """
    for key, value in entities.items():
        if key not in ENTITIES or not re.fullmatch(r"[0-9a-zA-Z+]+", value):
            raise ValueError(f"{key}-{value} is no BIDS entity")
    ordered = [f"{key}-{entities[key]}" for key in ENTITIES if key in entities]
    return "_".join([*ordered, suffix]) + extension


def run_file(
    output_dir: Path, entities: Mapping[str, str], *, template: str, desc: str, suffix: str, extension: str
) -> Path:
    """Place of a run's result: ``sub-X[/ses-Y]/func/<P>_space-<template>_res-model_desc-<desc>_<suffix><ext>``.

    Only the entities that tell runs apart are taken over; space, resolution and description are ours.
    """
    kept = {key: value for key, value in entities.items() if key in _RUN_ENTITIES}
    name = file_name({**kept, "space": template, "res": "model", "desc": desc}, suffix, extension)
    session = [f"ses-{entities['ses']}"] if "ses" in entities else []
    return Path(output_dir, f"sub-{entities['sub']}", *session, "func", name)


@dataclass(frozen=True)
class RunFiles:
    """Where the results of one run with one model lie; nothing needs to exist yet."""

    embedding: Path
    predictions: Path
    quality: Path
    bold: Path
    figures: Path

    @classmethod
    def of(
        cls,
        output_dir: Path,
        entities: Mapping[str, str],
        *,
        template: str,
        model_name: str,
        shared_desc: str = APP_DESC,
    ) -> RunFiles:
        """Places from the run's entities, the grid's template and the model's name.

        ``shared_desc`` is the label of quality table and normalised run (``RunRecord.desc``).
        """

        def place(desc: str, suffix: str, extension: str = ".tsv") -> Path:
            return run_file(output_dir, entities, template=template, desc=desc, suffix=suffix, extension=extension)

        label = desc_label(model_name)
        return cls(
            embedding=place(label, "embedding"),
            predictions=place(label, "predictions"),
            quality=place(shared_desc, "qc"),
            bold=place(shared_desc, "bold", ".nii.gz"),
            figures=Path(output_dir, f"sub-{entities['sub']}", "figures", place(shared_desc, "report", ".json").name),
        )


def sidecar_of(path: Path) -> Path:
    """The JSON sidecar beside a data file."""
    return path.with_name(path.name.split(".")[0] + ".json")


def parse_entities(path: Path) -> dict[str, str]:
    """Entities of a file name that this module wrote."""
    parts = path.name.split(".")[0].split("_")[:-1]
    return dict(part.split("-", 1) for part in parts)
