"""What processes that share a batch tell each other; with one process, nothing."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of torchrun, Lightning's launcher and Slurm


def process_rank() -> int:
    """Number of this process among those that were started together, also before they know each other."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if os.environ.get(name, "").isdigit()), 0)


def started_by_torchrun() -> tuple[int, int] | None:
    """Processes of a node, and nodes, as torchrun started them; None where it did not."""
    here, everywhere = (os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if not (here.isdigit() and everywhere.isdigit() and int(here)):
        return None
    return int(here), max(1, int(everywhere) // int(here))


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gathered(torch.autograd.Function):
    """Rows of all processes; backward, the sum of what all processes ask of one's own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        share = len(total) // dist.get_world_size()
        return total[dist.get_rank() * share : (dist.get_rank() + 1) * share]


def gathered(rows: Tensor) -> Tensor:
    """Rows of the whole batch, in the order of the processes.  # (n, ...) -> (n processes, ...)

    A loss over them is that of the whole batch on every process. Processes average gradients afterwards, which turns
    the sum that the backward makes into the gradient of that one loss; batch normalisation behind it sees all rows.
    """
    return _Gathered.apply(rows) if world_size() > 1 else rows


def summed(value: Tensor) -> Tensor:
    """The sum over processes, without gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def collected(items: list[Any]) -> list[Any]:
    """Items of all processes on each of them."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
