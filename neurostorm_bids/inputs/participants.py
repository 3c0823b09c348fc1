"""The participants of a dataset and what the columns of their table mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurostorm_bids.errors import NeurostormError, ParticipantsUnusable
from neurostorm_bids.inputs.sidecars import read_json
from neurostorm_bids.inputs.tables import MISSING, number, read_columns

ID = "participant_id"
REMEDY = "Mend the table; see the BIDS specification on participants.tsv"
SHOWN = 5

Description = Mapping[str, Any]


def read_participants(dataset: Path) -> pd.DataFrame:
    """``participants.tsv`` of a dataset, one row a participant.

    Parameters
    ----------
    dataset : Path
        The dataset, or the table itself.

    Returns
    -------
    DataFrame
        Indexed by label without ``sub-``, in the table's order. ``n/a`` is missing. A column is numeric when all its
        values are numbers and ``participants.json`` gives no ``Levels`` for it; codes like ``01`` stay text.
        ``attrs["columns"]`` holds what ``participants.json`` says of each column.

    Raises
    ------
    ParticipantsUnusable
        When the table is not there or cannot be read, lacks ``participant_id``, has rows of different lengths,
        names a participant twice or not at all, or when ``participants.json`` is broken.
    """
    path = dataset / "participants.tsv" if dataset.is_dir() else dataset
    columns = read_columns(path, ParticipantsUnusable, REMEDY)
    if ID not in columns:
        raise _unusable(path, f"has no column {ID}", f"it beside {', '.join(list(columns)[:SHOWN])}")
    labels = _labels(path, columns[ID])
    described = describe_columns(path.with_suffix(".json"))
    values = {name: _values(column, described.get(name, {})) for name, column in columns.items() if name != ID}
    table = pd.DataFrame(values, index=pd.Index(labels, name=ID, dtype=object))
    table.attrs["columns"] = described
    return table


def describe_columns(path: Path) -> dict[str, Description]:
    """What the JSON file of a table says of its columns; nothing where there is no file.

    Raises
    ------
    ParticipantsUnusable
        When the file is broken.
    """
    if not path.is_symlink() and not path.exists():
        return {}
    try:
        content = read_json(path)
    except NeurostormError as fault:
        raise ParticipantsUnusable(
            fault.fault, file=path, expected=fault.expected, remedy="Mend it or remove it"
        ) from None
    return {name: entry for name, entry in content.items() if isinstance(entry, dict)}


def _labels(path: Path, column: Sequence[str]) -> list[str]:
    labels = [text.removeprefix("sub-") for text in column]
    nameless = [str(line) for line, label in enumerate(labels, 2) if label in MISSING]
    if nameless:
        raise _unusable(path, f"names no participant in row {', '.join(nameless[:SHOWN])}", "a label in each row")
    twice = [label for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise _unusable(
            path,
            f"names {', '.join(twice[:SHOWN])}{f' and {len(twice) - SHOWN} more' if len(twice) > SHOWN else ''} twice",
            "one row a participant; what changes between sessions belongs into sub-*_sessions.tsv",
        )
    return labels


def _values(column: Sequence[str], description: Description) -> np.ndarray:
    numbers = [number(text) for text in column]
    if "Levels" in description or None in numbers or any(_is_code(text) for text in column):
        return np.array([None if text in MISSING else text for text in column], dtype=object)
    return np.array(numbers, dtype=float)


def _is_code(text: str) -> bool:
    """Whether leading zeros would be lost if this were read as a number."""
    return len(text) > 1 and text[0] == "0" and text[1].isdigit()


def _unusable(path: Path, fault: str, expected: str) -> ParticipantsUnusable:
    return ParticipantsUnusable(fault, file=path, expected=expected, remedy=REMEDY)
