"""The compiled kernels on a CPU: speed against the plain torch path, against what the machine could do, and memory.

    python -m benchmarks cpu [PART ...] [--json FILE] [--rounds 7] [--whole-reference]

Parts: clip (one clip through the encoder), training (one step), instructions (counted by callgrind); all of them
without a name. Everything is the published size with random weights and clips. Paths that are compared take turns,
after a call each to warm up; a ratio is one of medians, and the same of the smallest times stands beside it. Calls
during which other programs took more than a tenth of the processors are left out where enough others remain. Exit code
1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._figures import HEADER, Figure, Seconds, busy_elsewhere_s, machine, peak_mb, ratio, undisturbed
from benchmarks.gpu import deviation, encoder_flops
from neurostorm_bids.environment import share_one_heap
from neurostorm_bids.model import Encoder, EncoderConfig
from neurostorm_bids.model.encoder import stage_channels, stage_grids, stage_window
from neurostorm_bids.model.heads import pool
from neurostorm_bids.model.scan import load_backend
from neurostorm_bids.model.windows import WindowLayout, sizes_of

PUBLISHED = EncoderConfig()
REFERENCE_S, REFERENCE_TRAINING_S = 2.9, 149.0  # of a clip and a training step, on two cores with AVX-512
COUNTED = (24, 24, 24, 20)  # the clip whose instructions are counted
STAGE_0 = (320, 256, 72, 16)  # windows, tokens, inner channels, states
SETTLE_S = 0.05  # before a timed call: threads of the last one stop spinning
PARTS = ("clip", "training", "instructions")

Call = Callable[[], object]


# --- measuring ------------------------------------------------------------------------------------------------------


def interleaved(calls: Mapping[str, Call], rounds: int, often: Mapping[str, int] | None = None) -> Seconds:
    """Seconds of every call, taken in turn; some are called several times a round, fewer where others compute too."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name] += [timed(call) for _ in range((often or {}).get(name, 1))]
    return {name: undisturbed(found) for name, found in samples.items()}


def timed(call: Call) -> tuple[float, float]:
    """Seconds of a call, and the share of the processors that other programs took meanwhile."""
    time.sleep(SETTLE_S)
    before, started = busy_elsewhere_s(), time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    return seconds, max(busy_elsewhere_s() - before, 0.0) / (seconds * (os.cpu_count() or 1))


def in_process(worker: str, *words: object) -> dict[str, Any]:
    """What a worker of this file prints as its last line, run in a process of its own: its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--worker", worker, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- one clip -------------------------------------------------------------------------------------------------------


def encoder_with(backend: str) -> Encoder:
    """The same random encoder whatever the backend, ready for inference."""
    return Encoder(PUBLISHED, backend=backend, generator=torch.Generator().manual_seed(0)).eval()


def clip() -> Tensor:
    """A random clip.  # (1, ch, X, Y, Z, T)"""
    return torch.randn(1, PUBLISHED.in_chans, *PUBLISHED.img_size, generator=torch.Generator().manual_seed(1))


def exponentials(config: EncoderConfig) -> float:
    """Decays that the scans of one clip take."""
    total, frames = 0.0, config.img_size[3] // config.patch_size[3]
    for stage, grid in enumerate(stage_grids(config)):
        layout = WindowLayout.fitted(sizes_of((*grid, frames)), stage_window(config, stage), shifted=False)
        tokens = int(np.prod(layout.counts)) * layout.tokens
        total += config.depths[stage] * tokens * config.expand * stage_channels(config, stage) * config.d_state
    return total


def isas_here() -> dict[str, Any]:
    """The kernels of each instruction set that this machine runs, the best first."""
    from neurostorm_bids.model.scan.cpu import Compiled
    from neurostorm_bids.model.scan.cpu_library import BFLOAT16 as ROUNDED
    from neurostorm_bids.model.scan.cpu_library import ISAS

    found = {}
    for isa in (*ISAS, ROUNDED):
        try:
            found[isa] = Compiled(isa)
        except ImportError:
            continue
    return found


def with_threads(n: int, call: Call) -> Call:
    """The call on a number of threads."""

    def run() -> object:
        torch.set_num_threads(n)
        return call()

    return run


def ceilings(threads: int, exponential: Callable[[Tensor], None]) -> tuple[dict[str, Call], dict[str, float]]:
    """What the machine could do: a large product, torch's exponential and the kernels' own; and operations of each."""
    a, b, out = (torch.randn(2048, 2048) for _ in range(3))
    x, y = torch.randn(2**22), torch.empty(2**22)
    parts = [torch.randn(2**17) for _ in range(threads)]  # half a megabyte each: what a core's cache holds
    pool_of_threads = ThreadPoolExecutor(threads)

    def own() -> None:
        list(pool_of_threads.map(lambda part: [exponential(part) for _ in range(32)], parts))

    calls: dict[str, Call] = {
        "sgemm": with_threads(threads, lambda: torch.mm(a, b, out=out)),
        "torch.exp": with_threads(threads, lambda: torch.exp(x, out=y)),
        "own exp": own,
    }
    return calls, {"sgemm": 2 * 2048.0**3, "torch.exp": float(x.numel()), "own exp": 32.0 * threads * 2**17}


def clip_part(rounds: int, threads: int, **_: Any) -> tuple[list[Figure], Seconds]:
    """(a), (b), (d), (h): one clip on every path, and the machine's ceilings, in turns."""
    kernels, x = isas_here(), clip()
    best = next(iter(kernels))
    encoder = encoder_with("cpu")
    calls = {name: with_threads(threads, partial(encoder_with(name), x)) for name in ("torch-reference", "torch")}
    calls |= {isa: with_threads(threads, partial(compiled.encode, encoder, x)) for isa, compiled in kernels.items()}
    calls["one thread"] = with_threads(1, partial(kernels[best].encode, encoder, x))
    limits, operations = ceilings(threads, kernels[best].kernels.exponential)
    often = dict.fromkeys([*kernels, "one thread", *limits], 3)
    with torch.inference_mode():
        times = interleaved(calls | limits, rounds, often)
        features = {isa: compiled.encode(encoder, x) for isa, compiled in kernels.items()}
    figures = [*speed_figures(times, kernels, best, threads), *limit_figures(times, operations, best)]
    return figures + bfloat16_figures(times, features, best), times


def speed_figures(times: Seconds, kernels: Mapping[str, Any], best: str, threads: int) -> list[Figure]:
    """(a) and (d)."""
    reference = "torch-reference"
    aims: dict[str, dict[str, float]] = {best: {"at_least": 16.0}, "avx2": {"at_least": 9.0}}
    honest = median(times[reference]) / REFERENCE_S
    figures = [
        ratio("(a)", f"plain torch path over {isa} kernels, one clip", times, reference, isa, **aims.get(isa, {}))
        for isa in kernels
    ]
    one_thread = {"at_least": 1.8} if threads == 2 else {}
    return [
        *figures,
        ratio("(a)", "plain torch path over vectorised torch", times, reference, "torch"),
        Figure("(a)", f"plain torch path over the {REFERENCE_S:g} s of its like", honest, at_most=1.3),
        ratio("(d)", f"1 thread over {threads}", times, "one thread", best, **one_thread),
    ]


def limit_figures(times: Seconds, operations: Mapping[str, float], best: str) -> list[Figure]:
    """(b): time over that of the products at sgemm's rate and the exponentials at one of two rates."""
    work = {"sgemm": encoder_flops(PUBLISHED), "torch.exp": exponentials(PUBLISHED), "own exp": exponentials(PUBLISHED)}

    def limit(statistic: Callable[[list[float]], float], exponential: str) -> float:
        return sum(work[name] / operations[name] * statistic(times[name]) for name in ("sgemm", exponential))

    def rate(name: str) -> float:
        return operations[name] / median(times[name]) / 1e9

    figures = []
    for name, most in (("torch.exp", 1.0), ("own exp", 1.7)):
        medians, minima = (statistic(times[best]) / limit(statistic, name) for statistic in (median, min))
        note = f"{work['sgemm'] / 1e9:.1f} GFLOP at {rate('sgemm'):.0f} G/s, "
        note += f"{work[name] / 1e9:.3f} G exp at {rate(name):.2f} G/s"
        what = f"time over products and {name} at their rates"
        figures.append(Figure("(b)", what, medians, of_minima=minima, at_most=most, note=note))
    return figures


def bfloat16_figures(times: Seconds, features: Mapping[str, Tensor], best: str) -> list[Figure]:
    """(h): products in bfloat16 against float32, and what they cost."""
    rounded = next((isa for isa in features if "bf16" in isa), None)
    if rounded is None or rounded == best:
        return [Figure("(h)", "products in bfloat16", float("nan"), note="this machine has no AVX512_BF16")]
    cost = deviation(features[rounded], features[best])
    return [
        ratio("(h)", "float32 over bfloat16 products", times, best, rounded, at_least=1.4),
        Figure("(h)", "largest deviation of bfloat16 features", cost, "absmax"),
    ]


# --- one training step ----------------------------------------------------------------------------------------------


def training_part(rounds: int, threads: int, whole_reference: bool = False, **_: Any) -> tuple[list[Figure], Seconds]:
    """(c): a step in a process of its own for each path, the compiled one before and after the plain one."""
    scale = 1 if whole_reference else 8
    first = in_process("step", "cpu", max(rounds // 2, 1), threads, 1)
    plain = in_process("step", "torch-reference", 1, threads, scale)
    small = in_process("step", "cpu", max(rounds, 3), threads, scale)
    last = in_process("step", "cpu", max(rounds // 2, 1), threads, 1)
    scans = in_process("scans", "cpu", max(rounds // 2, 3), threads)
    times: Seconds = {
        "step": first["seconds"] + last["seconds"], "first step": [first["cold"], last["cold"]],
        "plain step": [seconds * scale for seconds in plain["seconds"]], "scan": scans["scan"],
        "unrolled scan": scans["unrolled"], "loop": scans["loop"],
    }  # fmt: skip
    how = "run once" if scale == 1 else f"run on 1/{scale} of the clip, times {scale}"
    step_s, peak = median(times["step"]), max(first["peak_mb"], last["peak_mb"])
    plain_s = median(times["plain step"])
    figures = [
        ratio("(c)", "plain torch path over compiled, training step", times, "plain step", "step", at_least=100.0),
        Figure("(c)", "plain torch path over the 149 s of its like", plain_s / REFERENCE_TRAINING_S, note=how),
        Figure("(c)", "compiled training step, batch 1", step_s, "s", min(times["step"]), at_most=1.2),
        Figure("(c)", "the first step of a process", max(times["first step"]), "s"),
        Figure("(c)", "peak memory of the process of compiled steps", peak / 1000, "GB", at_most=2.0, note="VmHWM"),
        ratio("(c)", "torch loop over tokens over compiled, stage 0 scan", times, "loop", "scan", at_least=20.0),
        ratio("(c)", "the same with its tokens taken apart once", times, "unrolled scan", "scan"),
    ]
    if scale > 1:
        both: Seconds = {"plain": plain["seconds"], "compiled": small["seconds"]}
        figures.append(
            ratio("(c)", f"the same training step on 1/{scale} of the clip, both", both, "plain", "compiled")
        )
    return figures, times


def step_worker(backend: str, rounds: int, threads: int, scale: int) -> dict[str, Any]:
    """Forward, backward and AdamW of the encoder with a linear head at batch 1; `scale` cuts the clip along x."""
    share_one_heap()  # as the program does before it trains
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x_size = PUBLISHED.img_size[0] // scale
    shape = (x_size, *PUBLISHED.img_size[1:])
    config = EncoderConfig(img_size=shape) if scale > 1 else PUBLISHED
    model = nn.ModuleList([Encoder(config, backend=backend), nn.Linear(288, 1)]).train()
    encoder, head = model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    clips = torch.randn(1, 1, *shape)

    def step() -> None:
        optimiser.zero_grad()
        F.mse_loss(head(pool(encoder(clips))), torch.ones(1, 1)).backward()
        optimiser.step()

    started = time.perf_counter()
    if backend == "torch-reference":  # minutes: no second call to warm up
        step()
        seconds = [time.perf_counter() - started]
        return {"seconds": seconds, "cold": seconds[0], "peak_mb": peak_mb()}
    step()
    cold = time.perf_counter() - started
    return {"seconds": interleaved({"step": step}, rounds)["step"], "cold": cold, "peak_mb": peak_mb()}


def unrolled(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan as a loop over tokens taken apart once, so that autograd's work is linear in the length.  # (w, l, d)"""
    step = F.softplus(delta + delta_bias)  # (w, l, d)
    state, outputs = u.new_zeros(u.shape[0], *A.shape), []  # (w, d, s)
    rows = (tensor.unbind(1) for tensor in (step, step * u, B, C))
    for step_t, drive_t, B_t, C_t in zip(*rows, strict=True):
        state = torch.exp(step_t.unsqueeze(2) * A) * state + drive_t.unsqueeze(2) * B_t.unsqueeze(1)
        outputs.append((state @ C_t.unsqueeze(2)).squeeze(2))
    return (torch.stack(outputs, 1) + u * D) * F.silu(z)


def plain_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan as a loop that indexes its tokens, as one writes it first.  # (w, l, d)"""
    step = F.softplus(delta + delta_bias)  # (w, l, d)
    state, outputs = u.new_zeros(u.shape[0], *A.shape), []  # (w, d, s)
    for t in range(u.shape[1]):
        decay, drive = torch.exp(step[:, t, :, None] * A), (step[:, t] * u[:, t])[..., None] * B[:, t, None]
        state = decay * state + drive
        outputs.append((state * C[:, t, None]).sum(-1))
    return (torch.stack(outputs, 1) + u * D) * F.silu(z)


def scan_worker(backend: str, rounds: int, threads: int) -> dict[str, Any]:
    """The scan of stage 0 alone, forward and backward: compiled, and as two torch loops, in turns."""
    torch.set_num_threads(threads)
    w, length, d, s = STAGE_0
    g = torch.Generator().manual_seed(0)
    values = {name: torch.randn(w, length, d, generator=g) for name in ("u", "delta", "z")}
    values |= {name: torch.randn(w, length, s, generator=g) for name in ("B", "C")}
    values |= {"A": -torch.arange(1.0, s + 1).repeat(d, 1), "D": torch.ones(d), "delta_bias": torch.full((d,), -4.0)}
    for value in values.values():
        value.requires_grad_()
    grad = torch.randn(w, length, d, generator=g)
    found: dict[str, tuple[Tensor, ...]] = {}

    def both_ways(name: str, scan: Callable[..., Tensor]) -> Call:
        def run() -> None:
            found[name] = torch.autograd.grad(scan(**values), list(values.values()), grad)

        return run

    scans = {"scan": load_backend(backend).scan, "unrolled": unrolled, "loop": plain_loop}
    calls = {name: both_ways(name, scan) for name, scan in scans.items()}
    times = interleaved(calls, rounds, {"scan": 3})
    for other in ("unrolled", "loop"):
        worst = max(deviation(a, b) for a, b in zip(found["scan"], found[other], strict=True))
        if worst > 1e-3:
            raise SystemExit(f"the scans differ: {worst:.1e} of the largest gradient")
    return dict(times)


# --- instructions ---------------------------------------------------------------------------------------------------


def instructions_part(**_: Any) -> tuple[list[Figure], Seconds]:
    """(g): instructions of the AVX2 kernels for a small clip on one thread, which repeat exactly.

    Valgrind computes fused multiply-adds lane by lane: the published size would take it ten minutes.
    """
    config = EncoderConfig(img_size=COUNTED)
    with tempfile.TemporaryDirectory() as folder:
        try:
            total = counted_instructions(Path(folder))
        except FileNotFoundError as error:
            return [Figure("(g)", "instructions of a clip", float("nan"), note=f"not here: {error.filename}")], {}
    note = f"AVX2, one clip of {'x'.join(map(str, COUNTED))}, one thread, callgrind"
    lanes = 8 * 2  # an AVX2 multiply-add does this many operations
    return [
        Figure("(g)", "instructions of a clip", total / 1e9, "G", note=note),
        Figure("(g)", "instructions over multiply-adds of its products", total * lanes / encoder_flops(config)),
    ], {}


def counted_instructions(folder: Path) -> float:
    """What callgrind counts of one call, in a process that has it start and stop by client requests."""
    switch = folder / "switch.c"
    switch.write_text(
        "#include <valgrind/callgrind.h>\n"
        "void start(void) { CALLGRIND_START_INSTRUMENTATION; }\nvoid stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", str(switch), "-o", str(switch.with_suffix(".so"))], check=True)
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'out'}", "--instr-atstart=no"]
    command += [sys.executable, "-m", "benchmarks.cpu", "--worker", "encode", str(switch.with_suffix(".so"))]
    # valgrind knows no AVX-512, whatever the machine has
    environment = {"NEUROSTORM_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
    return float((folder / "out").read_text().rpartition("totals:")[2].split()[0])


def encode_worker(switch: str) -> dict[str, Any]:
    """A small clip on one thread by the kernels that the environment names; `switch` has callgrind count from there."""
    torch.set_num_threads(1)
    encoder = Encoder(EncoderConfig(img_size=COUNTED), backend="cpu").eval()
    clips = torch.ones(1, 1, *COUNTED)
    instructions = ctypes.CDLL(switch)
    with torch.inference_mode():
        encoder(clips)  # packs the weights
        instructions.start()
        encoder(clips)
        instructions.stop()
    return {}


# --- the command ----------------------------------------------------------------------------------------------------

WORKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "step": step_worker, "scans": scan_worker, "encode": encode_worker,
}  # fmt: skip


def measure(parts: Sequence[str], **options: Any) -> dict[str, Any]:
    """All figures of the parts, printed as they come, and everything behind them for JSON."""
    chosen = {"clip": clip_part, "training": training_part, "instructions": instructions_part}
    figures, times, shares = [], {}, {}
    for part in parts:
        started, before = time.monotonic(), busy_elsewhere_s()
        found, seconds = chosen[part](**options)
        taken = max(busy_elsewhere_s() - before, 0.0)
        shares[part] = taken / (time.monotonic() - started) / (os.cpu_count() or 1)
        print(f"\n{part}: other programs took {shares[part]:.1%} of the processors meanwhile\n{HEADER}")
        print("\n".join(figure.line() for figure in found), flush=True)
        figures += [{**asdict(figure), "verdict": figure.verdict} for figure in found]
        times |= {f"{part}: {name}": values for name, values in seconds.items()}
    return {"machine": machine(), "threads": options["threads"], "others": shares, "figures": figures, "seconds": times}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m benchmarks cpu``; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--whole-reference", action="store_true", help="the plain training step at full size (minutes)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        name, *words = options.worker
        print(json.dumps(WORKERS[name](*[int(word) if word.isdigit() else word for word in words])))
        return 0
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(", ".join(f"{name} {value}" for name, value in machine().items()), f"{options.threads} threads", sep=", ")
    found = measure(
        options.parts or PARTS, rounds=options.rounds, threads=options.threads, whole_reference=options.whole_reference
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return int(any(figure["verdict"] == "misses" for figure in found["figures"]))


if __name__ == "__main__":
    sys.exit(main())
