"""The files of one participant: a short walk, or a PyBIDS index where the user named one.

PyBIDS reads the names (see ``names``), but its layout of a whole dataset costs 0.3 ms and 13 kB a file, so that no
layout is built here unless ``--bids-database-dir`` asks for one, and then one a participant.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from neurostorm_bids.inputs.database import indexed_paths
from neurostorm_bids.inputs.names import Entities, asked_suffixes, parse_name
from neurostorm_bids.inputs.presence import is_folder

DATATYPES = ("func", "anat")
VOLUMES = ("_bold.nii.gz", "_bold.nii")


@dataclass(frozen=True, slots=True)
class File:
    """A file and what its name says. ``rank`` is the place of its dataset in the user's order."""

    path: str
    entities: Entities
    rank: int = 0


def participants_of(root: Path) -> list[str]:
    """Labels of the ``sub-*`` folders of a dataset, sorted."""
    with os.scandir(root) as entries:
        return sorted(e.name.removeprefix("sub-") for e in entries if e.name.startswith("sub-") and is_folder(e))


def participant_folder(root: Path, participant: str) -> Path:
    """Where the files of one participant lie."""
    return root / f"sub-{participant}"


def participant_files(root: Path, participant: str, rank: int = 0, database_dir: Path | None = None) -> list[File]:
    """Files of one participant that some query could ask for.

    Only ``func`` and ``anat`` folders are entered, and only names with a suffix of ``io_spec.json`` are parsed. A
    file whose name contradicts its folder belongs to nobody and is left out.

    Raises
    ------
    DatabaseUnusable
        When a PyBIDS index is asked for and cannot be used.
    """
    top = participant_folder(root, participant)
    found = _walked(top) if database_dir is None else _indexed(root, participant, database_dir)
    return [
        File(f"{top}/{folder}/{name}", parse_name(name, folder.rpartition("/")[2]), rank)
        for folder, name in found
        if _is_asked_for(name) and _is_at_home(top.name, folder, name)
    ]


def _is_at_home(participant: str, folder: str, name: str) -> bool:
    session, _, datatype = folder.rpartition("/")
    return datatype in DATATYPES and name.startswith(f"{participant}_{session}_" if session else f"{participant}_")


def _walked(top: Path) -> Iterator[tuple[str, str]]:
    """Folder below the participant's and name of each file."""
    for folder in _folder_names(top):
        below = [f"{folder}/{name}" for name in _folder_names(top / folder)] if folder.startswith("ses-") else [folder]
        for place in below:
            if place.rpartition("/")[2] in DATATYPES:
                with os.scandir(top / place) as entries:
                    yield from sorted((place, entry.name) for entry in entries)


def _indexed(root: Path, participant: str, database_dir: Path) -> Iterator[tuple[str, str]]:
    top = f"{participant_folder(root, participant)}/"
    for path in indexed_paths(root, participant, database_dir):
        folder, _, name = path.removeprefix(top).rpartition("/")
        yield folder, name


def _folder_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_folder(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_asked_for(name: str) -> bool:
    stem, _, extension = name.partition(".")
    asked = stem.rpartition("_")[2] in asked_suffixes() or extension == "func.gii" or name.endswith(VOLUMES)
    return asked and extension != "json"
