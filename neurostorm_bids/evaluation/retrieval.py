"""Telling people apart: each query among a gallery in which everybody lies once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from neurostorm_bids.evaluation.intervals import Interval, percentile, score_interval
from neurostorm_bids.evaluation.metrics import Scores

RETRIEVAL = ("rank1", "rank5", "map")
DESCRIPTIONS = {
    "rank1": "Share of queries whose own participant comes first.",
    "rank5": "Share of queries whose own participant is among the first five.",
    "map": "Mean over queries of 1 / rank: the average precision with one right entry.",
}


@dataclass(frozen=True, eq=False)
class Ranks:
    """The rank that each query gives to each entry of the gallery, from 1 on; of ties all have the last.

    ``of_all`` (n queries, n entries), entry i being query i's own participant; ``participants`` one a query.
    """

    of_all: np.ndarray
    participants: tuple[str, ...]

    @property
    def rank(self) -> np.ndarray:
        """The rank of each query's own participant.  # (n,)"""
        return np.diag(self.of_all)

    @property
    def gallery(self) -> int:
        """Participants to choose from."""
        return len(self.of_all)


def ranks(query: np.ndarray, gallery: np.ndarray, participants: tuple[str, ...]) -> Ranks:
    """Rank everybody by the correlation of features; row i of both is participant i.

    Parameters
    ----------
    query, gallery : ndarray of shape (n, d)
        Features are centred and scaled over the gallery, which knows nothing of who the queries are.
    """
    mean, spread = gallery.mean(axis=0), gallery.std(axis=0)
    scale = np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1e-300), 1 / np.where(spread > 0, spread, 1.0), 0.0)
    likeness = _unit((query - mean) * scale) @ _unit((gallery - mean) * scale).T  # (n, n)
    return Ranks(rankdata(-likeness, method="max", axis=1).astype(int), participants)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def credits_of(rank: np.ndarray) -> Scores:
    """What each query adds to each metric.  # (...,) -> (...,) each"""
    return {"rank1": (rank == 1).astype(float), "rank5": (rank <= 5).astype(float), "map": 1 / rank}


def retrieval_scores(found: Ranks) -> dict[str, float]:
    """Rank-1, rank-5 and mean average precision."""
    return {name: float(values.mean()) for name, values in credits_of(found.rank).items()}


def permuted_scores(found: Ranks, n: int, seed: int) -> Scores:
    """The same when it is permuted whose each entry of the gallery is.  # (n,) each"""
    rng, queries = np.random.default_rng([seed, 78]), np.arange(found.gallery)
    ranks_of = np.array([found.of_all[queries, rng.permutation(found.gallery)] for _ in range(n)])
    return {name: values.mean(axis=-1) for name, values in credits_of(ranks_of.reshape(n, found.gallery)).items()}


def interval_of(values: np.ndarray) -> Interval:
    """A 95 % interval of the mean of what queries add, the gallery as it is.  # (n,)"""
    return score_interval(float(values.mean()), float(values.std() / np.sqrt(len(values))), len(values))


def difference_of(one: Ranks, other: Ranks, n: int, seed: int) -> dict[str, tuple[float, Interval]]:
    """Differences of two sets of features over the same queries, with intervals from resampled queries."""
    rng, size = np.random.default_rng([seed, 99]), one.gallery
    weights = rng.multinomial(size, np.full(size, 1 / size), size=n) / size  # (b, n)
    mine, its = credits_of(one.rank), credits_of(other.rank)
    gained = {name: mine[name] - its[name] for name in RETRIEVAL}
    return {name: (float(of_query.mean()), _between(of_query, weights)) for name, of_query in gained.items()}


def _between(gained: np.ndarray, weights: np.ndarray) -> Interval:
    """Percentiles of the mean of what queries gain; where all gain the same, resamples have no width.

    What is gained lies between -1 and 1, and its place between them is like a share, which has a score interval then.
    Of no gain at all, as from equal features, nothing follows.
    """
    if np.ptp(gained) > 0 or not gained.any():
        return percentile(weights @ gained)
    share = score_interval((1 + float(gained[0])) / 2, 0.0, len(gained))
    return Interval(2 * share.low - 1, 2 * share.high - 1)


def chance_of(gallery: int) -> dict[str, float]:
    """What guessing reaches."""
    return {
        "rank1": 1 / gallery,
        "rank5": min(5, gallery) / gallery,
        "map": float(np.mean(1 / np.arange(1, gallery + 1))),
    }
