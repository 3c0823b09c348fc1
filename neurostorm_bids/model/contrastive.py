"""Contrastive losses for pretraining without labels, as SwiFT (Kim et al. 2023, arXiv 2307.05916) uses them.

Both are the normalised temperature-scaled cross-entropy (NT-Xent) of SimCLR (Chen et al. 2020, arXiv 2002.05709,
equation 1). They differ in what is a pair and what is told apart:

* instance: two clips of one subject are a pair, clips of all other subjects are told apart from it;
* local-local (TCLR, Dave et al. 2022, arXiv 2101.07974, section 3.2): two augmented views of one clip are a pair, clips
  of the same run at other times are told apart from it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1


def instance_loss(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent over subjects.

    Parameters
    ----------
    first, second : Tensor
        (n, e): vectors of two clips of each of n subjects, a row a subject. Their length does not matter.
    temperature : float

    Returns
    -------
    Tensor
        Scalar: mean over the 2 n clips of -log of the share of its partner among the 2 n - 1 others.

    Raises
    ------
    ValueError
        Fewer than two subjects, other shapes, or a temperature of 0 or less.
    """
    _check(first, second, 2, temperature)
    return _nt_xent(first.unsqueeze(0), second.unsqueeze(0), temperature)


def local_local_loss(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent over the times of a run, averaged over runs.

    Parameters
    ----------
    first, second : Tensor
        (n, k, e): vectors of two augmented views of k clips that do not overlap, of each of n runs.
    temperature : float

    Returns
    -------
    Tensor
        Scalar: mean over the 2 n k views of -log of the share of its partner among the 2 k - 1 others of its run.

    Raises
    ------
    ValueError
        Fewer than two clips a run, other shapes, or a temperature of 0 or less.
    """
    _check(first, second, 3, temperature)
    return _nt_xent(first, second, temperature)


def _nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent within each group.  # (groups, k, e) x 2 -> scalar"""
    groups, k, _ = first.shape
    both = torch.cat([first, second], dim=1)  # (groups, 2 k, e)
    views = F.normalize(both.to(torch.promote_types(both.dtype, torch.float32)), dim=-1)
    likeness = views @ views.transpose(1, 2) / temperature  # (groups, 2 k, 2 k)
    itself = torch.eye(2 * k, dtype=torch.bool, device=first.device)
    partner = torch.arange(2 * k, device=first.device).roll(k)  # (2 k)
    likeness = likeness.masked_fill(itself, -torch.inf).flatten(0, 1)  # (groups 2 k, 2 k)
    return F.cross_entropy(likeness, partner.repeat(groups))


def _check(first: Tensor, second: Tensor, ndim: int, temperature: float) -> None:
    if first.shape != second.shape or first.ndim != ndim or first.shape[-2] < 2:
        shape = "(2 or more, size)" if ndim == 2 else "(runs, 2 or more clips, size)"
        raise ValueError(f"views of {tuple(first.shape)} and {tuple(second.shape)}; expected both {shape}")
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; expected above 0")
