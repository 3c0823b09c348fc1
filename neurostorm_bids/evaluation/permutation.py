"""Permutations of labels that respect how the rows hang together, and the p value that follows from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from neurostorm_bids.evaluation.metrics import LOWER_IS_BETTER
from neurostorm_bids.evaluation.problem import Problem


def permutations(problem: Problem, n: int, seed: int) -> np.ndarray:
    """Orders of the rows that are as likely as the observed one when nothing can be predicted.

    Within a site only; families of one size trade places as wholes, and their members among themselves. Where the
    values of one participant differ from row to row (tasks, sessions), rows trade places within the participant.

    Returns
    -------
    ndarray of shape (n rows, n), int
    """
    if n == 0:
        return np.empty((problem.n_rows, 0), int)
    rng = np.random.default_rng([seed, 77])
    if _varies_within(problem):
        blocks = _members(problem.participants)
        return np.stack([_within(blocks, problem.n_rows, rng) for _ in range(n)], axis=1)
    people = _members(problem.participants)
    pools = _pools(problem, people)
    return np.stack([_between(pools, people, problem.n_rows, rng) for _ in range(n)], axis=1)


def _varies_within(problem: Problem) -> bool:
    values: dict[str, set] = defaultdict(set)
    for participant, value in zip(problem.participants, problem.values.tolist(), strict=True):
        values[participant].add(value)
    return any(len(found) > 1 for found in values.values())


def _members(names: Sequence[str]) -> dict[str, np.ndarray]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[name].append(row)
    return {name: np.array(found) for name, found in rows.items()}


def _within(blocks: Mapping[str, np.ndarray], n_rows: int, rng: np.random.Generator) -> np.ndarray:
    order = np.arange(n_rows)
    for rows in blocks.values():
        order[rows] = rng.permutation(rows)
    return order


def _pools(problem: Problem, people: Mapping[str, np.ndarray]) -> list[list[list[str]]]:
    """Families (lists of participants) that may trade places: of one site and one size."""
    families: dict[tuple[str, str], list[str]] = defaultdict(list)
    for participant, rows in people.items():
        families[problem.sites[rows[0]], problem.families[rows[0]]].append(participant)
    pools: dict[tuple[str, int], list[list[str]]] = defaultdict(list)
    for (site, _), members in families.items():
        pools[site, len(members)].append(members)
    return list(pools.values())


def _between(
    pools: list[list[list[str]]], people: Mapping[str, np.ndarray], n_rows: int, rng: np.random.Generator
) -> np.ndarray:
    """Each participant's rows take the value of the participant who came into their place."""
    order = np.empty(n_rows, int)
    for pool in pools:
        for receivers, number in zip(pool, rng.permutation(len(pool)), strict=True):
            givers = [pool[number][place] for place in rng.permutation(len(receivers))]
            for receiver, giver in zip(receivers, givers, strict=True):
                order[people[receiver]] = people[giver][0]
    return order


def p_value(metric: str, observed: float, permuted: np.ndarray) -> float:
    """Share of labellings, the observed one included, that do as well (one-sided); NaN without permutations."""
    if not permuted.size or np.isnan(observed):
        return float("nan")
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    # an undefined value (a constant prediction) is no success; sums in another order must not break a tie
    as_good = np.nan_to_num(sign * permuted, nan=-np.inf) >= sign * observed - 1e-9 * abs(observed)
    return float((1 + as_good.sum()) / (1 + permuted.size))
