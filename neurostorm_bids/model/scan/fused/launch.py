"""Sizes of the kernels' programs, and how a kernel is started."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

ALIGNMENT = 16  # numbers; wide loads need rows that begin at multiples of it


@dataclass(frozen=True)
class Launch:
    """Sizes that decide speed, not results.

    Parameters
    ----------
    channels : int
        Channels of a program of the scan: one for each lane of a warp.
    unroll : int
        Tokens whose loads may be in flight together.
    chunk : int
        Tokens whose states the backward holds in registers.
    rows : int
        Tokens of a program that multiplies matrices.
    scratch_mb : int
        Most memory for the states that the backward keeps between chunks; more windows are worked on in turn.
    """

    channels: int = 32
    unroll: int = 8
    chunk: int = 4
    rows: int = 64
    scratch_mb: int = 256

    def blocks(self, channels: int) -> tuple[int, int]:
        """Channels of a program, and programs to a window."""
        block = min(self.channels, power_of_two(channels))
        return block, triton.cdiv(channels, block)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 1, **constants: Any) -> None:
    """Run a kernel over a grid of programs on the device of its first argument; an empty grid does nothing."""
    if 0 in grid:
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=num_warps)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least n."""
    return max(least, triton.next_power_of_2(n))


def dot_precision() -> str:
    """How float32 matrices are multiplied: as torch's own, see `torch.set_float32_matmul_precision`."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def with_rows(tensor: Tensor) -> Tensor:
    """The tensor with its last axis contiguous, copied only if it is not."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def with_aligned_rows(tensor: Tensor) -> Tensor:
    """The tensor (w, l, s) with contiguous rows that begin at multiples of `ALIGNMENT`; else a contiguous copy."""
    starts = (*tensor.stride()[:2], tensor.storage_offset())
    return tensor if tensor.stride(-1) == 1 and not any(n % ALIGNMENT for n in starts) else tensor.contiguous()


def strides(*tensors: Tensor | None) -> list[int]:
    """Strides over windows and tokens of each tensor (w, l, .)."""
    return [stride for tensor in tensors for stride in ((0, 0) if tensor is None else tensor.stride()[:2])]
