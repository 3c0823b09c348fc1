"""mamba-ssm's backend: what it is given and what is made of its answer, on a stand-in for the package.

On a GPU where mamba-ssm is installed, the kernel itself is compared.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
from test_model_scan import NAMES, arguments, deviation
from torch import Tensor
from torch.nn import functional as F

import neurostorm_bids.model.scan as seam
from neurostorm_bids.errors import BackendUnavailable
from neurostorm_bids.model.scan import load_backend, resolve_backend, selective_scan

MODULE = "neurostorm_bids.model.scan.cuda"
INTERFACE = "mamba_ssm.ops.selective_scan_interface"


def stand_in(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False) -> Tensor:
    """mamba-ssm's interface, channels first, as far as its contract goes."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32 and delta_softplus
    step = F.softplus(delta.float() + delta_bias[None, :, None])  # (w, d, l)
    state, outputs = torch.zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        drive = (step[..., t] * u[..., t])[..., None] * B[:, None, :, t]
        state = torch.exp(step[..., t, None] * A) * state + drive
        outputs.append((state * C[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, -1) + D[:, None] * u
    return (y * F.silu(z.float())).to(u.dtype)


@pytest.fixture
def fresh(monkeypatch):
    """Forget which backends are installed, before and after; modules are imported anew."""

    def forget() -> None:
        sys.modules.pop(MODULE, None)
        load_backend.cache_clear()
        seam._is_installed.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def install(monkeypatch, interface: ModuleType) -> None:
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, INTERFACE, interface)


@pytest.fixture
def backend(fresh):
    interface = ModuleType(INTERFACE)
    interface.selective_scan_fn = stand_in
    install(fresh, interface)
    return importlib.import_module(MODULE)


def scan(backend, values: dict[str, Tensor]) -> Tensor:
    return backend.scan(*[values[name] for name in NAMES[:6]], z=values["z"], delta_bias=values["delta_bias"])


def test_tensors_go_channels_first_and_come_back(backend):
    values = {name: value.float().requires_grad_() for name, value in arguments(2, 9, 5, 4).items()}
    y = scan(backend, values)
    assert deviation(y.detach(), selective_scan(**arguments(2, 9, 5, 4), backend="torch-reference")) < 1e-6
    y.sum().backward()
    assert all(value.grad.shape == value.shape for value in values.values())


def test_half_precision_stays_and_mixed_precision_becomes_single(backend):
    values = {name: value.float() for name, value in arguments(1, 6, 3, 4).items()}
    exact = scan(backend, values)
    halves = {
        name: value.bfloat16() if name in ("u", "delta", "B", "C", "z") else value for name, value in values.items()
    }
    mixed = values | {"B": values["B"].bfloat16(), "C": values["C"].bfloat16()}
    for given in (halves, mixed):
        y = scan(backend, given)
        assert y.dtype == torch.float32
        assert deviation(y, exact) < 3e-2


@pytest.mark.parametrize("shape", [(0, 5, 3, 4), (1, 0, 3, 4), (1, 2, 3, 300)])
def test_what_the_kernel_does_not_know_goes_to_torch(backend, shape, monkeypatch):
    monkeypatch.setattr(backend, "selective_scan_fn", None)
    values = {name: value.float() for name, value in arguments(*shape).items()}
    assert scan(backend, values).shape == shape[:3]


def test_it_runs_on_gpus_only(backend):
    assert resolve_backend("cuda", "cuda:0") == "cuda"
    with pytest.raises(BackendUnavailable, match="'cuda' does not run on cpu"):
        resolve_backend("cuda", "cpu")


class _WithoutKernel(ModuleType):
    def __getattr__(self, name: str):
        raise ModuleNotFoundError("No module named 'selective_scan_cuda'")


def test_a_missing_kernel_names_the_switch_that_builds_it(fresh):
    install(fresh, _WithoutKernel(INTERFACE))
    with pytest.raises(BackendUnavailable, match=r"selective_scan_cuda.*MAMBA_KEEP_CUDA_BUILD=TRUE pip install"):
        load_backend("cuda")


def test_a_missing_package_is_named(fresh):
    fresh.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(BackendUnavailable, match=r"'cuda' is not installed here.*mamba_ssm"):
        load_backend("cuda")


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [(("cpu", "cuda", "triton"), "triton"), (("cpu", "cuda"), "cuda"), (("cpu",), "torch")],
)
def test_auto_takes_the_fastest_that_is_there(installed, chosen, monkeypatch):
    monkeypatch.setattr(seam, "_is_installed", lambda name: name in installed)
    assert resolve_backend("auto", "cuda:1") == chosen
    assert resolve_backend("auto", "cpu") == "cpu"
    monkeypatch.setattr(seam, "load_backend", lambda name: seam.Backend(name, None))
    assert f"{chosen} on cuda" in seam.describe_backends()[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernel_itself():
    if "cuda" not in seam.available_backends():
        pytest.skip("mamba-ssm is not installed")
    values = arguments(2, 70, 72, 16)
    on_gpu = {name: value.float().cuda() for name, value in values.items()}
    assert (
        deviation(scan(load_backend("cuda"), on_gpu).cpu(), selective_scan(**values, backend="torch-reference")) < 1e-5
    )
