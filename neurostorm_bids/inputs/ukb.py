"""Resting-state runs of UK Biobank's pipeline: ``<id>_<session>_2_0/fMRI/rfMRI.ica``, native space and a FNIRT warp."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from neurostorm_bids.errors import RunUnusable
from neurostorm_bids.inputs.folders import (
    Candidate,
    Entities,
    Layout,
    Place,
    checked,
    first_there,
    label_of,
    motion_at,
    ordered,
    stated_t_r_s,
)
from neurostorm_bids.inputs.reader import Request
from neurostorm_bids.inputs.runs import BoldImage, BoldRun, Source, TransformFile

CLEAN, UNDENOISED = "filtered_func_data_clean.nii.gz", "filtered_func_data.nii.gz"
WARP = "reg/example_func2standard_warp.nii.gz"
STANDARD = "MNI152NLin6Asym"  # FSL's MNI152_T1_2mm
MOTION = "mc/prefiltered_func_data_mcf.par"
PARTICIPANT = re.compile(r"(?:sub-)?([A-Za-z0-9]+)(?:_([A-Za-z0-9]+)_(\d+)_(\d+))?")
DATA_FIELDS = ("20227", "20249")  # of resting and task fMRI: in their place the instance tells the visits apart


def participant_of(folder: str) -> tuple[str, str | None]:
    """Participant and session of a folder; in the names of the showcase the session is the instance.

    >>> participant_of("1000001_1_2_0"), participant_of("1000001_20227_3_0")
    (('1000001', '1'), ('1000001', '3'))
    """
    match = PARTICIPANT.fullmatch(folder)
    if match is None:
        return label_of(folder.removeprefix("sub-")), None
    return match[1], match[3] if match[2] in DATA_FIELDS else match[2]


def candidates(place: Place) -> Iterator[Candidate]:
    """The one resting-state run of a visit."""
    entities = ordered({"sub": place.participant, "ses": place.session, "task": "rest"})
    yield Candidate(entities, partial(_build, place.folder, entities))


def _build(folder: Path, entities: Entities, source: Source, request: Request) -> BoldRun:
    names = (UNDENOISED,) if request.desc == "minimal" else (CLEAN, UNDENOISED)
    bold = first_there(folder, names)
    warp = first_there(folder, (WARP,))
    for file, name in ((bold, names[0]), (warp, WARP)):
        if file is None:
            raise _missing(folder, name)
    mask, reference = first_there(folder, ("mask.nii.gz",)), folder / "example_func.nii.gz"
    checked(bold, mask, warp)
    assert bold is not None and warp is not None
    motion, unknown = motion_at(folder / MOTION, "mcflirt")
    t_r_s, notes = stated_t_r_s(folder.parent / "rfMRI.json", bold)
    if bold.name not in names[:1]:
        notes.append(f"{folder}: no {CLEAN}; the series without ICA-FIX is read")
    return BoldRun(
        source=replace(source, denoising="ICA-FIX" if bold.name == CLEAN else "high-pass filter"),
        entities=dict(entities),
        images=(BoldImage(bold, "boldref", mask, reference if reference.is_file() else None),),
        transforms=(TransformFile(warp, "boldref", STANDARD),),
        motion=motion,
        t_r_s=t_r_s,
        warnings=(*notes, *unknown),
    )


def _missing(folder: Path, name: str) -> RunUnusable:
    return RunUnusable(
        f"has no {name}",
        file=folder,
        expected="the content of UK Biobank's rfMRI archive (data-field 20227)",
        remedy="Unpack it again",
    )


LAYOUT = Layout(
    pipeline="UK Biobank pipeline",
    parse=participant_of,
    places=("fMRI/rfMRI.ica",),
    shown="folders <id>_<session>_2_0/fMRI/rfMRI.ica",
    candidates=candidates,
)
READER = LAYOUT.reader()
