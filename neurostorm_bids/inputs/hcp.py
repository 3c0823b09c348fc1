"""Runs of the HCP pipelines (Young Adult, Aging, Development, and one's own): ``<id>/MNINonLinear/Results``."""

from __future__ import annotations

import os
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
from neurostorm_bids.inputs.presence import is_folder
from neurostorm_bids.inputs.reader import Request
from neurostorm_bids.inputs.runs import BoldImage, BoldRun, Source

SPACE = "MNI152NLin6Asym"  # FSL's array of it: 2 mm, stored right to left
MASKS = ("brainmask_fs.2.nii.gz", "brainmask_fs.2.0.nii.gz")
MOTION = "Movement_Regressors.txt"
UNDENOISED = "minimal"  # --desc of the volumes before ICA-FIX
# what follows the run's name, preferred first
VOLUMES = (
    (re.compile(r"_hp2000_clean"), "ICA-FIX"),
    (re.compile(r"_hp\d+_clean"), "ICA-FIX"),
    (re.compile(r"_hp\d+_clean_rclean_tclean"), "ICA-FIX and temporal ICA"),
    (re.compile(r""), "none"),
)
PARTICIPANT = re.compile(r"(?:sub-)?([A-Za-z0-9]+)(?:_(V\d+))?(?:_(?:MR|3T|7T))?")
RUN = re.compile(r"[rt]?fMRI_(?P<task>.+?)(?:_(?P<acq>3T|7T))?(?:_(?P<dir>LR|RL|AP|PA))?")
NUMBERED_TASK = re.compile(r"([A-Za-z]+)(?:(\d+)([a-z])?)?")


def participant_of(folder: str) -> tuple[str, str | None]:
    """Participant and visit of a folder.

    >>> participant_of("100307"), participant_of("HCA6002236_V1_MR")
    (('100307', None), ('HCA6002236', 'V1'))
    """
    match = PARTICIPANT.fullmatch(folder)
    return (match[1], match[2]) if match else (label_of(folder.removeprefix("sub-")), None)


def run_of(folder: str) -> dict[str, str | None]:
    """Entities of a run from the name of its folder.

    >>> run_of("rfMRI_REST1_LR")["task"], run_of("rfMRI_REST1_LR")["run"], run_of("rfMRI_REST1_LR")["dir"]
    ('rest', '1', 'LR')
    """
    pairs = dict(part.split("-", 1) for part in folder.split("_") if "-" in part)
    if "task" in pairs:
        return {key: label_of(value) for key, value in pairs.items() if key not in ("sub", "ses")}
    match = RUN.fullmatch(folder)
    if match is None:
        return {"task": label_of(folder).lower()}
    numbered = NUMBERED_TASK.fullmatch(match["task"])
    if numbered is None:
        return {"task": label_of(match["task"]).lower(), "acq": match["acq"], "dir": match["dir"]}
    part = label_of(f"{match['acq'] or ''}{numbered[3] or ''}")  # REST1a and REST1b are halves of a run
    return {"task": numbered[1].lower(), "run": numbered[2], "acq": part or None, "dir": match["dir"]}


def candidates(place: Place) -> Iterator[Candidate]:
    """Runs below ``MNINonLinear/Results``; a folder that pools others and has no volume is no run."""
    results = place.folder / "Results"
    if not results.is_dir():
        return
    with os.scandir(results) as entries:
        names = sorted(entry.name for entry in entries if is_folder(entry))
    for name in names:
        pools = "CONCAT" in name or any(re.match(rf"{re.escape(name)}(\d|_)", other) for other in names)
        if pools and _volume(results / name, denoised=True) is None:
            continue
        entities = ordered({"sub": place.participant, "ses": place.session, **run_of(name)})
        yield Candidate(entities, partial(_build, results / name, entities), concatenates=pools)


def _build(folder: Path, entities: Entities, source: Source, request: Request) -> BoldRun:
    found = _volume(folder, denoised=request.desc != UNDENOISED)
    if found is None:
        raise _no_volume(folder)
    bold, denoising = found
    mask = first_there(folder, MASKS)
    checked(bold, mask)
    reference = folder / f"{folder.name}_SBRef.nii.gz"
    motion, unknown = motion_at(folder / MOTION, "hcp")
    t_r_s, notes = stated_t_r_s(folder / f"{folder.name}.json", bold)
    if denoising == "none" and request.desc != UNDENOISED and folder.name.startswith("rfMRI"):
        notes.append(f"{folder.name}: no ICA-FIX volume; the one without denoising is read")
    return BoldRun(
        source=replace(source, denoising=denoising),
        entities=dict(entities),
        images=(BoldImage(bold, SPACE, mask, reference if reference.is_file() else None),),
        motion=motion,
        t_r_s=t_r_s,
        warnings=(*notes, *unknown),
    )


def _volume(folder: Path, *, denoised: bool) -> tuple[Path, str] | None:
    """The series of a run and its denoising, the preferred one first."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith((".nii.gz", ".nii")))
    stems = {name.removesuffix(".gz").removesuffix(".nii").removeprefix(folder.name): name for name in names}
    for pattern, denoising in VOLUMES if denoised else VOLUMES[-1:]:
        for stem, name in stems.items():
            if name.startswith(folder.name) and pattern.fullmatch(stem):
                return folder / name, denoising
    return None


def _no_volume(folder: Path) -> RunUnusable:
    surfaces = any(folder.glob("*.dtseries.nii"))
    return RunUnusable(
        f"{folder.name} has only surface data" if surfaces else f"{folder.name} has no volume",
        file=folder,
        expected=f"{folder.name}.nii.gz or {folder.name}_hp2000_clean.nii.gz",
        remedy="Fetch the volumes of this run",
    )


LAYOUT = Layout(
    pipeline="HCP Pipelines",
    parse=participant_of,
    places=("MNINonLinear", "files/MNINonLinear"),
    shown="folders <id>/MNINonLinear/Results/<run>",
    candidates=candidates,
)
READER = LAYOUT.reader()
