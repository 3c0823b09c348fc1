"""The grid of a model: shape, affine and template name; never a shape alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAME_POINT_MM = 0.01  # voxel centres closer than this are the same; headers round to about 0.002 mm


@dataclass(frozen=True)
class Grid:
    """Voxel grid in a template space.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels along each array axis.
    affine : tuple of tuple of float
        4 x 4 voxel-to-world matrix in millimetres (RAS+ world), as nested tuples so that grids hash and compare.
    template : str
        TemplateFlow name of the space ("MNI152NLin6Asym"); "T1w" or "boldref" for a participant's own.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    template: str

    @classmethod
    def of(cls, shape, affine, template: str) -> Grid:
        """Grid from any array-like affine."""
        matrix = np.asarray(affine, dtype=float)
        x, y, z = (int(n) for n in shape)
        return cls((x, y, z), tuple(tuple(float(value) for value in row) for row in matrix), template)

    @property
    def matrix(self) -> np.ndarray:
        """The affine as an array.  # (4, 4)"""
        return np.array(self.affine)

    @property
    def zooms(self) -> np.ndarray:
        """Voxel edge lengths in millimetres.  # (3,)"""
        return np.linalg.norm(self.matrix[:3, :3], axis=0)

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    def points(self) -> np.ndarray:
        """World coordinates (mm) of every voxel centre, in the order of a raveled C array.  # (n_voxels, 3)"""
        return apply_affine(self.matrix, np.indices(self.shape).reshape(3, -1).T)

    def corners(self) -> np.ndarray:
        """World coordinates (mm) of the eight outermost voxel centres.  # (8, 3)"""
        return apply_affine(self.matrix, np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(self.shape) - 1))


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points through a 4 x 4 matrix.  # (n, 3) -> (n, 3)"""
    mapped = np.empty(points.shape)
    for axis in range(3):  # ten times faster than a matrix product with so few columns
        row = matrix[axis]
        mapped[:, axis] = points[:, 0] * row[0] + points[:, 1] * row[1] + points[:, 2] * row[2] + row[3]
    return mapped


# FSL's MNI152 2 mm array (91x109x91, LAS), cropped to y 6:102 and padded by 3 on both sides in x and z
NEUROSTORM_2MM = Grid.of(
    (96, 96, 96), [[-2, 0, 0, 96], [0, 2, 0, -114], [0, 0, 2, -78], [0, 0, 0, 1]], "MNI152NLin6Asym"
)


def _isotropic(shape: tuple[int, int, int], zoom: float, origin: tuple[float, float, float], template: str) -> Grid:
    return Grid.of(shape, np.vstack([np.c_[np.eye(3) * zoom, origin], [0, 0, 0, 1]]), template)


# the arrays in which the templates themselves are distributed (TemplateFlow's template descriptions);
# FSL's arrays of MNI152NLin6Asym hold the same voxel centres, stored right to left
TEMPLATE_LATTICES = (
    _isotropic((182, 218, 182), 1, (-91, -126, -72), "MNI152NLin6Asym"),
    _isotropic((91, 109, 91), 2, (-90, -126, -72), "MNI152NLin6Asym"),
    _isotropic((193, 229, 193), 1, (-96, -132, -78), "MNI152NLin2009cAsym"),
    _isotropic((97, 115, 97), 2, (-96.5, -132.5, -78.5), "MNI152NLin2009cAsym"),
)


def same_voxels(a: Grid, b: Grid) -> bool:
    """Whether two grids of one space have the same set of voxel centres, whatever the order of their axes."""
    if sorted(a.shape) != sorted(b.shape) or not steps_between(a, b):
        return False
    low_a, low_b = a.corners().min(axis=0), b.corners().min(axis=0)
    high_a, high_b = a.corners().max(axis=0), b.corners().max(axis=0)
    return bool(np.allclose([low_a, high_a], [low_b, high_b], rtol=0, atol=SAME_POINT_MM))


def steps_between(a: Grid, b: Grid) -> bool:
    """Whether the axes of ``b`` are those of ``a`` up to flips and permutations, and offsets are whole voxels."""
    b_to_a = np.linalg.solve(a.matrix, b.matrix)
    whole = np.rint(b_to_a)
    if not np.array_equal(np.abs(whole[:3, :3]).sum(axis=0), np.ones(3)) or abs(np.linalg.det(whole)) != 1:
        return False
    reached = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(b.shape) - 1)
    error = apply_affine(a.matrix, apply_affine(whole, reached)) - b.corners()
    return bool(np.abs(error).max() < SAME_POINT_MM)


def on_lattice(image: Grid, grid: Grid) -> bool:
    """Whether an image can be placed on ``grid`` without interpolation and is known to belong there.

    That is so when its voxel centres are those of the grid itself, or of an array in which the template is
    distributed and in which the grid lies. Another field of view with coinciding voxel centres is not enough:
    its affine is used as any other's.
    """
    homes = [home for home in TEMPLATE_LATTICES if home.template == grid.template and steps_between(home, grid)]
    return image.template == grid.template and any(same_voxels(image, home) for home in (grid, *homes))
