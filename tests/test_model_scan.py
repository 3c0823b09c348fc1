"""The selective scan: backends agree with the recurrence in float64, forward and backward, at every length and step."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurostorm_bids.errors import BackendUnavailable
from neurostorm_bids.model.scan import (
    BACKENDS,
    available_backends,
    describe_backends,
    load_backend,
    resolve_backend,
    selective_scan,
)

TORCH_BACKENDS = ("torch-reference", "torch")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def arguments(w: int, l: int, d: int, s: int, *, seed: int = 0, step: float = -3.0) -> dict[str, Tensor]:  # noqa: E741
    """Random arguments in float64, step sizes around softplus(step)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    return {
        "u": normal(w, l, d),
        "delta": step + normal(w, l, d),
        "A": -torch.exp(normal(d, s)),
        "B": normal(w, l, s),
        "C": normal(w, l, s),
        "D": normal(d),
        "z": normal(w, l, d),
        "delta_bias": 0.1 * normal(d),
    }


def by_hand(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """The recurrence of the docstring, one number at a time."""
    y = torch.zeros_like(u)
    for w, i in product(range(u.shape[0]), range(u.shape[2])):
        h = [0.0] * A.shape[1]
        for t in range(u.shape[1]):
            step = torch.log1p(torch.exp(delta[w, t, i] + delta_bias[i]))
            h = [torch.exp(step * A[i, j]) * h[j] + step * B[w, t, j] * u[w, t, i] for j in range(A.shape[1])]
            total = sum(C[w, t, j] * h[j] for j in range(A.shape[1])) + D[i] * u[w, t, i]
            y[w, t, i] = total * z[w, t, i] * torch.sigmoid(z[w, t, i])
    return y


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of b."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300))


def scan(values: dict[str, Tensor], backend: str, dtype: torch.dtype = torch.float64) -> Tensor:
    given_values = {name: value.to(dtype) for name, value in values.items()}
    return selective_scan(**given_values, backend=backend)


def gradients(values: dict[str, Tensor], backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    leaves = {name: value.to(dtype).requires_grad_() for name, value in values.items()}
    y = selective_scan(**leaves, backend=backend)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
    found = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_the_recurrence_by_hand(backend: str):
    values = arguments(2, 7, 3, 2, step=0.0)
    assert deviation(scan(values, backend), by_hand(**values)) < 1e-14


@settings(deadline=None, max_examples=40)
@given(
    w=st.integers(1, 3),
    l=st.integers(1, 300),
    d=st.integers(1, 5),
    s=st.sampled_from([1, 2, 16]),
    step=st.sampled_from([-12.0, -7.0, -3.0, 0.0, 5.0]),
    seed=st.integers(0, 2**16),
)
def test_torch_equals_the_reference_in_double_precision(w, l, d, s, step, seed):  # noqa: E741
    values = arguments(w, l, d, s, seed=seed, step=step)
    truth = scan(values, "torch-reference")
    assert deviation(scan(values, "torch"), truth) < 1e-13
    assert deviation(scan(values, "torch", torch.float32), truth) < 1e-5


@pytest.mark.parametrize("length", [1, 15, 16, 17, 261])
@pytest.mark.parametrize("step", [-7.0, -3.0, 2.0])
def test_gradients_of_torch_equal_autograd_of_the_reference(length: int, step: float):
    values = arguments(2, length, 5, 4, step=step)
    truth = gradients(values, "torch-reference", torch.float64)
    double, single = (gradients(values, "torch", dtype) for dtype in (torch.float64, torch.float32))
    for name in NAMES:
        assert deviation(double[name], truth[name]) < 1e-12, name
        assert deviation(single[name], truth[name]) < 1e-5, name


def test_gradients_pass_the_check_by_differences():
    values = {name: value.requires_grad_() for name, value in arguments(1, 19, 2, 3, step=-1.0).items()}
    assert torch.autograd.gradcheck(
        lambda *a: selective_scan(*a[:6], z=a[6], delta_bias=a[7], backend="torch"), list(values.values())
    )


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_small_steps_keep_their_digits(backend: str):
    # softplus as log(1 + exp(x)) loses up to 6e-5 here
    values = arguments(2, 64, 4, 16, step=-7.0) | {"D": torch.zeros(4, dtype=torch.float64)}
    assert deviation(scan(values, backend, torch.float32), scan(values, "torch-reference")) < 1e-6


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_huge_steps_forget_and_overflow_nothing(backend: str):
    values = arguments(2, 300, 4, 16, step=1e4) | {"delta_bias": torch.zeros(4, dtype=torch.float64)}
    y = scan(values, backend, torch.float32)
    step = torch.nn.functional.softplus(values["delta"])
    memoryless = step * values["u"] * (values["B"] * values["C"]).sum(-1, keepdim=True) + values["u"] * values["D"]
    assert deviation(y, memoryless * torch.nn.functional.silu(values["z"])) < 1e-5


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_spread_as_in_double_precision(backend: str, name: str, bad: float):
    values = arguments(2, 40, 3, 4)
    values[name][1, 20, 0] = bad
    truth = scan(values, "torch-reference")
    assert torch.equal(torch.isnan(scan(values, backend, torch.float32)), torch.isnan(truth))
    if bad != bad:
        assert torch.isnan(truth[1, 20]).any()
    assert not torch.isnan(truth[0]).any()
    assert not torch.isnan(truth[1, :20]).any()


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_tensors_need_not_be_contiguous(backend: str):
    values = arguments(3, 20, 4, 16)
    strided = {name: value.movedim(0, -1).contiguous().movedim(-1, 0) for name, value in values.items()}
    assert not strided["u"].is_contiguous()
    assert deviation(scan(strided, backend), scan(values, backend)) < 1e-15


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_no_windows_give_no_output(backend: str):
    values = {name: value.requires_grad_() for name, value in arguments(0, 20, 4, 16).items()}
    y = selective_scan(**values, backend=backend)
    assert y.shape == (0, 20, 4)
    y.sum().backward()
    assert values["A"].grad.abs().max() == 0


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_gate_and_bias_may_be_left_out(backend: str):
    values = arguments(2, 9, 3, 4)
    core = {name: values[name] for name in ("u", "delta", "A", "B", "C", "D")}
    bare = selective_scan(**core, backend=backend)
    zero = torch.zeros_like(values["delta_bias"])
    gated = selective_scan(**core, z=values["z"], delta_bias=zero, backend=backend)
    assert deviation(gated, bare * torch.nn.functional.silu(values["z"])) < 1e-14


@pytest.mark.parametrize("backend", TORCH_BACKENDS)
def test_half_precision_inputs_are_scanned_in_the_precision_of_the_rates(backend: str):
    values = {name: value.float() for name, value in arguments(2, 64, 4, 16).items()}
    halves = {
        name: value.bfloat16() if name in ("u", "delta", "B", "C", "z") else value for name, value in values.items()
    }
    y = selective_scan(**halves, backend=backend)
    rounded = {name: value.to(torch.float32) for name, value in halves.items()}
    assert y.dtype == torch.float32
    assert deviation(y, selective_scan(**rounded, backend=backend)) < 1e-2


def test_torch_is_always_there_and_auto_takes_the_compiled_kernel_where_installed():
    found = available_backends()
    assert set(TORCH_BACKENDS) <= set(found) <= set(BACKENDS)
    assert resolve_backend("auto", "cpu") == ("cpu" if "cpu" in found else "torch")
    assert resolve_backend("auto", torch.device("meta")) == "torch"
    assert resolve_backend("torch-reference", "cpu") == "torch-reference"
    assert all(name in describe_backends()[0] for name in found)


def test_an_unknown_backend_is_named_with_the_choices():
    with pytest.raises(BackendUnavailable, match=r"'fast'.*torch-reference.*auto"):
        load_backend("fast")


def test_a_compiled_backend_serves_its_own_device_only():
    if "cpu" not in available_backends():
        pytest.skip("no compiled kernel here")
    with pytest.raises(BackendUnavailable, match="does not run on cuda"):
        resolve_backend("cpu", "cuda:0")


def test_a_backend_that_is_not_installed_says_so():
    # a process of its own, in which the kernel's module cannot be imported
    code = (
        "import sys\n"
        "sys.modules['neurostorm_bids.model.scan.cpu'] = None\n"
        "from neurostorm_bids.model.scan import available_backends, load_backend, resolve_backend\n"
        "assert 'cpu' not in available_backends()\n"
        "assert resolve_backend('auto', 'cpu') == 'torch'\n"
        "try:\n    load_backend('cpu')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("BackendUnavailable the scan backend 'cpu' is not installed here")
    assert "leave it at auto" in done.stdout
