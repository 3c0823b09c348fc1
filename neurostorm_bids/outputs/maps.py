"""Attribution maps: an image and a table by network and parcel, of a run or of a participant, each with its sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurostorm_bids.attribution.summary import Share
from neurostorm_bids.outputs.atomic import replacing, sha256, write_json, write_text
from neurostorm_bids.outputs.names import run_file, sidecar_of
from neurostorm_bids.outputs.nifti import write_nifti_gz
from neurostorm_bids.outputs.records import ModelRecord
from neurostorm_bids.outputs.resume import DATA_HASH, KEY
from neurostorm_bids.outputs.sidecars import model_sidecar, resolution, software_versions, spatial_reference
from neurostorm_bids.outputs.tables import Column, describe_columns, tsv_text
from neurostorm_bids.space.grid import Grid


@dataclass(frozen=True, kw_only=True)
class MapRecord:
    """What the files of a map say of it.

    Parameters
    ----------
    entities
        Of the run; of a participant's mean only ``sub``.
    desc
        Label of the map, from target, class and method.
    description
        In words.
    unit
        Of the map and of the column ``attribution``.
    sources
        BIDS URIs of what it was made from.
    attribution
        Method, target, completeness, sanity check and more, as the sidecar shows it.
    """

    entities: Mapping[str, str]
    desc: str
    grid: Grid
    model: ModelRecord
    description: str
    unit: str
    sources: Sequence[str]
    attribution: Mapping[str, Any]
    resume_key: str
    warnings: tuple[str, ...] = field(default_factory=tuple)


def map_files(output_dir: Path, entities: Mapping[str, str], template: str, desc: str) -> tuple[Path, Path]:
    """Image and table of a map; nothing needs to exist yet."""
    image, table = (
        run_file(output_dir, entities, template=template, desc=desc, suffix=suffix, extension=extension)
        for suffix, extension in (("boldmap", ".nii.gz"), ("attribution", ".tsv"))
    )
    return image, table


def write_map(output_dir: Path, record: MapRecord, values: np.ndarray, rows: Sequence[Share]) -> tuple[Path, Path]:
    """Write a map, its table, and last their sidecars, which make them complete.

    Parameters
    ----------
    values : ndarray of shape (X, Y, Z)
        On the grid of the record; 0 outside the brain.
    """
    image, table = map_files(output_dir, record.entities, record.grid.template, record.desc)
    with replacing(image) as handle:
        write_nifti_gz(handle, [np.asarray(values, np.float32)], grid=record.grid, n_frames=1, step_s=1.0)
    columns = _columns(rows, record.unit)
    write_text(table, tsv_text(columns))
    write_json(sidecar_of(table), _sidecar(record, table, f"{record.description} By network and parcel.", columns))
    write_json(sidecar_of(image), _sidecar(record, image, record.description, ()))
    return image, table


def _sidecar(record: MapRecord, path: Path, description: str, columns: Sequence[Column]) -> dict[str, Any]:
    image = {"SkullStripped": True, "Units": record.unit} if not columns else {}
    return {
        "Description": description,
        "Sources": list(record.sources),
        "Resolution": resolution(record.grid),
        "SpatialReference": spatial_reference(record.grid.template),
        **image,
        "Attribution": dict(record.attribution),
        **model_sidecar(record.model),
        "Warnings": list(record.warnings),
        **describe_columns(columns),
        "Software": dict(software_versions()),
        KEY: record.resume_key,
        DATA_HASH: sha256(path),
    }


def _columns(rows: Sequence[Share], unit: str) -> list[Column]:
    return [
        Column("level", [row.level for row in rows], "What the row is.", levels=LEVELS),
        Column("name", [row.name for row in rows], "Name of the network or parcel."),
        Column("network", [row.network for row in rows], "Network of the parcel; n/a where the atlas names none."),
        Column("n_voxels", [row.n_voxels for row in rows], "Voxels of it inside the brain mask."),
        *(
            Column(axis, [row.centre_mm[i] for row in rows], f"Centre of these voxels along {axis}, RAS+.", "mm")
            for i, axis in enumerate("xyz")
        ),
        Column("attribution", [row.attribution for row in rows], "Sum of the map over it, with its sign.", unit),
        Column("mass", [row.mass for row in rows], "Share of the brain's sum of absolute values that lies in it."),
        Column("volume", [row.volume for row in rows], "Share of the brain's voxels that lies in it."),
        Column("enrichment", [row.enrichment for row in rows], "Mass by volume; 1 is what chance gives."),
    ]


LEVELS = {
    "network": "all parcels of a network of the atlas",
    "parcel": "a parcel of the atlas",
    "rest": "the brain outside all parcels",
}
