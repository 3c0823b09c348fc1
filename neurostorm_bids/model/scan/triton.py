"""Fused kernels for GPUs, written in Triton, which compiles them on first use: nobody needs a CUDA toolkit.

They compute the scan alone, the Mamba layer between its outer projections with its gradients, and in inference blocks
and the encoder as a whole. Tensors of half precision are read and written as they are; sums and states are float32.
With TRITON_INTERPRET=1 the same kernels run on the CPU, slowly, which is how they are tested without a GPU.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from neurostorm_bids.model.scan import Backend
from neurostorm_bids.model.scan.fused import blocks, kernels
from neurostorm_bids.model.scan.fused.launch import Launch
from neurostorm_bids.model.scan.fused.mixer import Mixer
from neurostorm_bids.model.scan.fused.recurrence import MOST_STATES, Scan
from neurostorm_bids.model.scan.torch_scan import VECTORISED

if TYPE_CHECKING:
    from neurostorm_bids.model.encoder import Block, Encoder
    from neurostorm_bids.model.mamba import Mamba

OLDEST = (3, 4)  # the Triton of torch 2.8
NO_COMPILER_FROM = (3, 8)  # before, Triton compiled its own launcher in C


class Fused:
    """What the backend offers, at one choice of sizes.

    Parameters
    ----------
    launch : Launch
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._blocks = blocks.FusedBlocks(launch)

    def scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        *,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
    ) -> Tensor:
        """The scan with its softplus, skip and gate; see `neurostorm_bids.model.scan.selective_scan`."""
        if A.dtype != torch.float32 or A.shape[1] > MOST_STATES:
            return VECTORISED.scan(u, delta, A, B, C, D, z=z, delta_bias=delta_bias)
        return Scan.apply(self.launch, u, delta, A, B, C, D, z, delta_bias)

    def mixer(self, mamba: Mamba, xz: Tensor) -> Tensor:
        """A Mamba layer between its outer projections.  # (w, l, 2 d) -> (w, l, d)"""
        if not blocks.serves(mamba, xz):
            return mamba.mix(*xz.chunk(2, dim=-1))
        return Mixer.apply(self.launch, xz, *blocks.mixer_parameters(mamba))

    def block(self, block: Block, x: Tensor) -> Tensor:
        """A block in inference.  # (n, x, y, z, t, c) -> the same"""
        return self._blocks.block(block, x) if blocks.serves(block, x) else block.compute(x)

    def encode(self, encoder: Encoder, clips: Tensor) -> Tensor:
        """The encoder in inference.  # (n, ch, X, Y, Z, T) -> (n, c, x, y, z, t)"""
        return self._blocks.encode(encoder, clips) if blocks.serves(encoder, clips) else encoder.compute(clips)


def interpreted() -> bool:
    """Whether Triton was imported to interpret its kernels."""
    return not isinstance(kernels.scan_forward, triton.JITFunction)


def require_usable(version: str, *, has_compiler: bool) -> None:
    """Raise ImportError where this Triton cannot serve."""
    number = tuple(int(part) for part in version.split(".")[:2])
    if number < OLDEST:
        raise ImportError(f"Triton {version} is too old, {'.'.join(map(str, OLDEST))} is needed")
    if number < NO_COMPILER_FROM and not has_compiler:
        raise ImportError(f"Triton {version} needs a C compiler: install gcc, or set CC")


COMPILERS = (os.environ.get("CC") or "gcc", "clang")
require_usable(triton.__version__, has_compiler=interpreted() or any(map(shutil.which, COMPILERS)))
FUSED = Fused(Launch())
BACKEND = Backend(
    "triton",
    FUSED.scan,
    FUSED.block,
    FUSED.encode,
    FUSED.mixer,
    devices=("cuda", "cpu") if interpreted() else ("cuda",),
    detail=f"Triton {triton.__version__}{', interpreted' if interpreted() else ''}",
)
