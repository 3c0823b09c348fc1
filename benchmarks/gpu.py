"""The GPU path: parity, speed, memory, and how near the card's ceilings it comes; other paths in the same run.

    python -m benchmarks gpu [--json FILE] [--golden FOLDER] [--batches 1 4 16 64] [--seconds 1] [--runs 16]

Prints a table with the aims beside the figures. Figures come from random weights and random clips of the published
size, in medians of repeated calls timed by the card's own events. Without a GPU it says so, compares the kernels with
torch in Triton's interpreter, and measures nothing. Exit code 1 means that some path computes something else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurostorm_bids.errors import BackendUnavailable
from neurostorm_bids.model import Encoder, EncoderConfig
from neurostorm_bids.model.device import computing_in
from neurostorm_bids.model.encoder import stage_channels, stage_grids, stage_window
from neurostorm_bids.model.heads import pool
from neurostorm_bids.model.mamba import Mamba
from neurostorm_bids.model.scan import load_backend
from neurostorm_bids.model.windows import WindowLayout, sizes_of

PUBLISHED = EncoderConfig()
PRECISIONS = ("32", "tf32", "bf16")
PATHS = ("torch", "mamba-ssm scan", "mamba-ssm layer", "triton", "triton graph")
TRAINED_PATHS = ("torch", "mamba-ssm scan", "mamba-ssm layer", "triton")
TOLERANCES = {"32": 1e-5, "tf32": 5e-3, "bf16": 3e-2}  # of the largest embedding; above, a path computes something else
GOLDEN = ("A1_win", "A1_full", "A2_pad_win", "A3_4stage_full", "B1_prompt", "B2_prompt_pad_full")
TEMPLATE_SHAPE = (91, 109, 91)


# --- figures and aims -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One measurement; ``value`` is None where it could not be made, and ``note`` says why."""

    part: str
    path: str
    precision: str
    batch: int | None
    value: float | None
    unit: str
    note: str = ""

    def line(self) -> str:
        """As a line of the table."""
        shown = "-" if self.value is None else f"{self.value:.4g}"
        batch = "" if self.batch is None else str(self.batch)
        return f"{self.part:<20} {self.path:<24} {self.precision:<5} {batch:>4} {shown:>11} {self.unit:<12} {self.note}"


class Figures(list[Figure]):
    """All figures so far, each printed as it comes."""

    def add(self, *values: Any, **named: Any) -> Figure:
        """Append a `Figure` and print it."""
        self.append(Figure(*values, **named))
        print(self[-1].line(), flush=True)
        return self[-1]

    def best(self, part: str, path: str, precision: str, least_batch: int = 1) -> float | None:
        """The largest value of a path at a batch size or above."""
        found = [f.value for f in self if (f.part, f.path, f.precision) == (part, path, precision) and f.value]
        sized = [f for f in self if f.value in found and (f.batch or 0) >= least_batch]
        return max((f.value for f in sized if f.value is not None), default=None)

    def at(self, part: str, path: str, precision: str, batch: int) -> float | None:
        """The value of a path at one batch size."""
        wanted = (part, path, precision, batch)
        return next((f.value for f in self if (f.part, f.path, f.precision, f.batch) == wanted), None)


@dataclass(frozen=True)
class Aim:
    """What a figure should reach; ``found`` is None where it was not measured."""

    name: str
    target: float
    found: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """reached, missed or not measured."""
        if self.found is None:
            return "not measured"
        reached = self.found <= self.target if self.at_most else self.found >= self.target
        return "reached" if reached else "missed"

    def line(self) -> str:
        """As a line of the table."""
        found = "-" if self.found is None else f"{self.found:.4g}"
        return f"{self.name:<72} {'<=' if self.at_most else '>='} {self.target:<6g} {found:>9}  {self.verdict}"


def aims_of(figures: Figures) -> list[Aim]:
    """The aims for a card like the H200, with what was found."""
    rival = "mamba-ssm layer" if figures.best("clips", "mamba-ssm layer", "bf16") else "mamba-ssm scan"
    ours = max((figures.best("clips", path, "bf16", 16) or 0 for path in ("triton", "triton graph")), default=0) or None
    return [
        Aim("clips/s, bf16, batch 16 and more, input on the device", 1500, ours),
        Aim("the same, further aim", 2500, ours),
        Aim("clips/s from int16 volumes in host memory", 600, figures.best("from host int16", "triton", "bf16")),
        Aim("inference, times mamba-ssm, bf16, batch 16", 1.5, _times(figures, "clips", "triton", rival, 16)),
        Aim("training step, times mamba-ssm, bf16, batch 4", 1.3, _times(figures, "training", "triton", rival, 4)),
        Aim(
            "training memory, of mamba-ssm's, bf16, batch 4",
            0.7,
            _times(figures, "training memory", "triton", rival, 4),
            at_most=True,
        ),
    ]


def _times(figures: Figures, part: str, ours: str, theirs: str, batch: int) -> float | None:
    a, b = (figures.at(part, path, "bf16", batch) for path in (ours, theirs))
    return a / b if a and b else None


# --- what must be computed ------------------------------------------------------------------------------------------


def encoder_flops(config: EncoderConfig) -> float:
    """Floating point operations of the matrix products of one clip, padding of the windows included."""
    voxels = config.in_chans * int(np.prod(config.patch_size))
    frames = config.img_size[3] // config.patch_size[3]
    total = 0.0
    for stage, grid in enumerate(stage_grids(config)):
        c, tokens = stage_channels(config, stage), int(np.prod(grid)) * frames
        d, rank = config.expand * c, -(-c // 16)
        layout = WindowLayout.fitted(sizes_of((*grid, frames)), stage_window(config, stage), shifted=False)
        padded = int(np.prod(layout.counts)) * (layout.tokens + config.prompt_len)
        layer = 2 * d * c + d * (rank + 2 * config.d_state) + rank * d + d * c
        total += config.depths[stage] * 2 * (padded * layer + tokens * 2 * c * int(c * config.mlp_ratio))
        total += 2 * tokens * c * (voxels if stage == 0 else 8 * stage_channels(config, stage - 1))
    return total


def mixer_bytes(windows: int, length: int, channels: int, row: int, itemsize: int) -> float:
    """Least traffic of a layer between its outer projections: x twice, z once, rows written and read, y written."""
    return windows * length * (4 * channels * itemsize + 2 * row * 4)


# --- paths ----------------------------------------------------------------------------------------------------------


def encoder_on(path: str, device: str, config: EncoderConfig | None = None) -> Encoder:
    """The same random encoder whatever the path.

    Raises
    ------
    BackendUnavailable
        The path is not installed here.
    """
    encoder = Encoder(config or PUBLISHED, backend="torch", generator=torch.Generator().manual_seed(0)).to(device)
    names = {"torch": "torch", "mamba-ssm scan": "cuda", "mamba-ssm layer": "torch"}
    encoder.use_backend(names.get(path, "triton"))
    if path == "mamba-ssm layer":
        inner = _mamba_inner()
        for module in encoder.modules():
            if isinstance(module, Mamba):
                module.forward = partial(_as_the_reference, inner, module)  # type: ignore[method-assign]
    return encoder


def _mamba_inner() -> Callable[..., Tensor]:
    load_backend("cuda")
    try:
        import causal_conv1d  # noqa: F401
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn
    except ImportError as error:
        raise BackendUnavailable(f"mamba-ssm's fused layer is not installed here ({error})") from error
    return mamba_inner_fn


def _as_the_reference(inner: Callable[..., Tensor], layer: Mamba, tokens: Tensor) -> Tensor:
    """A layer as mamba-ssm's own module computes it: channels first, one fused function.  # (w, l, c) -> the same"""
    w, length, _ = tokens.shape
    xz = (layer.in_proj.weight @ tokens.flatten(0, 1).t()).unflatten(1, (w, length)).transpose(0, 1)  # (w, 2 d, l)
    A = -torch.exp(layer.A_log.float())
    projections = (layer.x_proj.weight, layer.dt_proj.weight, layer.out_proj.weight, None)
    conv, D, bias = layer.conv1d, layer.D.float(), layer.dt_proj.bias.float()
    return inner(xz, conv.weight, conv.bias, *projections, A, None, None, D, delta_bias=bias, delta_softplus=True)


# --- measuring ------------------------------------------------------------------------------------------------------


def seconds_of(call: Callable[[], Any], device: str, budget_s: float) -> float:
    """Median time of a call after two to warm up, as often as the budget allows, 3 to 200 times."""
    call()
    first = _one_call(call, device)
    n = int(min(max(budget_s / max(first, 1e-6), 3), 200))
    return median(_one_call(call, device) for _ in range(n))


def _one_call(call: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


@contextmanager
def memory_of(device: str) -> Iterator[Callable[[], float]]:
    """A function that gives the peak memory in GB that the block has taken on the device so far."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield lambda: 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 1e9


def clips_on(device: str, batch: int) -> Tensor:
    """Standard normal clips.  # (n, ch, X, Y, Z, T)"""
    generator = torch.Generator(device).manual_seed(batch)
    return torch.randn(batch, PUBLISHED.in_chans, *PUBLISHED.img_size, generator=generator, device=device)


def deviation(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value; infinite where anything is NaN."""
    difference = float((found.double() - exact.double()).abs().max() / exact.double().abs().max())
    return difference if difference == difference else float("inf")


def ceilings(figures: Figures, device: str, budget_s: float) -> None:
    """What the card moves and multiplies at best: copies of 2 GB, products of 8192 x 8192."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), device, budget_s)
    figures.add("ceiling", "copy", "", None, moved / 1e9, "GB/s", "bytes read and written")
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
        with computing_in("tf32" if precision == "tf32" else "32", device):
            seconds = seconds_of(lambda a=a, b=b: a @ b, device, budget_s)
        figures.add("ceiling", "matmul", precision, None, 2 * 8192**3 / seconds / 1e12, "TFLOP/s")


# --- parity ---------------------------------------------------------------------------------------------------------


def golden_parity(figures: Figures, device: str, folder: Path) -> None:
    """Largest difference from the reference's golden outputs, float32, on every path that is installed."""
    from safetensors.torch import load_file

    cases = [name for name in GOLDEN if _holds_input(folder / f"{name}.npz")]
    if not cases:
        figures.add("golden", "all", "32", None, None, "", f"no golden encoders in {folder}: state --golden")
    for case in cases:
        arrays = np.load(folder / f"{case}.npz")
        config = _golden_config(json.loads((folder / f"{case}.json").read_text())["config"])
        for path in TRAINED_PATHS:
            try:
                encoder = encoder_on(path, device, config).eval()
            except BackendUnavailable as error:
                figures.add("golden", path, "32", None, None, "", str(error))
                continue
            encoder.load_state_dict(load_file(folder / f"{case}.safetensors"))
            with torch.no_grad(), computing_in("32", device):
                found = encoder(torch.from_numpy(arrays["input"]).to(device)).cpu()
            difference = float((found - torch.from_numpy(arrays["output"])).abs().max())
            figures.add("golden", path, "32", None, difference, "max abs", case)


def _holds_input(file: Path) -> bool:
    return file.exists() and "input" in np.load(file)


def _golden_config(values: dict[str, Any]) -> EncoderConfig:
    known = EncoderConfig.__dataclass_fields__
    return EncoderConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


def exact_embeddings(device: str, batch: int) -> Tensor:
    """Embeddings of the clips of a batch size in float32, by torch, a few clips at a time.  # (n, c)"""
    encoder = encoder_on("torch", device).eval()
    with torch.no_grad(), computing_in("32", device):
        return torch.cat([pool(encoder(clips)) for clips in clips_on(device, batch).split(4)])


def interpreted_parity() -> int:
    """In this process, which must have Triton interpret: the layer against torch in float64. 0 if they agree."""
    try:
        from neurostorm_bids.model.scan.triton import Fused, Launch
    except ImportError as error:
        print(f"not compared: {error}. Triton is on PyPI for Linux: pip install triton")
        return 0
    fused, worst = Fused(Launch(channels=128, unroll=1)), 0.0
    g = torch.Generator().manual_seed(0)
    layer = Mamba(36).requires_grad_(False)
    layer.initialise(g)
    exact = Mamba(36, backend="torch-reference").double()
    exact.load_state_dict(layer.state_dict())
    for length in (1, 5, 24):
        x = torch.randn(1, length, 36, generator=g)
        leaf, double = x.clone().requires_grad_(), x.double().requires_grad_()
        y = layer.out_proj(fused.mixer(layer, layer.in_proj(leaf)))
        truth = exact(double)
        errors = {"output": deviation(y.detach(), truth.detach())}
        for value in (y, truth):
            (value * torch.linspace(-1, 1, value.numel()).view(value.shape)).sum().backward()
        assert leaf.grad is not None and double.grad is not None
        errors["gradient"] = deviation(leaf.grad, double.grad)
        print(f"layer, {length} tokens: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        worst = max(worst, *errors.values())
    return int(not worst < 1e-5)


# --- inference and training -----------------------------------------------------------------------------------------


def inference(figures: Figures, device: str, batches: Sequence[int], budget_s: float) -> None:
    """Clips a second, memory and deviation of every path, precision and batch size; input on the device."""
    for batch in batches:
        clips, exact = clips_on(device, batch), exact_embeddings(device, batch)
        for path in PATHS:
            for precision in PRECISIONS:
                _infer(figures, device, path, precision, clips, exact, budget_s)


def _infer(
    figures: Figures, device: str, path: str, precision: str, clips: Tensor, exact: Tensor, budget_s: float
) -> None:
    where = (path, precision, len(clips))
    try:
        encoder = encoder_on(path, device).eval()
        with torch.no_grad(), computing_in(precision, device), memory_of(device) as peak_gb:
            call = _graphed(encoder, clips) if path == "triton graph" else partial(encoder, clips)
            error = deviation(pool(call()), exact)
            seconds = seconds_of(call, device, budget_s)
            peak = peak_gb()
    except (BackendUnavailable, torch.cuda.OutOfMemoryError) as failure:
        figures.add("clips", *where, None, "1/s", _first_line(failure))
        return
    note = "" if error < TOLERANCES[precision] else "COMPUTES SOMETHING ELSE"
    figures.add("clips", *where, len(clips) / seconds, "1/s", note)
    figures.add("deviation", *where, error, "of largest", note)
    figures.add("memory", *where, peak, "GB")
    figures.add("products", *where, encoder_flops(PUBLISHED) * len(clips) / seconds / 1e12, "TFLOP/s")


def _graphed(encoder: Encoder, clips: Tensor) -> Callable[[], Tensor]:
    """The encoder on these very clips as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            encoder(clips)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = encoder(clips)

    def replay() -> Tensor:
        graph.replay()
        return features

    return replay


def training(figures: Figures, device: str, batches: Sequence[int], budget_s: float) -> None:
    """Steps of AdamW on the mean square of the features: clips a second and memory."""
    for batch in batches:
        clips = clips_on(device, batch)
        exact = gradient(encoder_on("torch", device).train(), clips[:1], "32")
        for path in TRAINED_PATHS:
            for precision in PRECISIONS:
                _train(figures, device, path, precision, clips, exact, budget_s)


def gradient(encoder: Encoder, clips: Tensor, precision: str) -> Tensor:
    """Of the mean square of the features, all parameters in one vector."""
    with computing_in(precision, str(clips.device)):
        loss = encoder(clips).float().square().mean()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(encoder.parameters()))])


def _train(
    figures: Figures, device: str, path: str, precision: str, clips: Tensor, exact: Tensor, budget_s: float
) -> None:
    where = (path, precision, len(clips))
    try:
        encoder = encoder_on(path, device).train()
        error = deviation(gradient(encoder, clips[:1], precision), exact)
        optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-4)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            with computing_in(precision, device):
                loss = encoder(clips).float().square().mean()
            loss.backward()
            optimiser.step()

        with memory_of(device) as peak_gb:
            seconds = seconds_of(step, device, budget_s)
            peak = peak_gb()
    except (BackendUnavailable, torch.cuda.OutOfMemoryError) as failure:
        figures.add("training", *where, None, "clips/s", _first_line(failure))
        return
    note = "" if error < 10 * TOLERANCES[precision] else "COMPUTES SOMETHING ELSE"
    figures.add("training", *where, len(clips) / seconds, "clips/s", note)
    figures.add("gradient deviation", *where, error, "of largest", note)
    figures.add("training memory", *where, peak, "GB")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120]


# --- the kernels alone ----------------------------------------------------------------------------------------------


def kernels_alone(figures: Figures, device: str, budget_s: float, batch: int = 16) -> None:
    """The layer between its outer projections at the sizes of each stage, and other sizes of programs for the first."""
    from neurostorm_bids.model.scan.triton import Fused, Launch

    for stage, grid in enumerate(stage_grids(PUBLISHED)):
        _layer_alone(figures, f"stage {stage}", Fused(Launch()), stage, grid, device, budget_s, batch)
    for launch in (
        Launch(channels=16), Launch(channels=64), Launch(unroll=1), Launch(unroll=4), Launch(unroll=16),
        Launch(chunk=2), Launch(chunk=8), Launch(rows=32), Launch(rows=128),
    ):  # fmt: skip
        changed = {k: v for k, v in asdict(launch).items() if v != asdict(Launch())[k]}
        name = " ".join(f"{key}={value}" for key, value in changed.items())
        _layer_alone(figures, name, Fused(launch), 0, stage_grids(PUBLISHED)[0], device, budget_s, batch)


def _layer_alone(figures: Figures, name: str, fused: Any, stage: int, grid, device: str, budget_s: float, batch: int):
    c, frames = stage_channels(PUBLISHED, stage), PUBLISHED.img_size[3]
    layout = WindowLayout.fitted(sizes_of((*grid, frames)), stage_window(PUBLISHED, stage), shifted=False)
    windows, d = batch * int(np.prod(layout.counts)), PUBLISHED.expand * c
    layer = Mamba(c).to(device)
    row = -(-(layer.rank + 2 * layer.d_state) // 16) * 16
    xz = torch.randn(windows, layout.tokens, 2 * d, device=device, dtype=torch.bfloat16, requires_grad=True)
    try:
        with torch.no_grad():
            seconds = seconds_of(lambda: fused.mixer(layer, xz), device, budget_s)
        y = fused.mixer(layer, xz)
        grad = torch.randn_like(y)
        back = seconds_of(lambda: torch.autograd.grad(y, xz, grad, retain_graph=True), device, budget_s)
    except Exception as error:  # a size that does not fit the card is one line of the table, not its end
        figures.add("layer", name, "bf16", batch, None, "ms", _first_line(error))
        return
    figures.add("layer", name, "bf16", batch, seconds * 1e3, "ms", "forward")
    figures.add("layer", name, "bf16", batch, back * 1e3, "ms", "backward")
    moved = mixer_bytes(windows, layout.tokens, d, row, 2)
    figures.add("layer", name, "bf16", batch, moved / seconds / 1e9, "GB/s", "forward, least traffic")
    exponentials = windows * layout.tokens * d * layer.d_state
    figures.add("layer", name, "bf16", batch, exponentials / seconds / 1e12, "T exp/s", "forward")


# --- from volumes and from files ------------------------------------------------------------------------------------


def from_host(figures: Figures, device: str, n_clips: int = 256, batch: int = 16, path: str = "triton") -> None:
    """int16 volumes of a 2 mm template in host memory: resampling, normalisation and layout on the card."""
    clips, windows, volumes = _host_run(device, n_clips)
    encoder = encoder_on(path, device).eval()

    def run() -> None:
        for start in range(0, len(windows), batch):
            group = windows[start : start + batch]
            made = clips.blank(len(group))
            for clip, window in zip(made, group, strict=True):
                while clips.n_volumes <= clips.last_volume(window):
                    clips.add(volumes[clips.n_volumes % len(volumes)])
                clips.write(window, clip)
            pool(encoder(made)).cpu()

    for precision in PRECISIONS:
        with torch.no_grad(), computing_in(precision, device):
            encoder(clips.blank(batch))  # warm
            clips.n_volumes = 0
            started = time.perf_counter()
            run()
            rate = len(windows) / (time.perf_counter() - started)
        figures.add("from host int16", path, precision, batch, rate, "clips/s", f"{n_clips} clips, host clock")


def _host_run(device: str, n_clips: int):
    """A run that goes on for n clips, over 200 volumes of noise: what makes its clips, its windows, its volumes."""
    from neurostorm_bids.clips import Timing, plan_windows
    from neurostorm_bids.clips.statistics import RunStatistics
    from neurostorm_bids.model.device_clips import DeviceClips
    from neurostorm_bids.space.grid import NEUROSTORM_2MM, Grid, apply_affine
    from neurostorm_bids.space.resample import weight_matrix

    grid = NEUROSTORM_2MM
    image = Grid.of(TEMPLATE_SHAPE, [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], grid.template)
    places = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    weights = weight_matrix(image, apply_affine(grid.matrix, places), "linear")
    radius = np.linalg.norm((places - 47.5) / (34, 42, 36), axis=1)
    timing = Timing.of(20 * n_clips, 0.8)
    windows = plan_windows(timing, clip_frames=20, stride=20)
    voxels = np.flatnonzero(radius < 1)
    statistics = RunStatistics(
        timing=timing, mean=900.0, std=250.0, minimum=0.0, temporal_variance_share=0.01, n_foreground=len(voxels),
        n_negative=0, negative_share=0.0, mean_image=np.zeros(grid.shape, np.float32),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    volumes = rng.normal(900, 250, (200, int(np.prod(TEMPLATE_SHAPE)))).astype(np.int16)
    return DeviceClips(voxels, grid.shape, statistics, windows, device, resampling=weights), windows.kept, volumes


def whole_runs(figures: Figures, device: str, n_runs: int, n_volumes: int = 200) -> None:
    """The program from .nii.gz to tables, start of the workers included."""
    from neurostorm_bids.simulate import write_dataset

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(
            folder / "in", n_subjects=n_runs, spaces=("MNI152NLin6Asym",), zoom_mm=2.0, n_volumes=n_volumes, t_r_s=0.8
        )
        n_files = len(list((folder / "in").rglob("*desc-preproc_bold.nii.gz")))
        model = _published_model(folder / "model")
        command = [sys.executable, "-m", "neurostorm_bids", str(folder / "in"), str(folder / "out"), "participant"]
        command += ["--model", str(model), "--device", device, "--offline", "--work-dir", str(folder / "work")]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    note = f"{n_files} runs of {n_volumes} volumes" if done.returncode == 0 else done.stderr.strip()[-120:]
    figures.add("runs", "program", "32", None, n_files / seconds if done.returncode == 0 else None, "runs/s", note)


def _published_model(folder: Path) -> Path:
    """An untrained model of the published size."""
    from neurostorm_bids.model import InputSpec
    from neurostorm_bids.model.description import INPUT_FIELDS, ModelDescription
    from neurostorm_bids.model.folder import weights_of, write_model_folder

    spec = InputSpec(provenance=dict.fromkeys(INPUT_FIELDS, "stated"))
    description = ModelDescription(name="bench", config=PUBLISHED, input=spec, trained=False, summary="For benchmarks.")
    write_model_folder(folder, description, weights_of(encoder_on("torch", "cpu"), {}))
    return folder


# --- the command ----------------------------------------------------------------------------------------------------


def without_gpu() -> int:
    """Say so, and compare the kernels with torch in an interpreting process of their own."""
    print("No GPU that PyTorch can use: nothing is measured. The kernels, in Triton's interpreter, against float64:")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--interpreted"], env=environment, check=False)
    if done.returncode:
        print("They do not agree.")
    return done.returncode


def report(figures: Figures, aims: Sequence[Aim], file: Path | None) -> None:
    """Aims beside the figures, on paper and as JSON."""
    print("\nAims (for a card like the H200)")
    for aim in aims:
        print(aim.line())
    if file is None:
        return
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    content = {
        "machine": machine,
        "figures": [asdict(figure) for figure in figures],
        "aims": [asdict(aim) | {"verdict": aim.verdict} for aim in aims],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def agree(figures: Sequence[Figure]) -> bool:
    """Whether every path that ran computes what it should."""
    wrong = [f for f in figures if f.part == "golden" and f.value is not None and not f.value < 1e-5]
    return not wrong and not any("SOMETHING ELSE" in f.note for f in figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks gpu``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--golden", type=Path, default=Path("..") / "shared" / "golden", help="golden tensors")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--train-batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--runs", type=int, default=16, help="simulated runs for the whole program; 0: none")
    parser.add_argument("--interpreted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.interpreted:
        return interpreted_parity()
    if not torch.cuda.is_available():
        return without_gpu()
    figures, device = Figures(), "cuda"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    ceilings(figures, device, options.seconds)
    golden_parity(figures, device, options.golden)
    kernels_alone(figures, device, options.seconds)
    inference(figures, device, options.batches, options.seconds)
    training(figures, device, options.train_batches, options.seconds)
    from_host(figures, device)
    if options.runs:
        whole_runs(figures, device, options.runs)
    report(figures, aims_of(figures), options.json)
    return 0 if agree(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
