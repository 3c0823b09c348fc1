"""Parcels on the model's grid, and the network that each belongs to."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neurostorm_bids.errors import AtlasUnusable
from neurostorm_bids.evaluation.atlas import DESCRIPTION, parcels_on
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.training.atlas import patch_regions

SCHAEFER = re.compile(r"(?:7|17)Networks_[LR]H_([A-Za-z]+)")  # names of parcels in the Schaefer atlases


@dataclass(frozen=True, eq=False)
class Parcels:
    """Labels of voxels.

    Attributes
    ----------
    labels : ndarray of shape (X, Y, Z), int32
        0 lies in no parcel.
    names, networks : mapping
        By label; a parcel of no known network is left out of the second.
    description : str
        Of the atlas, for people.
    """

    labels: np.ndarray
    names: Mapping[int, str]
    networks: Mapping[int, str] = field(default_factory=dict)
    description: str = ""

    def __len__(self) -> int:
        return len(self.names)


def read_parcels(grid: Grid, atlas: Path | None = None) -> Parcels:
    """An atlas on a grid, or without one compact pieces of grey matter, which belong to no network.

    Parameters
    ----------
    grid : Grid
    atlas : Path, optional
        Label image in the grid's template. A ``.tsv`` of the same name may give ``index`` and ``name``, as BIDS has it,
        and ``network``; names of the Schaefer atlases tell the network themselves.

    Raises
    ------
    AtlasUnusable
        The image or its table cannot be used.
    """
    if atlas is None:
        labels = parcels_on(grid).astype(np.int32)
        return Parcels(labels, {label: f"parcel-{label:03d}" for label in _present(labels)}, description=DESCRIPTION)
    labels = patch_regions(atlas, grid, (1, 1, 1, 1))
    rows = _rows(atlas.with_name(atlas.name.split(".")[0] + ".tsv"))
    names = {label: rows.get(label, {}).get("name") or f"region-{label}" for label in _present(labels)}
    networks = {label: _network(rows.get(label, {})) for label in names}
    known = {label: network for label, network in networks.items() if network}
    return Parcels(labels, names, known, atlas.name)


def _present(labels: np.ndarray) -> list[int]:
    return [int(label) for label in np.unique(labels) if label]


def _rows(table: Path) -> dict[int, dict[str, str]]:
    if not table.exists():
        return {}
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            if not {"index", "name"} <= set(reader.fieldnames or ()):
                raise KeyError(f"its columns are {', '.join(reader.fieldnames or ()) or 'none'}")
            return {int(row["index"]): row for row in reader}
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise AtlasUnusable(
            f"cannot be read as a table of the atlas ({error})",
            file=table,
            expected="columns index (whole numbers) and name, and if known network",
            remedy="Mend it or take it away",
        ) from error


def _network(row: Mapping[str, str]) -> str | None:
    found = SCHAEFER.match(row.get("name") or "")
    return row.get("network") or (found.group(1) if found else None)
