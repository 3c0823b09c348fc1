"""Framewise displacement and non-steady-state volumes from confounds tables, whole and broken."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurostorm_bids.errors import ConfoundsUnusable
from neurostorm_bids.inputs import BoldRun, Source
from neurostorm_bids.inputs.motion import ROTATIONS_RAD, TRANSLATIONS_MM, framewise_displacement, read_motion

FD = "framewise_displacement"
OUTLIER = "non_steady_state_outlier"


def run_with(path) -> BoldRun:
    return BoldRun(Source(path.parent, "fMRIPrep"), {"sub": "01", "task": "rest"}, (), confounds=path)


@pytest.fixture
def table(tmp_path):
    """Writes columns as a confounds table and returns a run that has it."""

    def write(columns: dict[str, list], line_end: str = "\n", start: str = ""):
        path = tmp_path / "sub-01_task-rest_desc-confounds_timeseries.tsv"
        rows = [
            "\t".join(columns),
            *("\t".join(str(value) for value in row) for row in zip(*columns.values(), strict=True)),
        ]
        path.write_bytes((start + line_end.join(rows) + line_end).encode())
        return run_with(path)

    return write


def parameters(rng_or_values, n=6):
    values = np.asarray(rng_or_values, float).reshape(n, 6)
    return {name: list(values[:, i]) for i, name in enumerate((*TRANSLATIONS_MM, *ROTATIONS_RAD))}


def test_displacement_and_flags(table):
    motion = read_motion(table({FD: ["n/a", 0.1, 0.25], f"{OUTLIER}00": [1, 0, 0], f"{OUTLIER}01": [0, 1, 0]}), 3)
    np.testing.assert_array_equal(motion.fd_mm, [np.nan, 0.1, 0.25])
    assert motion.non_steady_volumes == 2 and motion.warnings == ()


def test_a_run_without_confounds(tmp_path):
    motion = read_motion(BoldRun(Source(tmp_path, "fMRIPrep"), {"sub": "01"}, ()), 100)
    assert (motion.fd_mm, motion.non_steady_volumes) == (None, 0)


@pytest.mark.parametrize("line_end, start", [("\r\n", ""), ("\n", "\ufeff")])
def test_line_ends_and_byte_order_marks_of_spreadsheets(table, line_end, start):
    motion = read_motion(table({FD: ["n/a", 0.1], "csf": [1, 2]}, line_end, start), 2)
    np.testing.assert_array_equal(motion.fd_mm, [np.nan, 0.1])


def test_displacement_from_motion_parameters(table):
    moves = np.zeros((6, 6))
    moves[2, 0] = 0.5  # mm, there and back
    moves[4:, 5] = 0.01  # rad, 0.5 mm on a sphere of 50 mm
    motion = read_motion(table(parameters(moves)), 6)
    np.testing.assert_allclose(motion.fd_mm, [np.nan, 0, 0.5, 0.5, 0.5, 0])
    assert "computed from the motion parameters" in motion.warnings[0]


@given(st.lists(st.floats(-5, 5), min_size=12, max_size=12), st.floats(-10, 10))
def test_displacement_does_not_depend_on_where_the_head_lies(values, offset):
    moves = np.array(values).reshape(2, 6)
    fd = framewise_displacement(moves[:, :3], moves[:, 3:])
    shifted = framewise_displacement(moves[:, :3] + offset, moves[:, 3:] - offset)
    assert np.isnan(fd[0])
    np.testing.assert_allclose(shifted[1:], fd[1:], atol=1e-9)
    np.testing.assert_allclose(
        fd[1], np.abs(moves[1, :3] - moves[0, :3]).sum() + 50 * np.abs(moves[1, 3:] - moves[0, 3:]).sum()
    )


def test_a_table_without_motion(table):
    motion = read_motion(table({"csf": [1, 2], f"{OUTLIER}00": [1, 0]}), 2)
    assert motion.fd_mm is None and motion.non_steady_volumes == 1
    assert "no framewise_displacement and no motion parameters; head motion is not known" in motion.warnings[0]


def test_displacement_with_gaps(table):
    motion = read_motion(table({FD: ["n/a", 0.1, "n/a", "", 0.2]}), 5)
    np.testing.assert_array_equal(motion.fd_mm, [np.nan, 0.1, np.nan, np.nan, 0.2])
    assert f"{FD} is missing for 2 of 5 volumes" in motion.warnings[0]
    motion = read_motion(table({FD: ["n/a"] * 5, "csf": [1] * 5}), 5)
    assert motion.fd_mm is None and "missing for 4 of 5 volumes" in motion.warnings[0]


@pytest.mark.parametrize(
    "flags, leading, later",
    [([0, 1, 0, 0], 0, 1), ([1, 0, 1, 0], 1, 1), ([1, 1, 1, 1], 4, 0), ([0, 0, 0, 0], 0, 0), ([1, "n/a", 0, 0], 1, 0)],
)
def test_only_flags_at_the_beginning_count(table, flags, leading, later):
    motion = read_motion(table({FD: ["n/a", 0, 0, 0], f"{OUTLIER}00": flags}), 4)
    assert motion.non_steady_volumes == leading
    assert [f"{later} volumes flagged" in text for text in motion.warnings] == [True] * bool(later)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", r"is empty \(0 bytes\)"),
        ("framewise_displacement\n", "has no rows"),
        ("a\ta\n1\t2\n1\t2\n1\t2\n", "names a column twice"),
        ("a\tframewise_displacement\n1\tn/a\n1\n1\t0.1\n", "row 3 has 1 fields and the heading 2"),
        ("framewise_displacement\nn/a\n0.1\t7\n0.1\n", "row 3 has 2 fields and the heading 1"),
        ("framewise_displacement\nn/a\n0.1\n", "has 2 rows for 3 volumes. expected one row a volume"),
        ("framewise_displacement\nn/a\n0.1\n0.1\n0.1\n", "has 4 rows for 3 volumes"),
        ("framewise_displacement\nn/a\n0.1\nmuch\n", "column framewise_displacement holds 'much'"),
        ("framewise_displacement\nn/a\n0.1\ninf\n", "column framewise_displacement holds 'inf'"),
        ("framewise_displacement\nn/a\n0.1\n-0.1\n", "framewise_displacement is negative"),
        ("non_steady_state_outlier00\n1\nx\n0\n", "column non_steady_state_outlier00 holds 'x'"),
        (b"framewise_displacement\n\xff\xfe\n0\n0\n", "is no table"),
    ],
)
def test_broken_tables(tmp_path, content, message):
    path = tmp_path / "confounds.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfoundsUnusable, match=message) as caught:
        read_motion(run_with(path), 3)
    assert str(path) in str(caught.value) and caught.value.remedy


def test_a_table_that_was_not_fetched(tmp_path):
    path = tmp_path / "confounds.tsv"
    path.symlink_to(tmp_path / "annex")
    with pytest.raises(ConfoundsUnusable, match=r"not fetched.*datalad get"):
        read_motion(run_with(path), 3)


# --- real tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, non_steady", [("test", 1), ("nonss", 0)])
def test_real_confounds(shared, name, non_steady):
    motion = read_motion(run_with(shared / f"real/confounds/{name}_desc-confounds_regressors.tsv"), 30)
    assert motion.fd_mm.shape == (30,) and np.isnan(motion.fd_mm[0])
    np.testing.assert_array_equal(motion.fd_mm[1:3], [0.2047947273, 0.0840943474])
    assert motion.non_steady_volumes == non_steady and motion.warnings == ()


def test_real_confounds_cut_short(shared):
    path = shared / "real/confounds/missing_desc-confounds_regressors.tsv"
    with pytest.raises(ConfoundsUnusable, match="has 1 rows for 30 volumes"):
        read_motion(run_with(path), 30)


def test_computed_displacement_is_that_of_fmriprep(shared):
    path = shared / "real/layouts/niworkflows/sub-01_task-mixedgamblestask_run-01_desc-motion_timeseries.tsv"
    with path.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))

    def column(names):
        return np.array([[float(row[name]) for name in names] for row in rows])

    computed = framewise_displacement(column(TRANSLATIONS_MM), column(ROTATIONS_RAD))
    np.testing.assert_allclose(computed[1:], [float(row[FD]) for row in rows[1:]], atol=1e-9)
