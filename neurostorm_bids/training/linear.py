"""Linear probes: the head of a frozen encoder in closed form, on embeddings that were computed once.

Features are standardised on training clips; the head that is made reads embeddings as they come, the standardisation
being part of its weights. How strongly it is shrunk is decided on validation participants.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from neurostorm_bids.model.config import Target
from neurostorm_bids.model.heads import EMBEDDING, EmbeddingHead, head_for
from neurostorm_bids.training.modules import evaluation_loss

STRENGTHS = tuple(10.0**exponent for exponent in range(-2, 5))  # of shrinkage, the middle one where nothing validates


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of clips and their labels (standardised values, or numbers of classes or people)."""

    features: np.ndarray  # (n, c)
    labels: np.ndarray  # (n,)


def fit_probe(
    target: Target, train: Embedded, validation: Embedded | None, class_weights: np.ndarray | None
) -> tuple[nn.Module, float, float | None]:
    """The best probe by validation loss.

    Returns
    -------
    Module
        The head.
    float
        Strength of its shrinkage.
    float or None
        Validation loss.
    """
    fit = {"regression": _ridge, "classification": _logistic, "retrieval": _whitening}[target.kind]
    weights = np.ones(max(1, len(target.classes))) if class_weights is None else class_weights
    heads = [fit(target, train, strength, weights) for strength in STRENGTHS]
    losses = [np.inf if validation is None else _loss(head, target, validation, weights) for head in heads]
    if not np.isfinite(losses).any():  # nobody validates, or a single person, from whom nobody can be told apart
        middle = len(STRENGTHS) // 2
        return heads[middle], STRENGTHS[middle], None
    best = int(np.argmin(losses))
    return heads[best], STRENGTHS[best], losses[best]


@torch.no_grad()
def _loss(head: nn.Module, target: Target, data: Embedded, weights: np.ndarray) -> float:
    outputs = head(torch.from_numpy(data.features).float())
    return float(evaluation_loss(target, outputs, torch.from_numpy(data.labels), torch.from_numpy(weights)))


def _standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of mean 0 and SD 1, and what makes them so; a constant feature becomes 0."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.where(std > 1e-6 * max(float(std.max(initial=0.0)), 1e-30), 1 / np.where(std > 0, std, 1), 0.0)
    return (features - mean) * scale, mean, scale


def _ridge(target: Target, train: Embedded, strength: float, weights: np.ndarray) -> nn.Module:
    x, mean, scale = _standardised(train.features.astype(np.float64))
    found = Ridge(alpha=strength).fit(x, train.labels)
    return _readout(target, found.coef_[None] * scale, found.intercept_ - (found.coef_ * scale) @ mean)


def _logistic(target: Target, train: Embedded, strength: float, weights: np.ndarray) -> nn.Module:
    x, mean, scale = _standardised(train.features.astype(np.float64))
    labels = train.labels.astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of weak shrinkage, which validation does not choose
        model = LogisticRegression(C=1 / strength, max_iter=500)
        found = model.fit(x, labels, sample_weight=weights[labels])
    coefficients = found.coef_ * scale  # (1 or classes, c)
    return _readout(target, coefficients, found.intercept_ - coefficients @ mean)


def _readout(target: Target, coefficients: np.ndarray, intercept: np.ndarray | float) -> nn.Module:
    """The v1 head with these weights.  # (outputs, c), (outputs)"""
    head = head_for(target, coefficients.shape[1])
    state = {"head.head.weight": coefficients, "head.head.bias": np.atleast_1d(intercept)}
    head.load_state_dict({name: torch.from_numpy(np.asarray(value)).float() for name, value in state.items()})
    return head.eval()


def _whitening(target: Target, train: Embedded, strength: float, weights: np.ndarray) -> nn.Module:
    """Directions in which clips of one person are alike and people differ: linear discriminant analysis.

    The scatter within people is shrunk towards its mean diagonal by strength / (1 + strength).
    """
    x, mean, scale = _standardised(train.features.astype(np.float64))
    people = [x[train.labels == person] for person in np.unique(train.labels)]
    within = sum((rows - rows.mean(0)).T @ (rows - rows.mean(0)) for rows in people) / len(x)
    share = strength / (1 + strength)
    diagonal = np.trace(within) / len(within) + 1e-12
    values, vectors = np.linalg.eigh((1 - share) * within + share * diagonal * np.eye(len(within)))
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-9 * diagonal))).T  # (c, c)
    centres = np.stack([rows.mean(0) for rows in people]) @ whiten.T
    _, _, between = np.linalg.svd(centres - centres.mean(0), full_matrices=False)
    return _embedding_head((between[:EMBEDDING] @ whiten) * scale, mean)


def _embedding_head(directions: np.ndarray, mean: np.ndarray) -> nn.Module:
    """The retrieval head that projects onto these directions about a mean.  # (k, c), (c,)"""
    k, c = directions.shape
    head = EmbeddingHead(c)
    weight = torch.zeros(EMBEDDING, c)
    weight[:k] = torch.from_numpy(directions).float()
    with torch.no_grad():
        head.fc1.weight.copy_(weight)
        assert head.bn1.running_mean is not None, "batch normalisation keeps its mean"
        head.bn1.running_mean.copy_(weight @ torch.from_numpy(mean).float())
    return head.eval()
