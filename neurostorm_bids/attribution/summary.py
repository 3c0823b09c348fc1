"""A map by network and by parcel: how much of it lies where, beside how much of the brain does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neurostorm_bids.attribution.parcels import Parcels
from neurostorm_bids.space.grid import Grid, apply_affine

REST = "in no parcel"


@dataclass(frozen=True)
class Share:
    """What of a map lies in a network or parcel.

    Attributes
    ----------
    level : str
        "network", "parcel", or "rest" for the brain outside all parcels.
    name, network : str
    n_voxels : int
        Of the brain.
    centre_mm : tuple of float
    attribution : float
        Sum of the map, with its sign.
    mass : float
        Sum of the map's absolute values, as a share of the brain's.
    volume : float
        Share of the brain's voxels.
    """

    level: str
    name: str
    network: str | None
    n_voxels: int
    centre_mm: tuple[float, float, float]
    attribution: float
    mass: float
    volume: float

    @property
    def enrichment(self) -> float | None:
        """Mass by volume: 1 is chance."""
        return self.mass / self.volume if self.volume else None


def shares_of(values: np.ndarray, brain: np.ndarray, parcels: Parcels, grid: Grid) -> list[Share]:
    """Networks, then parcels, then what is left of the brain.

    Parameters
    ----------
    values : ndarray of shape (X, Y, Z)
    brain : ndarray of shape (X, Y, Z), bool
    """
    total, volume = float(np.abs(values[brain]).sum()), int(brain.sum())
    found = []
    for level, name, network, voxels in _regions(parcels):
        inside = voxels & brain
        n = int(inside.sum())
        if n == 0:
            continue  # outside the field of view of this run
        x, y, z = apply_affine(grid.matrix, np.argwhere(inside).mean(axis=0, keepdims=True))[0]
        found.append(
            Share(
                level=level,
                name=name,
                network=network,
                n_voxels=n,
                centre_mm=(float(x), float(y), float(z)),
                attribution=float(values[inside].sum()),
                mass=float(np.abs(values[inside]).sum()) / total if total else 0.0,
                volume=n / volume,
            )
        )
    return found


def _regions(parcels: Parcels) -> Iterator[tuple[str, str, str | None, np.ndarray]]:
    for network in sorted(set(parcels.networks.values())):
        members = [label for label, name in parcels.networks.items() if name == network]
        yield "network", network, network, np.isin(parcels.labels, members)
    for label, name in parcels.names.items():
        yield "parcel", name, parcels.networks.get(label), parcels.labels == label
    yield "rest", REST, None, parcels.labels == 0
