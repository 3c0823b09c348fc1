"""What all simulated brains share: grids, mask, tissue, and where the networks lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from neurostorm_bids.simulate.cohort import N_FIELDS
from neurostorm_bids.simulate.effects import N_PAIRS, TRAITS
from neurostorm_bids.space.grid import TEMPLATE_LATTICES, Grid, apply_affine

# centres of the pairs in the left hemisphere, MNI mm; those of the right are their mirror images. Three in each octant
# around CENTRE_MM, evenly spread over its interior, 24 mm or more apart
LEFT_SITES_MM = (
    (-22, -58, -33), (-23, -70, -8), (-33, -41, -9), (-40, -3, -16), (-21, 38, -4), (-23, 9, -5),
    (-40, -41, 30), (-22, -65, 29), (-19, -41, 46), (-37, 1, 28), (-20, 29, 28), (-18, 1, 43),
)  # fmt: skip
CENTRE_MM = (0, -20, 10)
CONDITION_SITES_MM = ((0, -20, 58), (0, -80, 8), (0, -12, 4), (0, 44, 14))  # between the octants
PAIR_DISTANCE_MM = 14.0  # between the two networks of a pair
NETWORK_MM = 7.0  # SD of a network's profile, if not stated
EDGE_MM = 6.0  # how deep motion reaches into the brain
AXES = {"sex": (0,), "age": (1,), "diagnosis-1": (2,), "diagnosis-2": (0, 1), "cognition": (0, 2)}


@dataclass(frozen=True, eq=False)
class Brain:
    """The brain on a grid; v runs over the voxels of the mask in raster order.

    Attributes
    ----------
    grid : Grid
    mask : ndarray of shape (x, y, z), bool
    tissue : ndarray of shape (v,)
        Contrast of the mean image, of mean 0 and SD 1.
    networks : ndarray of shape (v, 2 pairs + conditions), float32
        Profiles of 1 at their centre: first networks of the pairs, second networks of the pairs, one a condition.
    fields : ndarray of shape (v, fields), float32
        Smooth fields of mean 0 and SD 1.
    edge : ndarray of shape (v,), float32
        1 at the surface, falling inwards.
    """

    grid: Grid
    mask: np.ndarray
    tissue: np.ndarray
    networks: np.ndarray
    fields: np.ndarray
    edge: np.ndarray

    @property
    def trait_maps(self) -> np.ndarray:
        """Where each trait would show in the mean image, of SD 1.  # (v, traits)"""
        both = self.networks[:, :N_PAIRS] + self.networks[:, N_PAIRS : 2 * N_PAIRS]  # (v, pairs)
        return _standard(both @ pair_loadings()).astype(np.float32)


def pair_loadings() -> np.ndarray:
    """Which way each trait moves each pair: up on one side of an axis and down on the other, or by quarters.

    Sex moves left against right, age front against back, the diagnosis top against bottom and left front against right
    front, cognition left top against right top. Columns are orthogonal, and each adds up to 0.  # (pairs, traits)
    """
    side = np.sign(network_centres()[:N_PAIRS] + network_centres()[N_PAIRS : 2 * N_PAIRS] - 2 * np.array(CENTRE_MM))
    return np.stack([side[:, list(AXES[trait])].prod(axis=1) for trait in TRAITS], axis=1)


def grid_of(template: str, zoom_mm: float) -> Grid:
    """A RAS grid over the field of view of a template's own array; at 1 and 2 mm that array itself.

    Raises
    ------
    ValueError
        For a template whose array is not known.
    """
    homes = [home for home in TEMPLATE_LATTICES if home.template == template]
    if not homes:
        known = ", ".join(sorted({home.template for home in TEMPLATE_LATTICES}))
        raise ValueError(f"{template!r} is no template that can be simulated: {known}")
    for home in homes:
        if np.allclose(home.zooms, zoom_mm):
            return home
    home = homes[-1]  # 2 mm
    low = home.corners().min(axis=0) - home.zooms / 2
    extent = np.array(home.shape) * home.zooms
    shape = np.ceil(extent / zoom_mm - 0.25).astype(int)  # up to a quarter of a voxel may hang over
    affine = np.diag([zoom_mm, zoom_mm, zoom_mm, 1.0])
    affine[:3, 3] = low + zoom_mm / 2
    return Grid.of(shape, affine, template)


@lru_cache(maxsize=4)
def brain_on(grid: Grid, network_mm: float = NETWORK_MM) -> Brain:
    """The brain on a grid, with networks of a width."""
    template, affine = _template()
    zoom = float(grid.zooms.mean())
    smooth = gaussian_filter(template, max(zoom, 2.0) / 2 / 2.0)  # of 2 mm voxels: half a voxel of the grid
    points = grid.points()
    t1 = map_coordinates(smooth, apply_affine(np.linalg.inv(affine), points).T, order=1, mode="constant")
    mask = _largest((t1 > 0.3).reshape(grid.shape))
    inside, inside_mm = mask.ravel(), points[mask.ravel()]
    depth = (distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] * zoom)[mask]
    return Brain(
        grid=grid,
        mask=mask,
        tissue=_standard(-t1[inside]).astype(np.float32),  # T2* contrast: fluid bright, white matter dark
        networks=network_maps(inside_mm, network_mm),
        fields=smooth_fields(inside_mm),
        edge=np.exp(-(depth - depth.min()) / EDGE_MM).astype(np.float32),
    )


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray]:
    """nilearn's bundled T1w of ICBM152, 2 mm: no download."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=2)
    return image.get_fdata(dtype=np.float32), image.affine


def _largest(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_fill_holes, label

    parts, n = label(mask)
    if n == 0:
        raise ValueError("the grid holds no brain")
    return binary_fill_holes(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))


def network_centres() -> np.ndarray:
    """Centres of all networks in the order of ``Brain.networks``, MNI mm.  # (2 pairs + conditions, 3)"""
    left = np.array(LEFT_SITES_MM, float)
    pairs = np.stack([left, left * (-1, 1, 1)], axis=1).reshape(-1, 3)
    apart = PAIR_DISTANCE_MM / 2 * np.eye(3)[np.arange(N_PAIRS) // 2 % 3]  # along x, y, z in turn
    return np.concatenate([pairs - apart, pairs + apart, np.array(CONDITION_SITES_MM, float)])


def network_maps(points_mm: np.ndarray, network_mm: float = NETWORK_MM) -> np.ndarray:
    """Gaussian profiles around the centres.  # (v, 3) -> (v, networks) float32"""
    squared = ((points_mm[:, None].astype(np.float32) - network_centres().astype(np.float32)) ** 2).sum(axis=-1)
    return np.exp(-squared / (2 * network_mm**2))


def smooth_fields(points_mm: np.ndarray) -> np.ndarray:
    """Half and whole cosine waves over the brain along each axis.  # (v, 3) -> (v, fields) float32"""
    phase = np.pi * (points_mm / 90.0 + 0.2)  # (v, 3)
    waves = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)[:, :N_FIELDS]
    return _standard(waves).astype(np.float32)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)
