"""Telling people apart: each query among a gallery in which everybody lies once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurostorm_bids.evaluation.metrics import Scores

RETRIEVAL = ("rank1", "rank5", "map")
DESCRIPTIONS = {
    "rank1": "Share of queries whose own participant comes first.",
    "rank5": "Share of queries whose own participant is among the first five.",
    "map": "Mean over queries of 1 / rank: the average precision with one right entry.",
}


@dataclass(frozen=True, eq=False)
class Ranks:
    """The rank of each query's own participant, from 1 on; ties count as if the own one came last of them.

    ``rank`` (n queries,); ``participants`` one a query; ``gallery`` the size of the gallery.
    """

    rank: np.ndarray
    participants: tuple[str, ...]
    gallery: int


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
    own = np.diag(likeness)
    return Ranks((likeness >= own[:, None]).sum(axis=1), participants, len(gallery))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def retrieval_scores(found: Ranks, weights: np.ndarray | None = None) -> Scores:
    """Rank-1, rank-5 and mean average precision of the queries, the gallery as it is.  # (b, n) -> (b,) each"""
    w = np.ones((1, len(found.rank))) if weights is None else weights
    values = {"rank1": found.rank == 1, "rank5": found.rank <= 5, "map": 1 / found.rank}
    return {name: w @ np.asarray(value, float) / w.sum(axis=1) for name, value in values.items()}


def chance_of(gallery: int) -> dict[str, float]:
    """What guessing reaches."""
    return {
        "rank1": 1 / gallery,
        "rank5": min(5, gallery) / gallery,
        "map": float(np.mean(1 / np.arange(1, gallery + 1))),
    }
