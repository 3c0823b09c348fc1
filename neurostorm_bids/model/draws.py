"""Random draws of training: keyed by what a sample is, so that neither batch, rank nor worker changes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Key: TypeAlias = int | tuple[int, ...]  # of one clip, such as (seed, epoch, sample); no entry is negative
Keys: TypeAlias = Sequence[Key]

# what a draw is for, so that no two purposes share a stream
MASK, REDUNDANCY = 0, 1


def keyed_generator(key: Key, purpose: int, place: int = 0) -> np.random.Generator:
    """A generator whose numbers depend on nothing but its arguments."""
    entries = key if isinstance(key, tuple) else (key,)
    return np.random.default_rng([*entries, purpose, place])


def uniform(keys: Keys | None, shape: tuple[int, ...], purpose: int, place: int = 0) -> Tensor:
    """Numbers in [0, 1), from torch's own generator or a clip's share of the first axis from its key.

    Raises
    ------
    ValueError
        Where the first axis cannot be shared out among the keys.
    """
    if keys is None:
        return torch.rand(shape)
    if not keys or shape[0] % len(keys):
        raise ValueError(f"{len(keys)} keys for {shape[0]} rows; expected one key a clip")
    share = (shape[0] // len(keys), *shape[1:])
    draws = [keyed_generator(key, purpose, place).random(share, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.concatenate(draws))
