"""A 4D NIfTI written one volume at a time, with the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip

from neurostorm_bids.errors import NonFiniteOutput, OutputWriteFailed
from neurostorm_bids.outputs.atomic import NOT_FINITE_REMEDY
from neurostorm_bids.space.grid import Grid

_REPORT = "this should not happen: please report it"


def write_nifti_gz(
    handle: BinaryIO, volumes: Iterable[np.ndarray], *, grid: Grid, n_frames: int, step_s: float
) -> None:
    """Stream float32 volumes of shape ``grid.shape`` into a gzipped NIfTI; memory holds one of them.

    The gzip header carries neither time nor name, so equal volumes give equal files.

    Raises
    ------
    NonFiniteOutput
        A volume holds NaN or infinity.
    OutputWriteFailed
        The number or the shape of the volumes is not what was announced.
    """
    header = _header(grid, n_frames, step_s)
    written = 0
    with igzip.IGzipFile(filename="", mode="wb", fileobj=handle, mtime=0, compresslevel=2) as stream:
        stream.write(header.binaryblock + bytes(4))  # four bytes: no header extension follows
        for volume in volumes:
            stream.write(_bytes(volume, grid))
            written += 1
    if written != n_frames:
        raise OutputWriteFailed(f"{written} volumes came, {n_frames} were announced", remedy=_REPORT)


def _header(grid: Grid, n_frames: int, step_s: float) -> nib.Nifti1Header:
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    header.set_data_shape((*grid.shape, n_frames))
    header.set_sform(grid.matrix, code="mni")
    header.set_qform(grid.matrix, code="mni")
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][4] = step_s
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def _bytes(volume: np.ndarray, grid: Grid) -> bytes:
    if volume.shape != grid.shape:
        raise OutputWriteFailed(f"a volume has shape {volume.shape}", expected=f"{grid.shape}", remedy=_REPORT)
    if not np.isfinite(volume).all():
        raise NonFiniteOutput("a volume of the normalised run holds NaN or infinity", remedy=NOT_FINITE_REMEDY)
    return np.asarray(volume, dtype="<f4").tobytes(order="F")
