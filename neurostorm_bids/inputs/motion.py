"""Head motion and non-steady-state volumes of a run, from its confounds table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurostorm_bids.errors import ConfoundsUnusable
from neurostorm_bids.inputs.runs import BoldRun
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
        A run without a confounds table has unknown motion; its own warnings say so already.
    n_volumes : int
        Number of volumes of the BOLD series.

    Raises
    ------
    ConfoundsUnusable
        When the table cannot be read, is ragged, holds something else than numbers, or has another number of rows
        than the run has volumes.
    """
    if run.confounds is None:
        return Motion()
    columns = read_columns(run.confounds, ConfoundsUnusable, REMEDY)
    n_rows = len(next(iter(columns.values())))
    if n_rows != n_volumes:
        raise ConfoundsUnusable(
            f"has {n_rows} rows for {n_volumes} volumes",
            file=run.confounds,
            expected="one row a volume",
            remedy=REMEDY,
        )
    non_steady, doubts = _non_steady_volumes(run.confounds, columns)
    fd_mm, gaps = _displacement(run.confounds, columns)
    return Motion(fd_mm, non_steady, (*doubts, *gaps))


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
