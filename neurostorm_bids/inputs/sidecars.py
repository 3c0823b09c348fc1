"""What JSON files say of an image: repetition time, start time, whether the mean was removed (BIDS inheritance)."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from neurostorm_bids.errors import FileEmpty, NeurostormError, SidecarInvalid, SidecarUnreadable
from neurostorm_bids.inputs.names import Entities, io_spec, is_part_of, parse_name
from neurostorm_bids.inputs.presence import fault_of

LONGEST_TR_S = 30.0  # beyond it the unit is wrong (milliseconds) rather than the scanner slow
UNEVEN = 1e-3  # share of the repetition time by which volume onsets may differ from even spacing

Metadata = dict[str, Any]


def read_json(path: Path) -> Metadata:
    """Content of a JSON file that holds a table.

    Raises
    ------
    SidecarUnreadable, FileNotFetched, FileUnreadable
        When it is empty, is broken, holds no table, or is not there.
    """
    fault = fault_of(path)
    if isinstance(fault, FileEmpty):
        raise _no_json(path, "is empty (0 bytes)")
    if fault is not None:
        raise fault
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise _no_json(path, f"is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise _no_json(path, "holds no table")
    return content


def parse_json(text: str) -> Any:
    """Content of a JSON text, without the traps of the format.

    Raises
    ------
    ValueError
        For what is no JSON, for nesting or numbers beyond reason, and for an entry that is there twice: which of the
        two is meant?
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> Metadata:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:100]!r} is there twice")
    return table


def _no_json(path: Path, fault: str) -> SidecarUnreadable:
    return SidecarUnreadable(fault, file=path, expected="a JSON table", remedy="Restore it from the pipeline's output")


class Shared:
    """Files of one kind that apply to an image by BIDS inheritance: those of its folder and of the folders above it.

    Parameters
    ----------
    root : Path
        The dataset.
    ending : str
        What names end with ("bold.json", "events.tsv").
    """

    def __init__(self, root: Path, ending: str) -> None:
        self.root, self.ending = root, ending
        self._listed = lru_cache(maxsize=32)(self._list)  # the dataset's own level is asked for every image

    def applying(self, folder: str, entities: Entities, but: Sequence[str] = ()) -> list[Path]:
        """Files whose entities all occur in an image's, the general ones first.

        Parameters
        ----------
        folder : str
            Folder of the image below the dataset ("sub-01/func").
        entities : dict
            Entities of the image's name.
        but : sequence of str
            Entities that may differ.
        """
        parts = folder.split("/")
        levels = [self.root.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
        ignored = {"suffix", "extension", "datatype", *but}
        return [
            path for level in levels for path, named in self._listed(level) if is_part_of(named, entities, but=ignored)
        ]

    def _list(self, folder: Path) -> list[tuple[Path, Entities]]:
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.name.endswith(self.ending)]
        except OSError:
            return []
        described = [(folder / name, parse_name(name)) for name in names]
        return sorted(described, key=lambda one: (len(one[1]), one[0].name))


def merged(paths: Iterable[Path]) -> tuple[Metadata, list[NeurostormError]]:
    """Metadata of several JSON files, a later one overriding an earlier one, and the faults of those passed over."""
    metadata: Metadata = {}
    faults: list[NeurostormError] = []
    for path in paths:
        try:
            metadata |= read_json(path)
        except NeurostormError as fault:
            faults.append(fault)
    return metadata, faults


def repetition_time(metadata: Metadata, file: Path) -> float | None:
    """Repetition time in seconds, from RepetitionTime or evenly spaced VolumeTiming; None where neither is stated.

    Raises
    ------
    SidecarInvalid
        When it is no positive number of seconds, or volumes are spaced unevenly.
    """
    if metadata.get("RepetitionTime") is None:
        return _spacing(metadata.get("VolumeTiming"), file)
    value = _number(metadata["RepetitionTime"])
    if value is None or not 0 < value <= LONGEST_TR_S:
        raise SidecarInvalid(
            f"RepetitionTime is {reprlib.repr(metadata['RepetitionTime'])}",
            file=file,
            expected=f"seconds, above 0 and at most {LONGEST_TR_S:g}",
            remedy="Correct it in the JSON sidecar",
        )
    return value


def _spacing(onsets_s: Any, file: Path) -> float | None:
    if onsets_s is None:
        return None
    numbers = [_number(onset) for onset in onsets_s] if isinstance(onsets_s, list) else []
    steps = [b - a for a, b in pairwise(numbers) if a is not None and b is not None]
    even = bool(steps) and len(steps) == len(numbers) - 1 and max(steps) - min(steps) <= UNEVEN * max(steps)
    if not even or not 0 < steps[0] <= LONGEST_TR_S:
        raise SidecarInvalid(
            "VolumeTiming is not evenly spaced", file=file, expected="one repetition time", remedy="Leave this run out"
        )
    return sum(steps) / len(steps)


def start_time(metadata: Metadata, file: Path) -> float:
    """Start of the first volume in seconds (``StartTime``), 0 where it is not stated.

    Raises
    ------
    SidecarInvalid
        When it is no number.
    """
    value = _number(metadata.get("StartTime", 0.0))
    if value is None:
        raise SidecarInvalid(
            f"StartTime is {reprlib.repr(metadata['StartTime'])}",
            file=file,
            expected="a number of seconds",
            remedy="Correct it in the JSON sidecar",
        )
    return value


def mean_removed(metadata: Metadata, desc: str | None) -> bool | None:
    """Whether the series lost its mean: the sidecar's word first, then what is known of its ``desc``."""
    for key in io_spec()["mean_removed_keys"]:
        if isinstance(metadata.get(key), bool):
            return metadata[key]
    return io_spec()["denoising"].get(desc, {}).get("mean_removed")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON knows whole numbers that no float can hold
        return None
    return number if math.isfinite(number) else None
