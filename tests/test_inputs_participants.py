"""``participants.tsv``: types, labels, descriptions, and what makes it unusable."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from neurostorm_bids.errors import ParticipantsUnusable
from neurostorm_bids.inputs.participants import read_participants

TABLE = (
    "participant_id\tage\tsex\tsite\tgroup\n"
    "sub-01\t34.5\t1\t01\tcontrol\n"
    "sub-02\tn/a\t0\t02\tn/a\n"
    "sub-x3\t8\tn/a\tn/a\tpatient\n"
)


def dataset(tmp_path, table: str | bytes = TABLE, columns=None):
    (tmp_path / "participants.tsv").write_bytes(table if isinstance(table, bytes) else table.encode())
    if columns is not None:
        (tmp_path / "participants.json").write_text(columns if isinstance(columns, str) else json.dumps(columns))
    return tmp_path


def test_numbers_codes_and_texts(tmp_path):
    table = read_participants(dataset(tmp_path))
    assert list(table.index) == ["01", "02", "x3"] and table.index.name == "participant_id"
    np.testing.assert_array_equal(table["age"], [34.5, np.nan, 8.0])
    np.testing.assert_array_equal(table["sex"], [1.0, 0.0, np.nan])
    assert table["site"].iloc[0] == "01" and pd.isna(table["site"].iloc[2])  # a number would lose the zero
    assert table["group"].iloc[0] == "control" and pd.isna(table["group"].iloc[1])
    assert table.attrs["columns"] == {}


def test_levels_keep_a_column_as_text(tmp_path):
    described = {"sex": {"Levels": {"0": "female", "1": "male"}}, "age": {"Units": "year"}, "note": "no description"}
    table = read_participants(dataset(tmp_path, columns=described))
    assert list(table["sex"].iloc[:2]) == ["1", "0"] and pd.isna(table["sex"].iloc[2])
    assert table.attrs["columns"] == {"sex": described["sex"], "age": {"Units": "year"}}


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text, lambda text: text + "\n\n"]
)
def test_what_spreadsheets_do(tmp_path, change):
    plain = read_participants(dataset(tmp_path))
    pd.testing.assert_frame_equal(read_participants(dataset(tmp_path, change(TABLE))), plain)


def test_the_table_itself_may_be_named(tmp_path):
    path = dataset(tmp_path).joinpath("participants.tsv").rename(tmp_path / "mine.tsv")
    assert len(read_participants(path)) == 3


@pytest.mark.parametrize(
    "table, message",
    [
        ("", r"is empty \(0 bytes\)"),
        ("participant_id\tage\n", "has no rows"),
        ("id\tage\nsub-01\t3\n", "has no column participant_id. expected it beside id, age"),
        (
            "participant_id\tage\nsub-01\t3\nsub-02\t4\n01\t5\n",
            "names 01 twice. expected one row a participant.*sessions.tsv",
        ),
        ("participant_id\tage\nsub-01\t3\nn/a\t4\n\t5\n", "names no participant in row 3, 4"),
        ("participant_id\tage\nsub-01\t3\nsub-02\n", "row 3 has 1 fields and the heading 2"),
        ("participant_id\tage\tage\nsub-01\t3\t4\n", "names a column twice"),
        (b"participant_id\nsub-\xff\n", "is no table"),
        (TABLE.replace("\t", ","), "has no column participant_id"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, table, message):
    with pytest.raises(ParticipantsUnusable, match=message) as caught:
        read_participants(dataset(tmp_path, table))
    assert str(tmp_path / "participants.tsv") in str(caught.value) and caught.value.exit_code == 66


def test_many_participants_named_twice(tmp_path):
    rows = "".join(f"sub-{n:02d}\n" for n in range(9))
    with pytest.raises(ParticipantsUnusable, match="names 00, 01, 02, 03, 04 and 4 more twice"):
        read_participants(dataset(tmp_path, f"participant_id\n{rows}{rows}"))


def test_no_table(tmp_path):
    with pytest.raises(ParticipantsUnusable, match="cannot be found"):
        read_participants(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_broken_descriptions(tmp_path, content):
    with pytest.raises(ParticipantsUnusable, match=r"participants.json: .*Mend it or remove it"):
        read_participants(dataset(tmp_path, columns=content))


def test_real_participants(shared):
    table = read_participants(shared / "real/layouts/bids-examples/ds005")
    assert len(table) == 16 and table["age"].between(18, 40).all() and set(table["sex"]) == {"M", "F"}
    assert table.attrs["columns"]["sex"]["Levels"] == {"M": "Male", "F": "Female"}
    assert len(read_participants(shared / "real/layouts/pybids/ds005")) == 16
