"""FNIRT warps (FSL): dense fields and cubic spline coefficients become maps of points in RAS+ millimetres.

FSL measures in scaled voxels: millimetres from the first voxel along the axes of an array, the first axis counted from
its other end where the affine's determinant is positive (Jenkinson; fslpy names the system "fsl"). A warp maps such
millimetres of the standard array to such millimetres of the image that was registered, so that it means nothing
without the grid of that image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurostorm_bids.errors import NeurostormError, TransformUnreadable
from neurostorm_bids.space.grid import TEMPLATE_LATTICES, Grid, apply_affine
from neurostorm_bids.space.header import judged_affine
from neurostorm_bids.space.nifti import AGAIN, NiftiFile, open_nifti
from neurostorm_bids.space.resample import is_inside, voxel_coordinates, weight_matrix

# NIfTI intent codes of FSL (nibabel.nifti1.intent_codes)
DISPLACEMENT_FIELD, CUBIC_COEFFICIENTS = 2006, 2007
OTHER_WARPS = {
    2008: "discrete cosine coefficients",
    2009: "quadratic spline coefficients",
    2016: "topup's cubic spline coefficients",
    2017: "topup's quadratic spline coefficients",
    2018: "a topup field",
}
NIFTI_MAGICS = (b"\x1f\x8b", b"\x5c\x01", b"\x01\x5c", b"\x1c\x02", b"\x02\x1c")  # gzip; sizeof_hdr 348 and 540
CONVERT = "Make it a dense field: convertwarp --ref=MNI152_T1_2mm --warp1=FILE --out=FIELD"


@dataclass(frozen=True, eq=False)
class FnirtWarp:
    """A dense warp between two arrays.

    Points outside the field have no place in the image, as in FSL: they become NaN, which no image contains.
    """

    standard: Grid
    moving: Grid
    displacements: np.ndarray  # (n_voxels, 3) float32, mm, standard voxels in Fortran order

    def map(self, points: np.ndarray) -> np.ndarray:
        """Points of the standard space in the space of the moving image.  # (n, 3) -> (n, 3)"""
        places = voxel_coordinates(self.standard, points)
        moved = apply_affine(scaled_voxels(self.standard), places)
        moved += weight_matrix(self.standard, points, "linear") @ self.displacements
        moved[~is_inside(places, self.standard.shape)] = np.nan
        return apply_affine(self.moving.matrix @ np.linalg.inv(scaled_voxels(self.moving)), moved)


def scaled_voxels(grid: Grid) -> np.ndarray:
    """Voxel indices of an array to FSL's millimetres.  # (4, 4)"""
    matrix = np.diag([*grid.zooms, 1.0])
    if np.linalg.det(grid.matrix[:3, :3]) > 0:  # "neurological" storage
        matrix[0] = [-grid.zooms[0], 0, 0, (grid.shape[0] - 1) * grid.zooms[0]]
    return matrix


def is_nifti(path: Path) -> bool:
    """Whether a transform file is an image, hence FSL's."""
    with path.open("rb") as stream:
        return stream.read(2) in NIFTI_MAGICS


def read_warp(path: Path, moving: Grid | None) -> FnirtWarp:
    """The warp of a FNIRT file: points of its standard space to points of the image that was registered to it.

    Parameters
    ----------
    path : Path
        A dense field, relative or absolute (FSL's own test tells them apart), or cubic spline coefficients over FSL's
        MNI152 array of 1 or 2 mm.
    moving : Grid or None
        Grid of the image; None where the warp does not start at an image that is known.

    Raises
    ------
    TransformUnreadable
        For other files, and where the grid is not known.
    """
    if moving is None:
        raise TransformUnreadable(
            "a FNIRT warp whose image is not known",
            file=path,
            expected="one that starts at the BOLD series itself",
            remedy="Put the warp first among the transforms of the run",
        )
    try:
        image = open_nifti(path)
        intent = int(image.header["intent_code"])
        if intent in OTHER_WARPS:
            raise _unsupported(OTHER_WARPS[intent], path)
        read = _spline_field if intent == CUBIC_COEFFICIENTS else _dense_field
        standard, displacements = read(image)
    except TransformUnreadable:
        raise
    except NeurostormError as error:  # faults of an image, told as those of a transform
        raise TransformUnreadable(error.fault, file=path, expected=error.expected, remedy=error.remedy) from None
    if not np.isfinite(displacements).all():
        raise TransformUnreadable("the warp holds NaN or infinity", file=path, remedy=AGAIN)
    return FnirtWarp(standard, moving, displacements)


def _unsupported(what: str, path: Path) -> TransformUnreadable:
    return TransformUnreadable(
        f"the warp holds {what}",
        file=path,
        expected="a dense FNIRT field, or cubic spline coefficients",
        remedy=CONVERT,
    )


def _vectors(image: NiftiFile) -> np.ndarray:
    """The three volumes of a warp.  # (n_voxels, 3) float32, Fortran order"""
    if len(image.shape) != 4 or image.n_volumes != 3:
        raise _unsupported(f"an array of shape {'x'.join(str(n) for n in image.shape)}", image.path)
    return np.stack([volume.ravel(order="F") for volume in image.volumes()], axis=1)


# --- dense fields -----------------------------------------------------------------------------------------------


def _dense_field(image: NiftiFile) -> tuple[Grid, np.ndarray]:
    intent = int(image.header["intent_code"])
    if intent not in (0, DISPLACEMENT_FIELD):
        raise _unsupported(f"an image of NIfTI intent {intent}", image.path)
    standard = Grid.of(image.shape[:3], judged_affine(image, in_template=True), "standard")
    vectors = _vectors(image)
    relative = vectors - _positions(standard)
    return standard, (relative if _is_absolute(vectors, relative) else vectors)


def _positions(grid: Grid) -> np.ndarray:
    """FSL millimetres of every voxel.  # (n_voxels, 3) float32, Fortran order"""
    voxels = np.indices(grid.shape).T.reshape(-1, 3)  # x fastest
    return apply_affine(scaled_voxels(grid), voxels).astype(np.float32)


def _is_absolute(vectors: np.ndarray, relative: np.ndarray) -> bool:
    """FSL's test: coordinates vary more than the displacements that are left when positions are taken away."""
    return bool(vectors.std(axis=0, dtype=float).sum() > relative.std(axis=0, dtype=float).sum())


# --- cubic spline coefficients ----------------------------------------------------------------------------------


def _spline_field(image: NiftiFile) -> tuple[Grid, np.ndarray]:
    """The dense field of spline coefficients, the affine that FNIRT started from included.

    FNIRT keeps what it needs in places of the header that mean something else: knot spacing (voxels) as voxel size,
    size of the standard array as qform offset, its voxel size as intent parameters, the affine (FSL millimetres of
    the image to those of the standard array) as sform.
    """
    header = image.header
    standard = _fsl_array(image)
    knots = [round(float(spacing)) for spacing in header["pixdim"][1:4]]
    if min(knots) < 1:
        raise TransformUnreadable(f"the warp's knots lie {min(knots)} voxels apart", file=image.path, remedy=AGAIN)
    coefficients = _vectors(image).reshape(*image.shape[:3], 3, order="F")
    bases = [_cubic_basis(standard.shape[axis], knots[axis], image.shape[axis]) for axis in range(3)]
    field = np.einsum("xi,yj,zk,ijkc->xyzc", *bases, coefficients, optimize=True)
    positions = _positions(standard)
    from_affine = apply_affine(_reversed(header.get_sform(), image.path), positions) - positions
    return standard, (field.reshape(-1, 3, order="F") + from_affine).astype(np.float32)


def _reversed(affine: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-6:
        raise TransformUnreadable(
            "the affine in the header of the warp (sform) is singular or not finite", file=path, remedy=AGAIN
        )
    return np.linalg.inv(affine)


def _cubic_basis(n_voxels: int, spacing: int, n_knots: int) -> np.ndarray:
    """Weight of each knot's cubic B-spline at each voxel; the second knot lies on voxel 0.  # (n_voxels, n_knots)"""
    distance = np.abs(np.arange(n_voxels)[:, None] / spacing - (np.arange(n_knots)[None] - 1))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _fsl_array(image: NiftiFile) -> Grid:
    """FSL's MNI152 array that coefficients belong to: their file gives its size and not its place."""
    header = image.header
    shape = tuple(round(float(header[f"qoffset_{axis}"])) for axis in "xyz")
    zooms = np.array([float(header[f"intent_p{number}"]) for number in (1, 2, 3)])
    for lattice in TEMPLATE_LATTICES:
        if lattice.template == "MNI152NLin6Asym" and lattice.shape == shape and np.allclose(lattice.zooms, zooms):
            return _right_to_left(lattice)
    size = "x".join(str(n) for n in shape)
    raise _unsupported(f"spline coefficients over an array of {size} voxels of {zooms.tolist()} mm", image.path)


def _right_to_left(grid: Grid) -> Grid:
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = grid.shape[0] - 1
    return Grid.of(grid.shape, grid.matrix @ flip, grid.template)
