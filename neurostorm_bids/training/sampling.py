"""Which samples make up an epoch of pretraining on several datasets.

An order gives the numbers of the samples of an epoch, as many as there are; it follows from (seed, epoch) and, where it
is weighted, from the losses of the epoch before. Nobody is seen more often for having been scanned longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurostorm_bids.model.draws import keyed_generator

PEOPLE = 19  # purpose of the draws, beside those of the model and of the samples

Person = tuple[str, str]  # dataset and participant
Losses = Mapping[str, float]  # by dataset


@dataclass(frozen=True)
class PersonOrder:
    """Every person equally often, whatever dataset they come from.

    Parameters
    ----------
    people : sequence of (dataset, participant)
        Whose each sample is.
    seed : int
    """

    people: Sequence[Person]
    seed: int

    def __call__(self, epoch: int) -> np.ndarray:
        """Samples of an epoch in order.  # (n,)"""
        draw = keyed_generator((self.seed, epoch), PEOPLE)
        return by_person(self.people, np.arange(len(self.people)), len(self.people), draw)


@dataclass(frozen=True)
class LossOrder:
    """Datasets in proportion to their loss in the epoch before; within a dataset every person equally often.

    Parameters
    ----------
    people : sequence of (dataset, participant)
    seed : int
    losses : callable
        Gives the losses of the epoch before, by dataset; while they are not known (first epoch) people count alike.
    """

    people: Sequence[Person]
    seed: int
    losses: Callable[[], Losses]

    def __call__(self, epoch: int) -> np.ndarray:
        """Samples of an epoch in order.  # (n,)"""
        losses = self.losses()
        datasets = np.array([dataset for dataset, _ in self.people])
        names = sorted(set(datasets))
        if not all(losses.get(name, 0.0) > 0 for name in names):
            return PersonOrder(self.people, self.seed)(epoch)
        draw = keyed_generator((self.seed, epoch), PEOPLE)
        counts = apportioned(np.array([losses[name] for name in names]), len(self.people))
        parts = [
            by_person(self.people, np.flatnonzero(datasets == name), count, draw)
            for name, count in zip(names, counts, strict=True)
        ]
        return draw.permutation(np.concatenate(parts))


def by_person(people: Sequence[Person], samples: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Choose samples so that people come equally often: rounds of all people, each time with another of their samples.

    Parameters
    ----------
    people : sequence of (dataset, participant)
        Whose each sample is, by the sample's number.
    samples : ndarray of int
        Those to choose from.
    count : int
        How many to choose; samples come again once all of a person were chosen.
    draw : Generator

    Returns
    -------
    ndarray of shape (count,)
    """
    own: dict[Person, list[int]] = {}
    for sample in samples:
        own.setdefault(people[sample], []).append(int(sample))
    shuffled = [draw.permutation(own[person]) for person in sorted(own)]
    n_rounds = -(-count // len(shuffled))
    turns = np.concatenate([draw.permutation(len(shuffled)) for _ in range(n_rounds)])[:count]
    rounds = np.repeat(np.arange(n_rounds), len(shuffled))[:count]
    return np.array([shuffled[who][turn % len(shuffled[who])] for who, turn in zip(turns, rounds, strict=True)], int)


def apportioned(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to weights that add up to ``total`` (largest remainders).

    >>> apportioned(np.array([1.0, 1.0, 2.0]), 10)
    array([3, 2, 5])
    """
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(int)
    largest = np.argsort(-(exact - counts), kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    return counts
