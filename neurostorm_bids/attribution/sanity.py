"""The check that every map carries: a model whose weights are permuted must not give the same one.

A map that stays when the weights go explains the image and not the model (Adebayo 2018, arXiv 1810.03292, section 3).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from neurostorm_bids.attribution.score import Score

DIFFERS_BELOW = 0.5  # absolute correlation of the two maps


def permuted(score: Score, seed: int) -> Score:
    """The same model with the numbers of every weight in random order; the model itself stays as it is."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    encoder, head = copy.deepcopy(score.encoder), copy.deepcopy(score.head)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *head.parameters()):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(score, encoder=encoder, head=head)


def similarity(one: np.ndarray, other: np.ndarray, brain: np.ndarray) -> float:
    """Pearson correlation of two maps within the brain; 0 where one of them is constant.  # (X, Y, Z) each"""
    a, b = one[brain] - one[brain].mean(), other[brain] - other[brain].mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0
