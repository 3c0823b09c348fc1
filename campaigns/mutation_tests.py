"""A plugin of pytest for mutation testing, ``-p campaigns.mutation_tests``: which tests try a mutant, in what order.

First come those that call the fewest functions of the group: they look at the changed one most closely. Variants of
one test are spread. Of them all, at most as many are run as ``NEUROSTORM_MUTATION_TESTS`` says.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

LIMIT = "NEUROSTORM_MUTATION_TESTS"
STATISTICS = Path("mutmut-stats.json")  # which tests call what, as mutmut found before


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of a mutant in order; whatever else mutmut runs stays as it is."""
    if "__mutmut_" not in os.environ.get("MUTANT_UNDER_TEST", "") or not STATISTICS.is_file():
        return
    callers = json.loads(STATISTICS.read_text())["tests_by_mangled_function_name"]
    calls = Counter(name for names in callers.values() for name in names)
    ordered = {item.nodeid: item for item in items}
    chosen = nearest_first(list(ordered), calls)[: int(os.environ.get(LIMIT) or len(items))]
    items[:] = [ordered[name] for name in chosen]


def nearest_first(names: Sequence[str], calls: Mapping[str, int]) -> list[str]:
    """Tests by how many functions they call; a further variant of the same test counts as one function more.

    >>> nearest_first(["b", "a[1]", "a[2]", "c"], {"a[1]": 1, "a[2]": 1, "b": 2, "c": 1})
    ['a[1]', 'c', 'b', 'a[2]']
    """
    before: Counter[str] = Counter()
    weights: dict[str, int] = {}
    for name in names:
        test = name.partition("[")[0]
        weights[name] = calls.get(name, 0) + before[test]
        before[test] += 1
    return sorted(names, key=weights.__getitem__)
