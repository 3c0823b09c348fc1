"""Head motion and non-steady-state volumes of a run, from its confounds table or from bare motion parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from neurostorm_bids.errors import ConfoundsUnusable
from neurostorm_bids.inputs.presence import fault_of
from neurostorm_bids.inputs.runs import BoldRun, MotionFile
from neurostorm_bids.inputs.tables import Columns, number, read_columns

HEAD_RADIUS_MM = 50.0
DISPLACEMENT = "framewise_displacement"
NON_STEADY = "non_steady_state_outlier"
TRANSLATIONS_MM = ("trans_x", "trans_y", "trans_z")
ROTATIONS_RAD = ("rot_x", "rot_y", "rot_z")
REMEDY = "Restore the pipeline's table, or remove it to go on without motion"


@dataclass(frozen=True)
class Motion:
    """Head motion of a run.

    ``fd_mm`` has one value a volume, in millimetres, NaN where it is not defined (the first volume); None where the
    pipeline wrote none. ``non_steady_volumes`` counts the volumes at the beginning that the pipeline flagged.
    """

    fd_mm: np.ndarray | None = None  # (n_volumes,)
    non_steady_volumes: int = 0
    warnings: tuple[str, ...] = ()


def read_motion(run: BoldRun, n_volumes: int) -> Motion:
    """Framewise displacement and the number of non-steady-state volumes of a run.

    Parameters
    ----------
    run : BoldRun
        A run with neither a confounds table nor motion parameters has unknown motion; its own warnings say so
        already.
    n_volumes : int
        Number of volumes of the BOLD series.

    Raises
    ------
    ConfoundsUnusable
        When the table cannot be read, is ragged, holds something else than numbers, or has another number of rows
        than the run has volumes.
    """
    if run.confounds is None:
        return _without_confounds(run.motion, n_volumes)
    columns = read_columns(run.confounds, ConfoundsUnusable, REMEDY)
    _check_length(run.confounds, len(next(iter(columns.values()))), n_volumes)
    non_steady, doubts = _non_steady_volumes(run.confounds, columns)
    fd_mm, gaps = _displacement(run.confounds, columns)
    return Motion(fd_mm, non_steady, (*doubts, *gaps))


def _check_length(path: Path, n_rows: int, n_volumes: int) -> None:
    if n_rows != n_volumes:
        raise ConfoundsUnusable(
            f"has {n_rows} rows for {n_volumes} volumes", file=path, expected="one row a volume", remedy=REMEDY
        )


def framewise_displacement(translations_mm: np.ndarray, rotations_rad: np.ndarray) -> np.ndarray:
    """Framewise displacement of Power et al. (2012), doi:10.1016/j.neuroimage.2011.10.018, on a 50 mm sphere.

    Parameters
    ----------
    translations_mm : ndarray of shape (n_volumes, 3)
    rotations_rad : ndarray of shape (n_volumes, 3)

    Returns
    -------
    ndarray of shape (n_volumes,)
        Sum of the absolute changes to the volume before, in millimetres; NaN for the first volume.
    """
    moved = np.abs(np.diff(translations_mm, axis=0)).sum(axis=1)  # (n_volumes - 1,)
    turned = np.abs(np.diff(rotations_rad, axis=0)).sum(axis=1) * HEAD_RADIUS_MM
    return np.concatenate([[np.nan], moved + turned])


def _numbers(path: Path, name: str, column: Sequence[str]) -> np.ndarray:
    """A column as numbers, NaN where it says n/a.  # (n_volumes,)"""
    numbers = [number(text) for text in column]
    for text, value in zip(column, numbers, strict=True):
        if value is None or math.isinf(value):
            raise _unusable(path, f"column {name} holds {text!r}")
    return np.array(numbers, dtype=float)


def _unusable(path: Path, fault: str) -> ConfoundsUnusable:
    return ConfoundsUnusable(
        fault, file=path, expected="finite numbers or n/a, no negative displacement", remedy=REMEDY
    )


def _displacement(path: Path, columns: Columns) -> tuple[np.ndarray | None, list[str]]:
    if DISPLACEMENT in columns:
        fd_mm, source = _numbers(path, DISPLACEMENT, columns[DISPLACEMENT]), []
    elif all(name in columns for name in (*TRANSLATIONS_MM, *ROTATIONS_RAD)):
        fd_mm = framewise_displacement(
            np.stack([_numbers(path, name, columns[name]) for name in TRANSLATIONS_MM], axis=1),
            np.stack([_numbers(path, name, columns[name]) for name in ROTATIONS_RAD], axis=1),
        )
        source = [f"{path}: no {DISPLACEMENT}; computed from the motion parameters (50 mm sphere)"]
    else:
        return None, [f"{path}: no {DISPLACEMENT} and no motion parameters; head motion is not known"]
    if (fd_mm < 0).any():
        raise _unusable(path, f"{DISPLACEMENT} is negative")
    unknown = int(np.isnan(fd_mm[1:]).sum())
    if unknown:
        source.append(f"{path}: {DISPLACEMENT} is missing for {unknown} of {len(fd_mm)} volumes")
    return (None if unknown and unknown == len(fd_mm) - 1 else fd_mm), source


def _non_steady_volumes(path: Path, columns: Columns) -> tuple[int, list[str]]:
    """Number of flagged volumes at the beginning of the run; flags further on are told and not counted."""
    names = [name for name in columns if name.startswith(NON_STEADY)]
    flagged = np.zeros(len(next(iter(columns.values()))), bool)
    for name in names:
        flagged |= np.nan_to_num(_numbers(path, name, columns[name])) != 0
    leading = len(flagged) if flagged.all() else int(np.argmin(flagged))
    later = int(flagged[leading:].sum())
    warnings = [f"{path}: {later} volumes flagged {NON_STEADY} after the steady state began; kept"] if later else []
    return leading, warnings


# --- bare motion parameters -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """How a program writes motion parameters: columns of each kind, and the radians in its unit of rotation."""

    widths: tuple[int, ...]
    translations: slice
    rotations: slice
    radians: float


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        "hcp": Convention((12, 6), slice(0, 3), slice(3, 6), math.pi / 180),
        "mcflirt": Convention((6,), slice(3, 6), slice(0, 3), 1.0),
    }
)
LARGEST_ROTATION_RAD = math.pi / 2  # nobody turns so far in a head coil: another unit, or other columns


def _without_confounds(motion: MotionFile | None, n_volumes: int) -> Motion:
    if motion is None:
        return Motion()
    translations_mm, rotations_rad = read_parameters(motion)
    _check_length(motion.path, len(translations_mm), n_volumes)
    return Motion(framewise_displacement(translations_mm, rotations_rad))


def read_parameters(motion: MotionFile) -> tuple[np.ndarray, np.ndarray]:
    """Translations in mm and rotations in radians.  # (n_volumes, 3) each

    Raises
    ------
    ConfoundsUnusable
        When the file is not there, is ragged, holds something else than finite numbers, has another number of columns
        than its program writes, or rotations that no head can make.
    """
    convention = CONVENTIONS[motion.convention]
    rows = _rows(motion.path)
    if rows.shape[1] not in convention.widths:
        raise _no_parameters(motion, f"has {rows.shape[1]} columns", f"{convention.widths[0]}")
    rotations_rad = rows[:, convention.rotations] * convention.radians
    if np.abs(rotations_rad).max() > LARGEST_ROTATION_RAD:
        turned = math.degrees(np.abs(rotations_rad).max())
        raise _no_parameters(motion, f"turns the head by {turned:.0f} degrees", "the units and columns of its program")
    return rows[:, convention.translations], rotations_rad


def _rows(path: Path) -> np.ndarray:
    """Numbers of a file without a heading.  # (n_rows, n_columns)"""
    if fault := fault_of(path):
        raise ConfoundsUnusable(fault.fault, file=path, expected=fault.expected, remedy=fault.remedy or REMEDY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no row is an error below
            rows = np.loadtxt(path, ndmin=2, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as problem:
        raise ConfoundsUnusable(
            f"is no table of numbers: {problem}", file=path, expected="a row of numbers a volume", remedy=REMEDY
        ) from None
    if not rows.size or not np.isfinite(rows).all():
        raise _unusable(path, "holds no rows, or values that are not finite")
    return rows


def _no_parameters(motion: MotionFile, fault: str, expected: str) -> ConfoundsUnusable:
    return ConfoundsUnusable(
        f"{fault}; read as motion parameters of {motion.convention}", file=motion.path, expected=expected, remedy=REMEDY
    )
