"""How a training runs: steps, learning rate, and what the optimiser leaves undecayed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

Precision = Literal["32", "tf32", "bf16", "16"]
LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "tf32": "32-true",  # `computing_in` shortens the products
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a training runs.

    Parameters
    ----------
    epochs, batch_size, accumulate : int
        ``batch_size`` samples on each process, ``accumulate`` batches a step.
    learning_rate, weight_decay, gradient_clip : float
    warmup : float
        Share of all steps in which the learning rate rises.
    patience : int, optional
        Epochs without a better validation loss after which training stops; None never stops early.
    checkpoint_every : int
        Steps from one point of resume to the next.
    checkpoint_blocks : bool
        Keep only the input of each block for the backward, and compute the rest again.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    accumulate: int = 1
    weight_decay: float = 0.01
    warmup: float = 0.1
    gradient_clip: float = 1.0
    patience: int | None = None
    precision: Precision = "32"
    device: str = "auto"
    devices: int | None = None
    num_nodes: int = 1
    workers: int = 0
    checkpoint_every: int = 50
    checkpoint_blocks: bool = False
    quiet: bool = False


def warmup_cosine(step: int, *, n_steps: int, n_warmup: int) -> float:
    """Factor of the learning rate: a straight rise, then half a cosine down to 0.

    >>> [round(warmup_cosine(step, n_steps=6, n_warmup=2), 2) for step in range(7)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < n_warmup:
        return (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def optimiser(
    module: nn.Module, course: Course, n_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over what is trained, and its schedule; matrices alone decay."""
    trained = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    groups = [
        {"params": _of(trained, decays=True), "weight_decay": course.weight_decay},
        {"params": _of(trained, decays=False), "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=course.learning_rate)
    factor = partial(warmup_cosine, n_steps=n_steps, n_warmup=round(course.warmup * n_steps))
    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, factor)


UNDECAYED = ("bias", "prompt", "pos_embed", "time_embed", "mask_token", "A_log", "D")


def _of(trained: Iterable[tuple[str, nn.Parameter]], *, decays: bool) -> list[nn.Parameter]:
    return [weight for name, weight in trained if decays == (weight.ndim > 1 and not name.endswith(UNDECAYED))]
