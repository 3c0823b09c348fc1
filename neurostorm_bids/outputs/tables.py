"""Tab-separated tables whose columns carry their own description, so that table and sidecar cannot drift apart."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurostorm_bids.errors import NonFiniteOutput, TableUnreadable
from neurostorm_bids.outputs.atomic import NOT_FINITE_REMEDY

if TYPE_CHECKING:
    import numpy as np

MISSING = "n/a"


@dataclass(frozen=True)
class Column:
    """One column: its values and what a reader must know about them.

    ``values`` may hold floats (NaN or None for missing), integers, booleans and text.
    """

    name: str
    values: Sequence[Any] | np.ndarray
    description: str
    unit: str | None = None
    levels: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The column's entry in the sidecar."""
        entry: dict[str, Any] = {"Description": self.description}
        if self.unit:
            entry["Units"] = self.unit
        if self.levels:
            entry["Levels"] = dict(self.levels)
        return entry


def describe_columns(columns: Sequence[Column]) -> dict[str, Any]:
    """Sidecar entries of all columns, in the order of the table."""
    return {column.name: column.describe() for column in columns}


def tsv_text(columns: Sequence[Column]) -> str:
    """The table as text: nine significant digits (a float32 survives the round trip), ``n/a`` for missing.

    Raises
    ------
    NonFiniteOutput
        A value is infinite.
    ValueError
        Columns differ in length, share a name, or a text holds a tab or a line break.
    """
    names = [_cell(column.name, "header") for column in columns]
    if len(set(names)) != len(names) or len({len(column.values) for column in columns}) > 1:
        raise ValueError(f"columns of one table need distinct names and one length: {names}")
    values = zip(*(column.values for column in columns), strict=True)
    # a row at a time: the cells of a biobank's table would fill gigabytes
    rows = ("\t".join(map(_cell, row, header)) for row, header in zip(values, repeat(names), strict=False))
    return "".join(f"{line}\n" for line in chain(["\t".join(names)], rows))


def _cell(value: Any, column: str) -> str:
    if hasattr(value, "item"):  # NumPy scalar
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value, column)
    text = str(value)
    if any(mark in text for mark in "\t\n\r"):
        raise ValueError(f"column {column}: {text!r} holds a tab or a line break")
    return text


def _number(value: float, column: str) -> str:
    if math.isinf(value):
        raise NonFiniteOutput(
            f"column {column} holds an infinite value",
            expected="finite numbers, or none at all",
            remedy=NOT_FINITE_REMEDY,
        )
    return f"{value + 0.0:.9g}"  # + 0.0 turns -0 into 0


def read_tsv(path: Path) -> list[dict[str, str | None]]:
    """Rows of a table as text; missing values are None.

    Raises
    ------
    TableUnreadable
        The file is missing, empty, not text, or a row is short or long.
    """
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            header, *rows = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise TableUnreadable(f"cannot be read as a table ({error})", file=path, remedy=_RERUN) from error
    if any(len(row) != len(header) for row in rows):
        raise TableUnreadable("a row has not as many cells as the header", file=path, remedy=_RERUN)
    return [{name: None if cell == MISSING else cell for name, cell in zip(header, row, strict=True)} for row in rows]


_RERUN = "delete it and run the participant level again: it is the only thing that will be computed"
