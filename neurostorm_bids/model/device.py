"""Which GPU a process computes on, and in what precision."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["32", "tf32", "bf16", "16"]
AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


def gpu_of_worker(n_gpus: int, process_name: str | None = None) -> int:
    """The GPU of this process: workers of a pool take turns, anything else gets the first.

    Parameters
    ----------
    n_gpus : int
        GPUs that there are, 1 or more.
    process_name : str, optional
        As multiprocessing names its workers ("ForkServerProcess-3"); that of this process if not given.
    """
    name = multiprocessing.current_process().name if process_name is None else process_name
    number = re.search(r"-(\d+)(?::\d+)*$", name)
    return (int(number.group(1)) - 1) % n_gpus if number else 0


@contextmanager
def computing_in(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Multiply matrices in a precision for the length of a ``with`` block; sums and scan states stay float32.

    Parameters
    ----------
    precision : {"32", "tf32", "bf16", "16"}
        float32; float32 rounded to 10 bits in products, on GPUs that have it; autocast to bfloat16 or float16.
    device : torch.device or str
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    dtype = AUTOCAST.get(precision)
    try:
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
