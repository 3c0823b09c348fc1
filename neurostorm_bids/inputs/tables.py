"""Tab-separated tables, read strictly: a ragged row is an error, not a missing value."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from neurostorm_bids.errors import NeurostormError
from neurostorm_bids.inputs.presence import fault_of

MISSING = frozenset({"n/a", "N/A", "NA", "nan", "NaN", ""})

Columns = Mapping[str, Sequence[str]]


def read_columns(path: Path, error: type[NeurostormError], remedy: str) -> Columns:
    """A table as texts by column, without the spaces around them; a byte order mark and CRLF line ends are accepted.

    Parameters
    ----------
    path : Path
    error : type of NeurostormError
        What to raise.
    remedy : str
        What the user can do.

    Raises
    ------
    error
        When the table is not there, is not UTF-8, has no rows, names a column twice, or has rows of different lengths.
    """
    if fault := fault_of(path):
        raise error(fault.fault, file=path, expected=fault.expected, remedy=fault.remedy or remedy)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [row or [""] for row in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise not_a_table(path, f"is no table: {problem}", error, remedy) from None
    while rows and rows[-1] == [""]:  # blank lines at the end are the work of editors
        rows.pop()
    heading, body = ([name.strip() for name in rows[0]], rows[1:]) if rows else ([], [])
    if not body:
        raise not_a_table(path, "has no rows", error, remedy)
    if len(set(heading)) < len(heading):
        raise not_a_table(path, "names a column twice", error, remedy)
    for number, row in enumerate(body, 2):
        if len(row) != len(heading):
            raise not_a_table(path, f"row {number} has {len(row)} fields and the heading {len(heading)}", error, remedy)
    columns = zip(*body, strict=True)
    return {name: [value.strip() for value in column] for name, column in zip(heading, columns, strict=True)}


def not_a_table(path: Path, fault: str, error: type[NeurostormError], remedy: str) -> NeurostormError:
    """The error for a table that is none."""
    return error(fault, file=path, expected="a tab-separated table with a heading", remedy=remedy)


def number(text: str) -> float | None:
    """A text as number: NaN for a missing value, None for what is neither."""
    if text in MISSING:
        return math.nan
    try:
        return float(text)
    except ValueError:
        return None
