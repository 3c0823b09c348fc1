"""Linear probes: the head of a frozen encoder in closed form, on embeddings that were computed once.

Features are standardised on training clips; the head that is made reads embeddings as they come, the standardisation
being part of its weights. How strongly it is shrunk is decided among training participants, by cross-validation:
validation participants are too few to tell, and stay out of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from neurostorm_bids.model.config import Target
from neurostorm_bids.model.heads import EMBEDDING, EmbeddingHead, head_for
from neurostorm_bids.training.modules import evaluation_loss

STRENGTHS = tuple(10.0**exponent for exponent in range(-2, 5))  # of shrinkage, the middle one where nothing decides
FOLDS = 5  # of the training participants


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of clips, their labels (standardised values, or numbers of classes or people), and whose they are."""

    features: np.ndarray  # (n, c)
    labels: np.ndarray  # (n,)
    people: np.ndarray  # (n,)

    def where(self, chosen: np.ndarray) -> Embedded:
        """Some of the clips.  # (n,) bool"""
        return Embedded(self.features[chosen], self.labels[chosen], self.people[chosen])


Fit = Callable[[Target, Embedded, float, np.ndarray], nn.Module]


def fit_probe(
    target: Target, train: Embedded, validation: Embedded | None, class_weights: np.ndarray | None
) -> tuple[nn.Module, float, float | None]:
    """The probe of the training clips, shrunk as is best for people whom it was not fitted on.

    Returns
    -------
    Module
        The head.
    float
        Strength of its shrinkage.
    float or None
        Validation loss; None where nobody validates, or a single person, from whom nobody can be told apart.
    """
    fits: dict[str, Fit] = {"regression": _ridge, "classification": _logistic, "retrieval": _whitening}
    fit = fits[target.kind]
    weights = np.ones(max(1, len(target.classes))) if class_weights is None else class_weights
    strength = _strength(fit, target, train, weights)
    head = fit(target, train, strength, weights)
    loss = np.inf if validation is None else _loss(head, target, validation, weights)
    return head, strength, loss if np.isfinite(loss) else None


def _strength(fit: Fit, target: Target, train: Embedded, weights: np.ndarray) -> float:
    """The shrinkage of the lowest loss over parts of the training people, each left out once."""
    losses = np.zeros(len(STRENGTHS))
    for inner, outer in _parts(target, train):
        heads = [fit(target, inner, strength, weights) for strength in STRENGTHS]
        losses += len(outer.labels) * np.array([_loss(head, target, outer, weights) for head in heads])
    if not np.isfinite(losses).all() or not losses.any():
        return STRENGTHS[len(STRENGTHS) // 2]
    return STRENGTHS[int(np.argmin(losses))]


def _parts(target: Target, train: Embedded) -> Iterator[tuple[Embedded, Embedded]]:
    """Who is learnt from and who is left out: people in the order of their labels, dealt out in turn.

    Parts without which a class is not there are passed over.
    """
    people, person = np.unique(train.people, return_inverse=True)
    means = np.bincount(person, weights=train.labels) / np.bincount(person)
    part = np.empty(len(people), int)
    part[np.argsort(means, kind="stable")] = np.arange(len(people)) % FOLDS
    for number in range(min(FOLDS, len(people))):
        out = part[person] == number
        inner = train.where(~out)
        if len(inner.labels) and (target.kind != "classification" or set(inner.labels) == set(train.labels)):
            yield inner, train.where(out)


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
    x, _, scale = _standardised(train.features.astype(np.float64))
    people = [x[train.labels == person] for person in np.unique(train.labels)]
    within = sum((rows - rows.mean(0)).T @ (rows - rows.mean(0)) for rows in people) / len(x)
    share = strength / (1 + strength)
    diagonal = np.trace(within) / len(within) + 1e-12
    values, vectors = np.linalg.eigh((1 - share) * within + share * diagonal * np.eye(len(within)))
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-9 * diagonal))).T  # (c, c)
    centres = np.stack([rows.mean(0) for rows in people]) @ whiten.T
    _, _, between = np.linalg.svd(centres - centres.mean(0), full_matrices=False)
    return _embedding_head((between[:EMBEDDING] @ whiten) * scale, train.features.astype(np.float64))


@torch.no_grad()
def _embedding_head(directions: np.ndarray, features: np.ndarray) -> nn.Module:
    """The retrieval head that projects onto these directions, about the mean of the features.  # (k, c), (n, c)

    It says the same whether it normalises by what it keeps or by a batch, so that a training can go on from it: each
    direction gets the spread back that normalisation takes. Rows that are not used are 0 and stay it.
    """
    k, c = directions.shape
    head = EmbeddingHead(c)
    vectors = features @ directions.T  # (n, k)
    head.fc1.weight.zero_(), head.bn1.weight.zero_()
    assert head.bn1.running_mean is not None and head.bn1.running_var is not None, "batch normalisation keeps both"
    head.fc1.weight[:k] = torch.from_numpy(directions).float()
    head.bn1.running_mean[:k] = torch.from_numpy(vectors.mean(axis=0)).float()
    head.bn1.running_var[:k] = torch.from_numpy(vectors.var(axis=0)).float()
    head.bn1.weight[:k] = (head.bn1.running_var[:k] + head.bn1.eps).sqrt()
    return head.eval()
