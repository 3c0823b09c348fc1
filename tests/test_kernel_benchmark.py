"""What the benchmarks of the CPU path conclude from times and peaks; the times themselves are not tested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from neurostorm_bids.model.scan import load_backend

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are not installed
from benchmarks import _figures, cpu, pipeline
from benchmarks.gpu import encoder_flops


def test_work_of_a_clip_is_what_the_sizes_say():
    assert cpu.exponentials(cpu.PUBLISHED) == pytest.approx(0.274e9, rel=2e-3)
    assert encoder_flops(cpu.PUBLISHED) == pytest.approx(17.5e9, rel=5e-3)


def test_a_ratio_is_of_medians_and_of_minima():
    figure = _figures.ratio(
        "(a)", "slow over fast", {"slow": [3, 8, 4], "fast": [2, 1, 5]}, "slow", "fast", at_least=2.5
    )
    assert (figure.value, figure.of_minima, figure.verdict) == (2.0, 3.0, "misses")
    assert "4 (3) over 2 (1) s" in figure.line() and ">= 2.5" in figure.line()


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "holds"), (1.1, "misses"), (float("nan"), "misses")])
def test_verdicts(value: float, verdict: str):
    assert _figures.Figure("(b)", "", value, at_most=1.0).verdict == verdict
    assert _figures.Figure("(b)", "", value).verdict == ""


def test_calls_that_others_disturbed_are_left_out():
    assert _figures.undisturbed([(1.0, 0.0), (9.0, 0.6), (1.2, 0.05), (7.0, 0.5)]) == [1.0, 1.2]
    assert _figures.undisturbed([(9.0, 0.6), (7.0, 0.5), (8.0, 0.9)]) == [7.0]  # the least disturbed of three


def test_limits_add_products_and_exponentials():
    times = {"best": [2.0], "sgemm": [0.5], "torch.exp": [0.25], "own exp": [0.05]}
    operations = {"sgemm": encoder_flops(cpu.PUBLISHED), **dict.fromkeys(("torch.exp", "own exp"), 0.0)}
    operations["torch.exp"] = operations["own exp"] = cpu.exponentials(cpu.PUBLISHED)
    by_torch, by_own = cpu.limit_figures(times, operations, "best")
    assert by_torch.value == pytest.approx(2.0 / 0.75) and by_own.value == pytest.approx(2.0 / 0.55)


def test_the_unrolled_loop_is_the_scan():
    g = torch.Generator().manual_seed(0)
    values = {name: torch.randn(2, 9, 5, generator=g) for name in ("u", "delta", "z")}
    values |= {name: torch.randn(2, 9, 3, generator=g) for name in ("B", "C")}
    values |= {"A": -torch.rand(5, 3, generator=g), "D": torch.ones(5), "delta_bias": torch.zeros(5)}
    found: Tensor = cpu.unrolled(**values)
    assert torch.allclose(found, load_backend("torch-reference").scan(**values), atol=1e-6)


def test_figures_of_the_pipeline():
    call = {"seconds": 5.0, "clips": 25, "model_s": 4.0, "imports_s": 2.0, "tree_mb": 700.0}
    slower = call | {"seconds": 10.0, "model_s": 5.0, "tree_mb": 750.0}
    seconds, rate, share, *_ = pipeline.time_figures([call, slower, call])
    assert (seconds.value, rate.value, share.value) == (5.0, 5.0, 0.8)
    short, long, grown = pipeline.memory_figures({200: [call, slower], 1200: [call | {"tree_mb": 900.0}]})
    assert (short.value, long.value, grown.value, grown.verdict) == (750.0, 900.0, 150.0, "misses")
