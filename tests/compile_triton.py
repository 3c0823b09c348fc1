"""Compile every kernel of the Triton backend for a GPU that need not be there: python compile_triton.py [CAPABILITY]

Launches are caught on their way to the GPU and compiled with the types that they were given. Prints one line a kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from neurostorm_bids.model import Encoder, EncoderConfig
from neurostorm_bids.model.mamba import Mamba
from neurostorm_bids.model.scan.fused import blocks, mixer, recurrence
from neurostorm_bids.model.scan.triton import Fused, Launch

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", int: "i32", float: "fp32"}
SMALL = Launch(unroll=2, chunk=2)  # what is unrolled compiles in proportion
BLOCK_CONFIG = EncoderConfig(
    img_size=(12, 12, 12, 4),
    in_chans=2,
    embed_dim=12,
    patch_size=(2, 2, 2, 1),
    depths=(1, 1),
    c_multiplier=2,
    window_size=(4, 4, 4, 4),
    first_window_size=(4, 4, 4, 4),
    last_layer_full_MSA=True,
    prompt_len=3,
)


def compiler_for(capability: int, seen: set[str]) -> Callable[..., None]:
    """A stand-in for `launch.start` that compiles instead of launching."""

    def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 1, **constants: Any) -> None:
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        # as Triton does it: what is None or 1 is known to the compiler
        constants |= {name: v for name, v in given.items() if v is None or (type(v) is int and v == 1)}
        signature = {name: _type(name, value, constants) for name, value in given.items()}
        place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
        aligned = [name for name, value in given.items() if name not in constants and _divisible(value)]
        source = ASTSource(
            fn=kernel,
            signature={name: signature[name] for name in kernel.arg_names},
            constexprs={place[name]: value for name, value in constants.items()},
            attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
        )
        types = sorted(set(signature.values()) - {"constexpr"})
        line = " ".join([kernel.__name__, *types, *(n for n in kernel.arg_names if n in constants and n.islower())])
        if line not in seen:
            seen.add(line)
            triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
            print(line, flush=True)

    return start


def _type(name: str, value: Any, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    return TYPES[value.dtype if isinstance(value, Tensor) else type(value)]


def _divisible(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.data_ptr() % 16 == 0
    return type(value) is int and value % 16 == 0


def main(capability: int) -> None:
    """Send training and inference in two types through the backend."""
    start = compiler_for(capability, set())
    for module in (blocks, mixer, recurrence):
        module.start = start
    fused = Fused(SMALL)
    layer = Mamba(36)
    u, s = torch.ones(2, 5, 72, requires_grad=True), torch.ones(2, 5, 16)
    y = fused.scan(u, u, -torch.ones(72, 16), s, s, torch.ones(72), z=u, delta_bias=torch.ones(72))
    y.sum().backward()
    one, row = torch.ones(1, 1, 1, requires_grad=True), torch.ones(1, 1, 3)
    fused.scan(one, one, -torch.ones(1, 3), row, row, torch.ones(1)).sum().backward()
    for dtype in (torch.float32, torch.bfloat16):
        fused.mixer(layer, torch.ones(2, 5, 144, dtype=dtype, requires_grad=True)).sum().backward()
    encoder = Encoder(BLOCK_CONFIG, backend="torch").eval()
    clips = torch.ones(1, 2, 12, 12, 12, 4)
    fused.encode(encoder, clips)
    with torch.autocast("cpu", torch.bfloat16):
        fused.encode(encoder, clips)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 90)
