"""Mutation testing: what counts as wording, and which tests try a mutant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import mutation, mutation_tests

CALLERS = {"a": ["t.py::wide", "t.py::near[1]", "t.py::near[2]"], "b": ["t.py::wide"], "c": ["t.py::wide"]}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("raise MaskUnusable('NO MASK', file=path, remedy='look')", True),
        ("raise MaskUnusable('no mask', file=None, remedy='look')", False),
        ("raise MaskUnusable('no mask', file=path, remedy=None)", False),
        ("raise MaskUnusable('no mask', file=path)", False),
        ("return MaskUnusable('no mask', file=path, remedy='look')", False),
    ],
)
def test_wording_is_nothing_but_the_letters_of_a_message(other: str, same: bool):
    one = "raise MaskUnusable('no mask', file=path, remedy='look')"
    assert (mutation.silenced(one) == mutation.silenced(other)) == same


def chosen(monkeypatch, folder: Path, mutant: str, limit: str) -> list[str]:
    (folder / "mutmut-stats.json").write_text(json.dumps({"tests_by_mangled_function_name": CALLERS}))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MUTANT_UNDER_TEST", mutant)
    monkeypatch.setenv(mutation_tests.LIMIT, limit)
    items = [SimpleNamespace(nodeid=name) for name in CALLERS["a"]]
    mutation_tests.pytest_collection_modifyitems(None, items)
    return [item.nodeid.partition("::")[2] for item in items]


@pytest.mark.parametrize(
    ("mutant", "limit", "expected"),
    [
        ("m.x_a__mutmut_1", "", ["near[1]", "near[2]", "wide"]),
        ("m.x_a__mutmut_1", "1", ["near[1]"]),
        ("stats", "1", ["wide", "near[1]", "near[2]"]),  # whatever is no mutant is left as it is
    ],
)
def test_the_nearest_tests_try_a_mutant_first(
    monkeypatch, tmp_path: Path, mutant: str, limit: str, expected: list[str]
):
    assert chosen(monkeypatch, tmp_path, mutant, limit) == expected


def test_variants_of_a_test_come_after_others_as_near():
    names = ["a[1]", "a[2]", "b", "c"]
    assert mutation_tests.nearest_first(names, {"a[1]": 1, "a[2]": 1, "b": 1, "c": 2}) == ["a[1]", "b", "a[2]", "c"]
