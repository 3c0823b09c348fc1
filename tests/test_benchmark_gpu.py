"""What of the GPU benchmark needs no GPU: counting, comparing, judging and writing; its steps on the CPU, tiny."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from neurostorm_bids.model import Encoder, EncoderConfig

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
TINY = EncoderConfig(
    img_size=(96, 96, 96, 20), embed_dim=4, patch_size=(24, 24, 24, 1), depths=(1, 1), first_window_size=(4, 4, 4, 4)
)


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_gpu", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PUBLISHED", TINY)
    return module


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        EncoderConfig(
            img_size=(12, 8, 6, 5), in_chans=2, embed_dim=20, patch_size=(2, 2, 2, 1), depths=(2, 1), prompt_len=3
        ),
    ],
)
@torch.no_grad()
def test_products_are_counted_as_torch_counts_them(gpu, config: EncoderConfig):
    encoder = Encoder(config, backend="torch-reference").eval()
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, config.in_chans, *config.img_size))
    counts = counter.get_flop_counts()["Global"]
    scan = sum(n for operation, n in counts.items() if "bmm" in str(operation))  # einsum of the reference's recurrence
    assert gpu.encoder_flops(config) == sum(counts.values()) - scan


def test_the_published_encoder_takes_as_many_products_as_stated(gpu):
    assert gpu.encoder_flops(EncoderConfig()) == pytest.approx(17.5e9, rel=0.02)


def figures_of(gpu, **values):
    figures = gpu.Figures()
    for (part, path, batch), value in values["found"].items():
        figures.add(part, path, "bf16", batch, value, "1/s")
    return figures


def test_aims_are_judged_by_the_right_figures(gpu):
    found = {
        ("clips", "triton", 4): 9000.0,  # too small a batch for the aim
        ("clips", "triton", 16): 1600.0,
        ("clips", "triton graph", 64): 1700.0,
        ("clips", "mamba-ssm layer", 16): 1000.0,
        ("training", "triton", 4): 100.0,
        ("training", "mamba-ssm layer", 4): 100.0,
        ("training memory", "triton", 4): 6.0,
        ("training memory", "mamba-ssm layer", 4): 10.0,
    }
    aims = gpu.aims_of(figures_of(gpu, found=found))
    assert [aim.found for aim in aims] == [1700.0, 1700.0, None, 1.6, 1.0, 0.6]
    verdicts = [aim.verdict for aim in aims]
    assert verdicts == ["reached", "missed", "not measured", "reached", "missed", "reached"]
    assert "1700  reached" in aims[0].line()
    assert aims[5].line().split()[-4:] == ["<=", "0.7", "0.6", "reached"]


def test_without_mamba_ssm_layer_its_scan_is_the_rival_and_nothing_is_made_up(gpu):
    found = {
        ("clips", "triton", 16): 30.0,
        ("clips", "mamba-ssm scan", 16): 10.0,
        ("clips", "mamba-ssm layer", 16): None,
    }
    aims = gpu.aims_of(figures_of(gpu, found=found))
    assert aims[3].found == 3.0
    assert {aim.verdict for aim in gpu.aims_of(gpu.Figures())} == {"not measured"}


def test_what_computes_something_else_fails_the_benchmark(gpu):
    figures = gpu.Figures()
    figures.add("golden", "torch", "32", None, 2e-6, "max abs", "A1_win")
    figures.add("golden", "cuda", "32", None, None, "", "not installed")
    assert gpu.agree(figures)
    figures.add("golden", "triton", "32", None, float("nan"), "max abs", "A1_win")
    assert not gpu.agree(figures)
    other = gpu.Figures()
    other.add("clips", "triton", "32", 4, 100.0, "1/s", "COMPUTES SOMETHING ELSE")
    assert not gpu.agree(other)
    assert gpu.deviation(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert gpu.deviation(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25


def test_paths_are_measured_or_say_why_not(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "PATHS", ("torch", "mamba-ssm scan"))
    monkeypatch.setattr(gpu, "TRAINED_PATHS", ("torch", "mamba-ssm layer"))
    monkeypatch.setattr(gpu, "PRECISIONS", ("32", "bf16"))
    figures = gpu.Figures()
    gpu.inference(figures, "cpu", [2], 0.01)
    gpu.training(figures, "cpu", [1], 0.01)
    assert gpu.agree(figures)
    assert figures.at("clips", "torch", "32", 2) > 0
    assert figures.at("deviation", "torch", "32", 2) < 1e-5
    assert 1e-5 < figures.at("deviation", "torch", "bf16", 2) < 3e-2
    assert figures.at("training", "torch", "bf16", 1) > 0
    missing = [f for f in figures if f.path.startswith("mamba")]
    assert len(missing) == 4
    assert all(f.value is None and f.note for f in missing)


def test_int16_volumes_become_clips(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "PRECISIONS", ("32",))
    figures = gpu.Figures()
    gpu.from_host(figures, "cpu", n_clips=2, batch=2, path="torch")
    assert figures.at("from host int16", "torch", "32", 2) > 0


@pytest.mark.shared
def test_golden_outputs_are_compared(gpu, shared: Path, monkeypatch):
    monkeypatch.setattr(gpu, "TRAINED_PATHS", ("torch",))
    monkeypatch.setattr(gpu, "GOLDEN", ("A1_win",))
    figures = gpu.Figures()
    gpu.golden_parity(figures, "cpu", shared / "golden")
    assert gpu.agree(figures) and figures[0].value < 1e-5
    gpu.golden_parity(figures, "cpu", shared / "nowhere")
    assert figures[-1].value is None and "state --golden" in figures[-1].note


def test_the_report_holds_every_figure(gpu, tmp_path: Path):
    figures = figures_of(gpu, found={("clips", "triton", 16): 1600.0})
    gpu.report(figures, gpu.aims_of(figures), tmp_path / "gpu.json")
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["figures"][0]["value"] == 1600.0
    assert content["aims"][0] | {"name": ""} == {
        "name": "", "target": 1500, "found": 1600.0, "at_most": False, "verdict": "reached"
    }  # fmt: skip
    assert content["machine"]["torch"] == torch.__version__


def test_without_a_gpu_it_says_so_and_compares_the_kernels(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **_: SimpleNamespace(returncode=0))
    assert gpu.main([]) == 0
    assert "No GPU" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "neurostorm_bids.model.scan.triton", None)
    assert gpu.interpreted_parity() == 0
    assert "pip install triton" in capsys.readouterr().out
