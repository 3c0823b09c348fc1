"""The selective scan of Mamba: one signature, several backends chosen by name.

=================  ===================================================================================================
torch-reference    the recurrence step by step in plain torch; float32 and float64, slow, what every other is tested by
torch              the same recurrence over all windows at once, with a backward of its own; any device
cpu                compiled kernel; may also take whole blocks or the whole encoder in inference
cpu-bfloat16       the same with matrix products in bfloat16; AVX512_BF16 only, never taken by "auto"
cuda               mamba-ssm's kernel
triton             our own kernels for GPUs; may also take the layer between its outer projections, blocks, the encoder
=================  ===================================================================================================

"auto" takes the fastest that is there: "cpu" on a CPU, "triton" and else "cuda" on a GPU, and "torch" without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from neurostorm_bids.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neurostorm_bids.model.encoder import Block, Encoder
    from neurostorm_bids.model.mamba import Mamba

# each module holds one `Backend` under the name given here, and raises ImportError where it cannot serve
_HOME = {
    "torch-reference": ("torch_scan", "REFERENCE"),
    "torch": ("torch_scan", "VECTORISED"),
    "cpu": ("cpu", "BACKEND"),
    "cpu-bfloat16": ("cpu_bfloat16", "BACKEND"),
    "cuda": ("cuda", "BACKEND"),
    "triton": ("triton", "BACKEND"),
}
BACKENDS = tuple(_HOME)
_FASTEST = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}  # by device, the first that is installed


class Scan(Protocol):
    """The signature that every backend implements; see `selective_scan`."""

    def __call__(
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
    ) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """A way to compute the scan and, where it pays, what lies around it.

    Parameters
    ----------
    name : str
    scan : Scan
        Differentiable in every argument.
    block, encode : callable, optional
        Inference of a whole `Block` (tokens in, tokens out) or a whole `Encoder` (clips in, features out), called
        instead of the modules when gradients are off and the module is in eval mode. They may hand work back to
        ``block.compute`` or ``encoder.compute``, which never come back here. Submodules' forward hooks do not fire.
    mixer : callable, optional
        What a `Mamba` layer does between its outer projections, (w, l, 2 d) -> (w, l, d), with gradients. It may hand
        work back to ``mamba.mix``.
    devices : tuple of str
        The kinds of device it runs on; every kind if empty.
    detail : str
        What else ``--version -v`` says of it.
    """

    name: str
    scan: Scan
    block: Callable[[Block, Tensor], Tensor] | None = None
    encode: Callable[[Encoder, Tensor], Tensor] | None = None
    mixer: Callable[[Mamba, Tensor], Tensor] | None = None
    devices: tuple[str, ...] = ()
    detail: str = ""


@cache
def load_backend(name: str) -> Backend:
    """The backend of a name, imported on first use.

    Raises
    ------
    BackendUnavailable
        For an unknown name, or one whose kernel is not installed.
    """
    if name not in _HOME:
        raise BackendUnavailable(f"no scan backend is called {name!r}", expected=f"one of {', '.join(BACKENDS)}, auto")
    module, attribute = _HOME[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), attribute)
    except ImportError as error:
        raise BackendUnavailable(
            f"the scan backend {name!r} is not installed here ({error})",
            expected=f"one of {', '.join(available_backends())}",
            remedy="leave it at auto",
        ) from error


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can be loaded on this machine, in the order of the table above."""
    return tuple(name for name in BACKENDS if _is_installed(name))


@cache
def _is_installed(name: str) -> bool:
    module, attribute = _HOME[name]
    try:
        return hasattr(import_module(f"{__name__}.{module}"), attribute)
    except ImportError:
        return False


def resolve_backend(name: str, device: torch.device | str) -> str:
    """The backend that a name means on a device; "auto" is the fastest one installed, else "torch".

    Raises
    ------
    BackendUnavailable
        See `load_backend`; also for a compiled backend on another device than its own.
    """
    kind = str(device).split(":")[0]
    if name == "auto":
        return next((fast for fast in _FASTEST.get(kind, ()) if _is_installed(fast)), "torch")
    devices = load_backend(name).devices or (("cpu",) if name == "cpu" else ())
    if devices and kind not in devices:
        raise BackendUnavailable(f"the scan backend {name!r} does not run on {kind}", expected="auto or torch")
    return name


def describe_backends() -> list[str]:
    """Lines for ``--version -v``: the backends that are installed, and which one "auto" takes on each device."""
    choices = ", ".join(f"{resolve_backend('auto', device)} on {device}" for device in ("cpu", "cuda"))
    found = [load_backend(name) for name in available_backends()]
    details = [f"scan backend {backend.name}: {backend.detail}" for backend in found if backend.detail]
    return [f"scan backends: {', '.join(available_backends())} (auto: {choices})", *details]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Selective state-space scan of Mamba-1 (Gu and Dao 2023, arXiv 2312.00752, algorithm 2).

    With step = softplus(delta + delta_bias), for each window, channel i and state j::

        h[t, i, j] = exp(step[t, i] A[i, j]) h[t - 1, i, j] + step[t, i] B[t, j] u[t, i]
        y[t, i]    = (sum over j of C[t, j] h[t, i, j] + D[i] u[t, i]) * silu(z[t, i])

    Parameters
    ----------
    u, delta : Tensor
        (w, l, d): input and step size before its bias and softplus. No tensor need be contiguous.
    A : Tensor
        (d, s), negative.
    B, C : Tensor
        (w, l, s).
    D : Tensor
        (d,).
    z : Tensor, optional
        (w, l, d): gate, before silu.
    delta_bias : Tensor, optional
        (d,).
    backend : str
        One of `BACKENDS`, or "auto".

    Returns
    -------
    Tensor
        (w, l, d). NaN in an input stays NaN from its token on.

    Raises
    ------
    BackendUnavailable
    """
    compute = load_backend(resolve_backend(backend, u.device)).scan
    return compute(u, delta, A, B, C, D, z=z, delta_bias=delta_bias)
