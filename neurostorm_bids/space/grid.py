"""The grid of a model: shape, affine and template name; never a shape alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
        TemplateFlow name of the space ("MNI152NLin6Asym").
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    template: str

    @classmethod
    def of(cls, shape, affine, template: str) -> Grid:
        """Grid from any array-like affine."""
        matrix = np.asarray(affine, dtype=float)
        return cls(tuple(int(n) for n in shape), tuple(tuple(float(x) for x in row) for row in matrix), template)

    @property
    def matrix(self) -> np.ndarray:
        """The affine as an array.  # (4, 4)"""
        return np.array(self.affine)


# FSL's MNI152 2 mm array (91x109x91, LAS), cropped to y 6:102 and padded by 3 on both sides in x and z
NEUROSTORM_2MM = Grid.of(
    (96, 96, 96), [[-2, 0, 0, 96], [0, 2, 0, -114], [0, 0, 2, -78], [0, 0, 0, 1]], "MNI152NLin6Asym"
)
