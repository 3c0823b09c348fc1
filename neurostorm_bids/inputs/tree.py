"""The files of one participant: a short walk, or a PyBIDS index where the user named one.

PyBIDS reads the names (see ``names``), but its layout of a whole dataset costs 0.3 ms and 13 kB a file, so that no
layout is built here unless ``--bids-database-dir`` asks for one, and then one a participant.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from neurostorm_bids.inputs.names import Entities, io_spec, parse_name

DATATYPES = ("func", "anat")


@dataclass(frozen=True, slots=True)
class File:
    """A file and what its name says. ``rank`` is the place of its dataset in the user's order."""

    path: str
    entities: Entities
    rank: int = 0


def participants_of(root: Path) -> list[str]:
    """Labels of the ``sub-*`` folders of a dataset, sorted."""
    with os.scandir(root) as entries:
        return sorted(e.name.removeprefix("sub-") for e in entries if e.name.startswith("sub-") and e.is_dir())


def participant_files(root: Path, participant: str, sessions: tuple[str, ...] = (), rank: int = 0) -> list[File]:
    """Files of one participant that some query could ask for.

    Only ``func`` and ``anat`` folders are entered, only those of the given sessions, and only names with a suffix
    of ``io_spec.json`` are parsed. A file whose name contradicts its folder belongs to nobody and is left out.
    """
    return [
        File(f"{folder}/{name}", parse_name(name, datatype), rank)
        for folder, datatype, prefix in _folders(root / f"sub-{participant}", sessions)
        for name in _names(folder)
        if name.startswith(prefix)
    ]


def _folders(top: Path, sessions: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    for name in _folder_names(top):
        if name in DATATYPES:
            yield f"{top}/{name}", name, f"{top.name}_"
        elif name.startswith("ses-") and (not sessions or name.removeprefix("ses-") in sessions):
            for datatype in _folder_names(top / name):
                if datatype in DATATYPES:
                    yield f"{top}/{name}/{datatype}", datatype, f"{top.name}_{name}_"


def _folder_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []


def _names(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_asked_for(entry.name))


def _is_asked_for(name: str) -> bool:
    stem, _, extension = name.partition(".")
    return extension != "json" and (stem.rpartition("_")[2] in _suffixes() or extension == "func.gii")


@cache
def _suffixes() -> frozenset[str]:
    asked = [query["suffix"] for alternatives in io_spec()["queries"].values() for query in alternatives]
    return frozenset(suffix for one in asked for suffix in (one if isinstance(one, list) else [one]) if suffix)
