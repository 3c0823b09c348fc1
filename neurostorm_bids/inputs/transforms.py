"""The transforms that belong to a run, of all naming generations of fMRIPrep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from neurostorm_bids.errors import FileNotFetched
from neurostorm_bids.inputs.images import asked
from neurostorm_bids.inputs.names import Query
from neurostorm_bids.inputs.presence import fault_of
from neurostorm_bids.inputs.runs import TransformFile
from neurostorm_bids.inputs.spaces import ends_of
from neurostorm_bids.inputs.tree import File

Ends = tuple[str, str]
NAMED = 3  # transforms named in one warning


def transforms_of(files: Iterable[File], alternatives: Sequence[Query]) -> tuple[list[TransformFile], list[str]]:
    """Transforms among some files, one for each pair of spaces, and warnings about those left out.

    An earlier dataset goes before a later one. Of two transforms between the same spaces in one dataset none is
    taken, since which of them belongs to the run is not stated anywhere.
    """
    by_ends: dict[Ends, list[File]] = defaultdict(list)
    for file in asked(files, alternatives):
        ends = ends_of(file.entities)
        if ends is not None:
            by_ends[ends].append(file)
    transforms, warnings, absent = [], [], []
    for ends, rivals in by_ends.items():
        first = [file for file in rivals if file.rank == min(one.rank for one in rivals)]
        if len(first) > 1:
            names = ", ".join(Path(file.path).name for file in first)
            warnings.append(f"{names}: more than one transform from {ends[0]} to {ends[1]}; none is used")
        elif fault := fault_of(first[0].path):
            absent.append(fault)
        else:
            transforms.append(TransformFile(Path(first[0].path), *ends))
    return transforms, warnings + _left_out(absent)


def _left_out(faults: Sequence) -> list[str]:
    if not faults:
        return []
    paths = ", ".join(str(fault.file) for fault in faults[:NAMED])
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    fetch = "; run `datalad get` on them" if any(isinstance(fault, FileNotFetched) for fault in faults) else ""
    return [f"transforms left out, {faults[0].fault}: {paths}{more}{fetch}"]


def anatomical(files: Iterable[File], session: str | None) -> list[File]:
    """Anatomical files that belong to a session: its own, else those without one, else the only session's."""
    by_session: dict[str | None, list[File]] = defaultdict(list)
    for file in files:
        by_session[file.entities.get("session")].append(file)
    own = by_session.get(session) or by_session.get(None)
    if own is not None:
        return own
    return next(iter(by_session.values())) if len(by_session) == 1 else []
