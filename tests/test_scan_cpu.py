"""The compiled scan against the plain recurrence in float64, on every instruction set that this machine has."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurostorm_bids.model.scan import load_backend

cpu = pytest.importorskip("neurostorm_bids.model.scan.cpu", reason="the kernel is not compiled here")
library = pytest.importorskip("neurostorm_bids.model.scan.cpu_library")

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
GROUPS = (1, 4, 5, 8, 16, 17, 24, 36)  # channels: parts of a vector, whole ones, and both


def runs_here(isa: str) -> bool:
    try:
        library.Kernels(isa)
    except ImportError:
        return False
    return True


ISAS = [isa for isa in library.ISAS if runs_here(isa)]
every_isa = pytest.mark.parametrize("isa", ISAS)


@cache
def compiled(isa: str):
    return cpu.Compiled(isa)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(
    w: int, length: int, d: int, s: int = 16, *, seed: int = 0, step: float = -3.0, spread: float = 1.0
) -> dict[str, Tensor]:
    """Random arguments in float32, step sizes around softplus(step)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    return {
        "u": normal(w, length, d),
        "delta": step + spread * normal(w, length, d),
        "A": -torch.exp(normal(d, s)),
        "B": normal(w, length, s),
        "C": normal(w, length, s),
        "D": normal(d),
        "z": normal(w, length, d),
        "delta_bias": 0.1 * normal(d),
    }


def truth(values: dict[str, Tensor]) -> Tensor:
    """The recurrence in float64."""
    scan = load_backend("torch").scan  # itself tested against the recurrence by hand
    return scan(**{name: value.double() for name, value in values.items()})


def gradients(scan, values: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    leaves = {name: value.to(dtype).requires_grad_() for name, value in values.items()}
    y = scan(**leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
    found = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


shapes = {
    "w": st.integers(1, 4),
    "length": st.one_of(st.integers(1, 40), st.integers(1, 600), st.sampled_from([63, 64, 65, 256, 306, 600])),
    "d": st.sampled_from(GROUPS),
    "s": st.sampled_from([1, 3, 16, 16, 20]),
    "step": st.sampled_from([-12.0, -7.0, -5.0, -3.0, 0.0, 5.0]),
    "seed": st.integers(0, 2**16),
}


@every_isa
@settings(deadline=None, max_examples=40)
@given(**shapes)
def test_equals_the_recurrence_in_double_precision(isa, w, length, d, s, step, seed):
    values = arguments(w, length, d, s, seed=seed, step=step)
    assert deviation(compiled(isa).scan(**values), truth(values)) < 3e-6


def conditioning(values: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How far the float64 gradients move when the inputs move by up to half a unit of float32 in the last place."""
    moved = dict.fromkeys(NAMES, 0.0)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        nearby = {
            name: value.double() * (1 + (2 * torch.rand(value.shape, generator=generator).double() - 1) * 2**-24)
            for name, value in values.items()
        }
        found = gradients(load_backend("torch").scan, nearby, torch.float64)
        moved = {name: max(moved[name], deviation(found[name], expected[name])) for name in NAMES}
    return moved


@every_isa
@settings(deadline=None, max_examples=25)
@example(w=1, length=1, d=36, s=3, step=-12.0, seed=1)  # sums over channels that cancel to a hundredth
@given(**shapes)
def test_gradients_equal_those_in_double_precision(isa, w, length, d, s, step, seed):
    values = arguments(w, length, d, s, seed=seed, step=step)
    found, expected = (
        gradients(compiled(isa).scan, values),
        gradients(load_backend("torch").scan, values, torch.float64),
    )
    # where a sum cancels, the inputs' own rounding moves it by more than 1e-5: nothing in float32 can know it better
    unknowable = conditioning(values, expected)
    for name in NAMES:
        assert deviation(found[name], expected[name]) < max(1e-5, 30 * unknowable[name]), name


@every_isa
@pytest.mark.parametrize("step", [-12.0, -7.0, -5.0, -3.0, 0.0, 5.0])
@pytest.mark.parametrize(("d", "length"), [(72, 256), (144, 306), (288, 32)])
def test_gradients_at_the_models_sizes_without_any_allowance(isa, d, length, step):
    values = arguments(2, length, d, 16, seed=d, step=step)
    found = gradients(compiled(isa).scan, values)
    expected = gradients(load_backend("torch").scan, values, torch.float64)
    assert {name: error for name in NAMES if (error := deviation(found[name], expected[name])) >= 1e-5} == {}


@every_isa
@pytest.mark.parametrize("step", [-7.0, -5.0, -3.0])
def test_small_steps_keep_their_digits(isa: str, step: float):
    # without skip every output is proportional to the steps, and log(1 + exp(x)) loses up to 6e-5 of those
    values = arguments(2, 1, 16, step=step, spread=0.3) | {"D": torch.zeros(16)}
    y, expected = compiled(isa).scan(**values).double(), truth(values)
    assert ((y - expected).abs() <= 1e-6 * expected.abs() + 1e-7 * expected.abs().max()).all()


@every_isa
def test_the_exponential_is_accurate_to_the_last_places(isa: str):
    x = torch.linspace(-85, 88, 4096)
    x[:8] = torch.tensor([0.0, -0.0, 1e-30, -1e-7, float("nan"), float("inf"), 89.5, -200.0])
    found = x.clone()
    compiled(isa).kernels.exponential(found)
    exact = torch.exp(x.double())
    assert torch.isnan(found[4]) and torch.isinf(found[5]) and torch.isinf(found[6]) and found[7] < 1e-37
    off = ((found.double() - exact).abs() / exact)[8:]
    # log2(e) is rounded, and without multiply-adds so is the product with it: errors grow with the exponent
    assert (off < 3e-7 + 1e-7 * x[8:].abs()).all()


@every_isa
def test_steps_of_zero_leave_only_the_skip(isa: str):
    values = arguments(2, 300, 20, step=-1e4)
    expected = values["u"] * values["D"] * torch.nn.functional.silu(values["z"])
    assert deviation(compiled(isa).scan(**values), expected) < 1e-6


@every_isa
@pytest.mark.parametrize("step", [100.0, 1e4, 1e20, 1e36])
def test_huge_steps_forget_and_overflow_nothing(isa: str, step: float):
    values = arguments(2, 300, 20) | {"delta_bias": torch.zeros(20)}
    values["delta"] = step * (1 + torch.rand_like(values["delta"]))
    y, expected = compiled(isa).scan(**values), truth(values)
    assert deviation(y / step, expected / step) < 3e-6


@every_isa
@pytest.mark.parametrize(("step", "strength"), [(100.0, 1.0), (1e9, 1e3), (1e17, 1e6)])
def test_gradients_of_huge_steps_and_strong_decays(isa: str, step: float, strength: float):
    values = arguments(2, 40, 20) | {"delta_bias": torch.zeros(20)}
    values["delta"] = step * (1 + torch.rand_like(values["delta"]))
    values["A"] = strength * values["A"]
    found = gradients(compiled(isa).scan, values)
    expected = gradients(load_backend("torch").scan, values, torch.float64)
    for name in NAMES:
        size = expected[name].abs().max().clamp(min=1e-30)
        assert torch.isfinite(found[name]).all(), name
        assert name == "A" or deviation(found[name] / size, expected[name] / size) < 3e-5, (
            name
        )  # nothing is kept: A has none


@every_isa
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("step", [-3.0, 3.0])
def test_nan_and_infinity_spread_as_in_double_precision(isa: str, name: str, bad: float, step: float):
    values = arguments(2, 40, 20, step=step)
    values[name][1, 20, 0] = bad
    y, expected = compiled(isa).scan(**values), truth(values)
    assert torch.equal(torch.isnan(y), torch.isnan(expected))
    assert torch.equal(torch.isinf(y), torch.isinf(expected))
    rest = torch.isfinite(expected)
    assert rest[0].all() and deviation(y[rest], expected[rest]) < 3e-6


@every_isa
@pytest.mark.parametrize("name", ["A", "D", "delta_bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 0.0, -1e-20, -1e30])
def test_odd_weights_mean_what_they_mean_in_double_precision(isa: str, name: str, bad: float):
    values = arguments(2, 40, 20)
    values[name][3] = bad
    y, expected = compiled(isa).scan(**values), truth(values)
    assert torch.equal(torch.isnan(y), torch.isnan(expected))
    assert torch.equal(torch.isinf(y), torch.isinf(expected))
    rest = torch.isfinite(expected)
    assert deviation(y[rest], expected[rest]) < 3e-6


@every_isa
def test_a_bad_window_changes_no_bit_of_the_others(isa: str):
    values = arguments(3, 40, 20)
    clean = compiled(isa).scan(**values)
    values["u"][1, 20, 7] = float("nan")
    y = compiled(isa).scan(**values)
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert torch.equal(y[1, :20], clean[1, :20]) and torch.isnan(y[1, 20:, 7]).all()


@every_isa
def test_tensors_need_not_be_contiguous(isa: str):
    values = arguments(3, 20, 20)
    strided = {name: value.movedim(0, -1).contiguous().movedim(-1, 0) for name, value in values.items()}
    assert not strided["u"].is_contiguous()
    assert torch.equal(compiled(isa).scan(**strided), compiled(isa).scan(**values))
    broadcast = values | {"B": values["B"][:1].expand(3, -1, -1)}
    assert deviation(compiled(isa).scan(**broadcast), truth(broadcast)) < 3e-6


@every_isa
def test_gradients_of_a_strided_output(isa: str):
    values = {name: value.requires_grad_() for name, value in arguments(2, 9, 5).items()}
    wide = torch.linspace(-1, 1, 2 * 5 * 9).reshape(2, 5, 9)
    (compiled(isa).scan(**values).transpose(1, 2) * wide).sum().backward()
    grad = values["u"].grad.clone()
    values["u"].grad = None
    (compiled(isa).scan(**values) * wide.transpose(1, 2).contiguous()).sum().backward()
    assert torch.equal(values["u"].grad, grad)


@every_isa
@pytest.mark.parametrize("shape", [(0, 20, 4), (2, 0, 4)])
def test_no_windows_or_no_tokens_give_no_output(isa: str, shape: tuple[int, int, int]):
    values = {name: value.requires_grad_() for name, value in arguments(*shape).items()}
    y = compiled(isa).scan(**values)
    assert y.shape == shape
    y.sum().backward()
    assert all(value.grad.abs().sum() == 0 for value in values.values())


@every_isa
def test_gate_and_bias_may_be_left_out(isa: str):
    values = arguments(2, 9, 20)
    core = {name: values[name].requires_grad_() for name in ("u", "delta", "A", "B", "C", "D")}
    scan = compiled(isa).scan
    bare = scan(**core)
    gated = scan(**core, z=values["z"], delta_bias=torch.zeros(20))
    assert deviation(gated, bare * torch.nn.functional.silu(values["z"])) < 1e-6
    bare.sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in core.values())


@every_isa
def test_only_the_gradients_asked_for_are_needed(isa: str):
    values = arguments(2, 9, 20)
    values["u"].requires_grad_()
    compiled(isa).scan(**values).sum().backward()
    assert values["A"].grad is None and torch.isfinite(values["u"].grad).all()


@every_isa
@pytest.mark.parametrize("w", [1, 40])  # below and above four windows a thread, where sums over channels are kept apart
def test_results_and_gradients_do_not_depend_on_threads(isa: str, w: int):
    values, results = arguments(w, 65, 36), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append([compiled(isa).scan(**values), *gradients(compiled(isa).scan, values).values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_isa
def test_a_window_does_not_depend_on_its_company(isa: str):
    values = arguments(5, 70, 36)
    alone = {name: value[2:3] if value.ndim == 3 else value for name, value in values.items()}
    assert torch.equal(compiled(isa).scan(**values)[2:3], compiled(isa).scan(**alone))


def test_instruction_sets_agree():
    values = arguments(3, 256, 72)
    found = [compiled(isa).scan(**values) for isa in ISAS]
    assert all(deviation(other, found[0]) < 1e-5 for other in found[1:])


@every_isa
def test_half_precision_inputs_are_scanned_in_single_precision(isa: str):
    values = arguments(2, 64, 20)
    halves = {n: v.bfloat16() if n in ("u", "delta", "B", "C", "z") else v for n, v in values.items()}
    y = compiled(isa).scan(**halves)
    assert y.dtype == torch.float32
    assert torch.equal(y, compiled(isa).scan(**{name: value.float() for name, value in halves.items()}))


@every_isa
def test_double_precision_is_left_to_torch(isa: str):
    values = {name: value.double() for name, value in arguments(2, 20, 5).items()}
    y = compiled(isa).scan(**values)
    assert y.dtype == torch.float64 and deviation(y, truth(values)) < 1e-13


def test_second_derivatives_are_refused():
    values = {name: value.requires_grad_() for name, value in arguments(1, 5, 4).items()}
    (grad,) = torch.autograd.grad(compiled(ISAS[0]).scan(**values).sum(), values["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()
