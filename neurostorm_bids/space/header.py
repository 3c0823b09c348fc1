"""What a NIfTI header says about place and time, believed only where it does not contradict itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from neurostorm_bids.errors import AffineContradictory, AffineMissing, RepetitionTimeUnusable
from neurostorm_bids.space.grid import apply_affine
from neurostorm_bids.space.nifti import NiftiFile

SCANNER, OTHER_SPACES = 1, (2, 3, 4)  # NIfTI xform codes: scanner; aligned to another image, Talairach, MNI152
ZOOM_RANGE_MM = (0.2, 30.0)
ZOOM_TOLERANCE = 0.01  # pixdim against the affine, relative
FORM_TOLERANCE_VOXELS = 0.1  # sform against qform, at the corners of the image
WRITE_AGAIN = "Write the right affine into the header, in millimetres, or take the file that the pipeline wrote"
T_R_RANGE_S = (0.1, 20.0)
T_R_TOLERANCE = 0.01
SECONDS_PER_UNIT = {8: 1.0, 16: 1e-3, 24: 1e-6}  # NIfTI xyzt_units, temporal part


# --- place ------------------------------------------------------------------------------------------------------


def judged_affine(image: NiftiFile, *, in_template: bool) -> np.ndarray:
    """The voxel-to-world matrix of an image, in millimetres.  # (4, 4)

    Where sform and qform differ, an image in template space whose qform is the scanner's and whose sform is
    not follows its sform (the two then describe two spaces); any other difference is a contradiction.

    Raises
    ------
    AffineMissing
        When both form codes are 0.
    AffineContradictory
        When sform, qform and voxel sizes exclude each other, or are no geometry at all.
    """
    sform, qform = image.header.get_sform(coded=True), _qform(image)
    matrix = sform[0] if sform[0] is not None else qform[0]
    if matrix is None:
        raise AffineMissing(
            "the header states no position of the voxels (sform_code and qform_code are 0)",
            file=image.path,
            expected="an sform or a qform",
            remedy="Write the affine into the header (or take the file that the pipeline wrote)",
        )
    _check_geometry(matrix, image.path)
    if sform[0] is not None and qform[0] is not None and not _explained(sform[1], qform[1], in_template):
        _check_forms_agree(sform[0], qform[0], image)
    _check_zooms(matrix, image.header, image.path)
    return matrix


def _qform(image: NiftiFile) -> tuple[np.ndarray | None, int]:
    if not int(image.header["qform_code"]):
        return None, 0
    try:
        return image.header.get_qform(), int(image.header["qform_code"])
    except (ValueError, HeaderDataError) as error:  # a quaternion that is none, a handedness that is neither
        raise AffineContradictory(
            f"the header's qform is invalid ({error})", file=image.path, remedy=WRITE_AGAIN
        ) from None


def _explained(sform_code: int, qform_code: int, in_template: bool) -> bool:
    return in_template and qform_code == SCANNER and sform_code in OTHER_SPACES


def _check_geometry(matrix: np.ndarray, path: Path) -> None:
    zooms = np.linalg.norm(matrix[:3, :3], axis=0)
    low, high = ZOOM_RANGE_MM
    if not np.isfinite(matrix).all() or not ((zooms >= low) & (zooms <= high)).all():
        raise AffineContradictory(
            f"the affine gives voxels of {_millimetres(zooms)}",
            file=path,
            expected=f"{low:g} to {high:g} mm a side",
            remedy=WRITE_AGAIN,
        )
    if abs(np.linalg.det(matrix[:3, :3] / zooms)) < 0.1:
        raise AffineContradictory("the affine is singular: its axes lie in one plane", file=path, remedy=WRITE_AGAIN)


def _check_forms_agree(sform: np.ndarray, qform: np.ndarray, image: NiftiFile) -> None:
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(image.shape[:3]) - 1)
    apart = np.abs(apply_affine(sform, corners) - apply_affine(qform, corners)).max()
    if not apart <= FORM_TOLERANCE_VOXELS * np.linalg.norm(sform[:3, :3], axis=0).min():
        raise AffineContradictory(
            f"sform and qform differ by up to {apart:.1f} mm",
            file=image.path,
            expected="one position of the voxels",
            remedy="Find out which of the two is right and copy it over the other",
        )


def _check_zooms(matrix: np.ndarray, header: Nifti1Header, path: Path) -> None:
    zooms, stated = np.linalg.norm(matrix[:3, :3], axis=0), np.abs(header["pixdim"][1:4])
    if not np.allclose(zooms, stated, rtol=ZOOM_TOLERANCE):
        raise AffineContradictory(
            f"the affine gives voxels of {_millimetres(zooms)}, pixdim {_millimetres(stated)}",
            file=path,
            expected="the same voxel size twice",
            remedy="Find out which of the two is right and mend the other",
        )


def _millimetres(zooms: np.ndarray) -> str:
    return " x ".join(f"{zoom:.4g}" for zoom in zooms) + " mm"


# --- time -------------------------------------------------------------------------------------------------------


def judged_t_r_s(header: Nifti1Header, stated_s: float | None, path: Path) -> tuple[float, tuple[str, ...]]:
    """Repetition time in seconds, and warnings; what the JSON sidecar states wins over the header.

    Parameters
    ----------
    header : Nifti1Header
        Its fourth voxel size, in the unit that it names.
    stated_s : float or None
        RepetitionTime of the sidecar.
    path : Path
        The image, for messages.

    Raises
    ------
    RepetitionTimeUnusable
        When neither gives a time between 0.1 and 20 s.
    """
    header_s, labelled = _header_t_r_s(header)
    if stated_s is None:
        return _from_header(header_s, labelled, path)
    if not _plausible(stated_s):
        raise _unusable(f"the JSON sidecar states RepetitionTime {stated_s:g} s", path)
    if abs(header_s - stated_s) <= T_R_TOLERANCE * stated_s:
        return float(stated_s), ()
    return float(stated_s), (
        f"{path.name}: the header gives a repetition time of {header_s:g} s, the JSON sidecar {stated_s:g} s, "
        "which is used",
    )


def _header_t_r_s(header: Nifti1Header) -> tuple[float, bool]:
    unit = int(header["xyzt_units"]) & 0x38
    return float(header["pixdim"][4]) * SECONDS_PER_UNIT.get(unit, 1.0), unit in SECONDS_PER_UNIT


def _from_header(header_s: float, labelled: bool, path: Path) -> tuple[float, tuple[str, ...]]:
    # a float32 header cannot hold 0.8 exactly: seven digits are all it means
    header_s = float(f"{header_s:.7g}")
    if not _plausible(header_s):
        label = "" if labelled else " (unit not stated)"
        raise _unusable(f"the header gives a repetition time of {header_s:g} s{label} and the JSON sidecar none", path)
    if labelled:
        return header_s, ()
    return header_s, (f"{path.name}: the header's repetition time {header_s:g} has no unit; seconds are assumed",)


def _plausible(t_r_s: float) -> bool:
    return T_R_RANGE_S[0] <= t_r_s <= T_R_RANGE_S[1]


def _unusable(fault: str, path: Path) -> RepetitionTimeUnusable:
    return RepetitionTimeUnusable(
        fault,
        file=path,
        expected="0.1 to 20 s",
        remedy="State RepetitionTime, in seconds, in the JSON sidecar",
    )
