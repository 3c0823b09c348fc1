"""What the inputs stage hands on: one ``BoldRun`` a scanner run, whatever pipeline wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Source:
    """The derivative dataset that a run comes from.

    ``name`` and ``version`` are those of its first ``GeneratedBy`` entry; ``denoising`` says what was
    regressed out already ("none" for fMRIPrep's ``desc-preproc``).
    """

    root: Path
    pipeline: str
    version: str | None = None
    denoising: str = "none"


@dataclass(frozen=True, slots=True)
class BoldImage:
    """A run as one 4D image in one space.

    ``space`` is a template name ("MNI152NLin6Asym", "MNI152NLin2009cAsym"), "T1w", or "boldref" for the
    native space of the run. ``mask`` lies in the same space, or is None where none was written.
    """

    bold: Path
    space: str
    mask: Path | None = None
    boldref: Path | None = None
    resolution: str | None = None  # the res- entity: an index, not millimetres
    desc: str | None = None


@dataclass(frozen=True, slots=True)
class TransformFile:
    """A transform as its file name states it: it moves images from ``source`` to ``target``."""

    path: Path
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class MotionFile:
    """Motion parameters without a heading, a row a volume, in the columns and units of a program.

    "hcp" is ``Movement_Regressors.txt`` of the HCP and DCAN pipelines: translations in mm, rotations in degrees, then
    the derivatives of both. "mcflirt" is a ``.par`` of FSL: rotations in radians, then translations in mm.
    """

    path: Path
    convention: Literal["hcp", "mcflirt"]


@dataclass(frozen=True, slots=True)
class BoldRun:
    """One run of one participant, with everything that belongs to it.

    ``images`` holds every space that the pipeline wrote and that passed the filters; the space stage
    chooses among them. Times are in seconds: ``t_r_s`` and ``start_time_s`` come from the JSON sidecar
    (None where it states none; the header is then asked by the space stage).
    """

    source: Source
    entities: dict[str, str]  # sub, ses, task, acq, ce, rec, dir, run, echo, part: as in the file name, in BIDS order
    images: tuple[BoldImage, ...]
    confounds: Path | None = None
    confounds_json: Path | None = None
    transforms: tuple[TransformFile, ...] = ()
    events: Path | None = None
    motion: MotionFile | None = None  # of pipelines that write no confounds table
    t_r_s: float | None = None
    start_time_s: float = 0.0
    mean_removed: bool | None = None  # a denoised input that says whether its mean was taken away
    warnings: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """File name prefix of the run: ``sub-01_ses-1_task-rest_run-01``."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())

    @property
    def participant(self) -> str:
        """Participant label without ``sub-``."""
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        """Session label without ``ses-``, or None."""
        return self.entities.get("ses")
