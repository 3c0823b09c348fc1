"""Heads: from the pooled features of a clip to logits, a scaled value, or a vector for retrieval.

Parameter names are those of the reference's checkpoints behind ``output_head.`` (``head.head.weight``, ``fc1.weight``).
`neurostorm_bids.model.predict` reads the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurostorm_bids.model.config import Target
from neurostorm_bids.model.encoder import initialise

HIDDEN_RATIO = 4  # inner channels of a v2 head over its input
EMBEDDING = 128


def pool(features: Tensor) -> Tensor:
    """Mean over space and time.  # (n, c, x, y, z, t) -> (n, c)"""
    return features.flatten(2).mean(2)


class LinearReadout(nn.Module):
    """One linear layer (v1)."""

    def __init__(self, c: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(c, outputs)

    def forward(self, embedding: Tensor) -> Tensor:
        """(n, c) -> (n, outputs)"""
        return self.head(embedding)


class TwoLayerReadout(nn.Module):
    """Two linear layers with nothing between them (v2)."""

    def __init__(self, c: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(c, HIDDEN_RATIO * c)
        self.head = nn.Linear(HIDDEN_RATIO * c, outputs)

    def forward(self, embedding: Tensor) -> Tensor:
        """(n, c) -> (n, outputs)"""
        return self.head(self.hidden(embedding))


class ReadoutHead(nn.Module):
    """Classification or regression.

    Two classes have ONE output, the logit of the second; a regression has one, in units of its scaler.
    """

    def __init__(self, readout: nn.Module) -> None:
        super().__init__()
        self.head = readout

    def forward(self, embedding: Tensor) -> Tensor:
        """(n, c) -> (n, outputs)"""
        return self.head(embedding)


class EmbeddingHead(nn.Module):
    """Linear layer without bias, batch normalisation, and unit length: a vector for retrieval."""

    def __init__(self, c: int, size: int = EMBEDDING) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c, size, bias=False)
        self.bn1 = nn.BatchNorm1d(size)

    def forward(self, embedding: Tensor) -> Tensor:
        """(n, c) -> (n, size), each of length 1"""
        return F.normalize(self.bn1(self.fc1(embedding)), dim=1)


def classification_head(c: int, n_classes: int, version: str = "v1") -> ReadoutHead:
    """A head of one logit for two classes, else of a logit a class; ``version`` is "v1" or "v2".

    Raises
    ------
    ValueError
        Fewer than two classes, or an unknown version.
    """
    if n_classes < 2:
        raise ValueError(f"a classification of {n_classes} class; expected 2 or more")
    outputs = 1 if n_classes == 2 else n_classes
    if version == "v1":
        return ReadoutHead(LinearReadout(c, outputs))
    if version == "v2":
        return ReadoutHead(TwoLayerReadout(c, outputs))
    raise ValueError(f"no classification head is called {version!r}; expected v1 or v2")


def regression_head(c: int) -> ReadoutHead:
    """A head of one value."""
    return ReadoutHead(LinearReadout(c, 1))


def head_for(target: Target, c: int, generator: torch.Generator | None = None) -> nn.Module:
    """The head of a target over embeddings of ``c`` channels, with fresh weights.

    Raises
    ------
    ValueError
        A target that no head predicts.
    """
    head: nn.Module
    if target.kind == "classification":
        head = classification_head(c, len(target.classes), target.head)
    elif target.kind == "regression":
        head = regression_head(c)
    else:
        head = EmbeddingHead(c)
    initialise_head(head, generator)
    return head


def initialise_head(head: nn.Module, generator: torch.Generator | None = None) -> None:
    """Fresh weights of every linear layer of a head; batch normalisation starts as the identity it is built as."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            initialise(module, generator)
