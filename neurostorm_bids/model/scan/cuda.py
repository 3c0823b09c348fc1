"""mamba-ssm's CUDA kernel for the scan (the ``gpu`` extra), for comparison and for GPUs that Triton does not serve.

It wants tensors channels first, so every call transposes on the way in and out, and it sums the gradients of B and C
with atomic additions, whose order changes from call to call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neurostorm_bids.model.scan import Backend
from neurostorm_bids.model.scan.torch_scan import VECTORISED

try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
except ImportError as error:
    if "selective_scan_cuda" not in str(error):
        raise
    raise ImportError(
        "mamba-ssm was built without its kernel selective_scan_cuda; where the CUDA toolkit of your torch is, build it "
        "anew with MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE pip install --force-reinstall --no-deps "
        "--no-cache-dir --no-build-isolation mamba-ssm"
    ) from error

MOST_STATES = 256
HALVES = (torch.float16, torch.bfloat16)


def scan(
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
    if A.dtype != torch.float32 or A.shape[1] > MOST_STATES or not u.numel():
        return VECTORISED.scan(u, delta, A, B, C, D, z=z, delta_bias=delta_bias)
    dtype = u.dtype if u.dtype in HALVES and delta.dtype == u.dtype else torch.float32
    u, delta, B, C = (tensor.to(dtype).transpose(1, 2) for tensor in (u, delta, B, C))  # (w, d | s, l)
    z = None if z is None else z.to(dtype).transpose(1, 2)  # (w, d, l)
    y = selective_scan_fn(u, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True)  # (w, d, l)
    return y.transpose(1, 2).to(A.dtype)  # (w, l, d)


BACKEND = Backend("cuda", scan, devices=("cuda",))
