"""Blocks and encoders as a whole by the compiled kernels: what their modules compute, the same bits every time."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_goldens import SHIPPED, config_of, read_golden
from torch import Tensor, nn

from neurostorm_bids.model.config import EncoderConfig
from neurostorm_bids.model.encoder import Block, Encoder
from neurostorm_bids.model.scan import Backend, describe_backends, load_backend

cpu = pytest.importorskip("neurostorm_bids.model.scan.cpu", reason="the kernel is not compiled here")
library = pytest.importorskip("neurostorm_bids.model.scan.cpu_library")

GOLDENS = ("A1_full", "A1_win", "A2_pad_full", "A2_pad_win", "A3_4stage_full", "A3_4stage_win")
GOLDENS += ("B1_prompt", "B2_prompt_pad_full")
SMALL = EncoderConfig(
    img_size=(18, 24, 12, 8),
    embed_dim=12,
    patch_size=(3, 3, 3, 1),
    depths=(2, 2, 1),
    window_size=(4, 4, 4, 4),
    first_window_size=(2, 3, 2, 4),
)


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


@torch.no_grad()
def disturbed(module: nn.Module, seed: int = 0, by: float = 0.05) -> nn.Module:
    """Weights that are all non-trivial, norms, skip and embeddings among them."""
    g = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(by * torch.randn(parameter.shape, generator=g))
    return module.eval()


def encoder_of(config: EncoderConfig, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return disturbed(Encoder(config, backend="torch"), seed)


def clips_for(config: EncoderConfig, n: int, frames: int | None = None, seed: int = 0) -> Tensor:
    *space, most = config.img_size
    return torch.randn(n, config.in_chans, *space, frames or most, generator=torch.Generator().manual_seed(seed))


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def in_double(module: nn.Module, x: Tensor) -> Tensor:
    """What the modules compute one by one in float64."""
    return copy.deepcopy(module).double().compute(x.double())


def check_golden(folder: Path, name: str, isa: str) -> None:
    description, golden, weights = read_golden(folder, name)
    encoder = Encoder(config_of(description["config"]), backend="torch").eval()
    encoder.load_state_dict(weights, strict=True)
    if "input" in golden:
        output = compiled(isa).encode(encoder, torch.from_numpy(golden["input"]))
    else:  # a case that was cut to start behind the patch embedding
        output = torch.from_numpy(golden["patch_embed"]).movedim(1, -1)
        for embed, stage in zip(encoder.pos_embeds, encoder.layers, strict=True):
            output = embed(output)
            for block in stage.blocks:
                output = compiled(isa).block(block, output)
            output = output if stage.downsample is None else stage.downsample(output)
        output = output.movedim(-1, 1)
    assert deviation(output, torch.from_numpy(golden["output"])) < 3e-6


@pytest.mark.shared
@every_isa
@pytest.mark.parametrize("name", GOLDENS)
def test_golden_features(shared: Path, name: str, isa: str):
    check_golden(shared / "golden", name, isa)


@every_isa
@pytest.mark.parametrize("name", ["A1_win", "B2_prompt_pad_full"])
def test_golden_features_shipped(name: str, isa: str):
    check_golden(SHIPPED, name, isa)


VARIANTS = {
    "odd": SMALL,
    "channels": replace(SMALL, in_chans=2, patch_size=(6, 3, 2, 2)),
    "prompts": replace(SMALL, prompt_len=7),
    "walls": replace(SMALL, wrap=False),
    "windowed": replace(SMALL, last_layer_full_MSA=False, first_window_size=(4, 4, 4, 4)),
    "states": replace(SMALL, d_state=8, d_conv=3, expand=3, mlp_ratio=2.5),
    "triples": replace(SMALL, c_multiplier=3, embed_dim=7),
}


@every_isa
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("frames", [8, 6])
def test_encoder_equals_its_modules(variant: str, frames: int, isa: str):
    config = VARIANTS[variant]
    encoder, clips = encoder_of(config), clips_for(config, 2, frames)
    assert deviation(compiled(isa).encode(encoder, clips), in_double(encoder, clips)) < 3e-6


@every_isa
@settings(deadline=None, max_examples=25)
@given(
    c=st.sampled_from([3, 8, 12, 16, 20, 36, 40]),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 9)),
    window=st.tuples(*[st.integers(1, 4)] * 4),
    shifted=st.booleans(),
    wrap=st.booleans(),
    prompt=st.sampled_from([0, 0, 1, 5, 50]),
    n=st.integers(1, 3),
)
def test_block_equals_its_modules(isa, c, grid, window, shifted, wrap, prompt, n):
    block = disturbed(Block(EncoderConfig(embed_dim=c, prompt_len=prompt, wrap=wrap), c, window, shifted=shifted))
    x = torch.randn(n, *grid, c, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    assert deviation(compiled(isa).block(block, x), in_double(block, x)) < 3e-6
    assert torch.equal(x, before)


@every_isa
@pytest.mark.parametrize("variant", ["odd", "prompts", "channels"])
def test_features_do_not_depend_on_threads_or_batch(variant: str, isa: str):
    config = VARIANTS[variant]
    encoder, clips = encoder_of(config), clips_for(config, 5)
    found = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found.append(compiled(isa).encode(encoder, clips))
        found.append(torch.cat([compiled(isa).encode(encoder, clips[i : i + 1]) for i in range(5)]))
        found.append(torch.cat([compiled(isa).encode(encoder, clips[:2]), compiled(isa).encode(encoder, clips[2:])]))
    assert all(torch.equal(other, found[0]) for other in found[1:])


needs_bfloat16 = pytest.mark.skipif(not runs_here(library.BFLOAT16), reason="this machine has no AVX512_BF16")


@needs_bfloat16
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_products_cost_the_third_digit(variant: str):
    encoder, clips = encoder_of(VARIANTS[variant]), clips_for(VARIANTS[variant], 2)
    exact = in_double(encoder, clips)
    encoder.use_backend("cpu-bfloat16")
    with torch.no_grad():
        features = encoder(clips)
        torch.set_num_threads(3)
        assert torch.equal(encoder(clips[1:]), features[1:])
    assert 1e-5 < deviation(features, exact) < 2e-2


@needs_bfloat16
@pytest.mark.parametrize("c", [7, 12, 33])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_voxel_spreads_as_far_beside_bfloat16_products(bad: float, c: int):
    block = disturbed(Block(replace(SMALL, embed_dim=c, prompt_len=3), c, (2, 2, 2, 4), shifted=True))
    # windows do not divide the first axis: padding is an operand too
    x = torch.randn(1, 5, 4, 4, 8, c, generator=torch.Generator().manual_seed(c))
    x[0, 1, 2, 3, 4, 5] = bad
    y, expected = compiled(library.BFLOAT16).block(block, x), in_double(block, x)
    assert torch.equal(torch.isnan(y), torch.isnan(expected))
    assert torch.isnan(y).any() and not torch.isnan(y).all()
    rest = torch.isfinite(expected)
    assert deviation(y[rest], expected[rest]) < 2e-2


def test_instruction_sets_agree_with_each_other_and_with_torch():
    encoder, clips = encoder_of(SMALL), clips_for(SMALL, 2)
    with torch.no_grad():
        others = [encoder(clips), *(compiled(isa).encode(encoder, clips) for isa in ISAS)]
    assert all(deviation(other, others[0]) < 1e-5 for other in others[1:])


@every_isa
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_voxel_spreads_as_in_double_precision(isa: str, bad: float):
    block = disturbed(Block(replace(SMALL, embed_dim=12), 12, (2, 2, 2, 4), shifted=True))
    x = torch.randn(1, 4, 4, 4, 8, 12)
    x[0, 1, 2, 3, 4, 5] = bad
    y, expected = compiled(isa).block(block, x), in_double(block, x)
    assert torch.equal(torch.isnan(y), torch.isnan(expected))
    assert torch.isnan(y).any() and not torch.isnan(y).all()
    rest = torch.isfinite(expected)
    assert deviation(y[rest], expected[rest]) < 3e-6


@every_isa
def test_clips_need_not_be_contiguous(isa: str):
    encoder, clips = encoder_of(SMALL), clips_for(SMALL, 2)
    strided = clips.movedim(-1, 0).contiguous().movedim(0, -1)
    assert not strided.is_contiguous()
    assert torch.equal(compiled(isa).encode(encoder, strided), compiled(isa).encode(encoder, clips))


@every_isa
def test_features_of_a_clip_outlive_the_next(isa: str):
    """Tokens between the kernels lie where those of the clip before lay; what the caller has got does not."""
    last_of_one_voxel = replace(SMALL, img_size=(12, 12, 12, 8), depths=(1, 1, 1), patch_size=(3, 3, 3, 1))
    for config in (SMALL, last_of_one_voxel):
        encoder, clips = encoder_of(config), clips_for(config, 3)
        first, second = (compiled(isa).encode(encoder, part) for part in (clips[:1], clips[1:]))
        assert torch.equal(torch.cat([first, second]), compiled(isa).encode(encoder, clips))


@every_isa
def test_threads_that_share_an_encoder_do_not_meet(isa: str):
    encoder, clips = encoder_of(SMALL), clips_for(SMALL, 8)
    expected = compiled(isa).encode(encoder, clips)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda clip: compiled(isa).encode(encoder, clip), [*clips.split(1)] * 5))
    assert torch.equal(torch.cat(found), expected.repeat(5, *[1] * (expected.ndim - 1)))


@every_isa
def test_no_clips_give_no_features(isa: str):
    encoder = encoder_of(SMALL)
    some, none = compiled(isa).encode(encoder, clips_for(SMALL, 1)), compiled(isa).encode(encoder, clips_for(SMALL, 0))
    assert none.shape == (0, *some.shape[1:])


def write_in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


def write_behind_the_counter(weight: nn.Parameter) -> None:
    weight.data.mul_(1.5)


def move(weight: nn.Parameter) -> None:
    weight.data = weight.data * 1.5


@every_isa
@pytest.mark.parametrize("change", [write_in_place, write_behind_the_counter, move])
def test_changed_weights_are_packed_anew(isa: str, change):
    encoder, clips = encoder_of(SMALL), clips_for(SMALL, 1)
    backend = compiled(isa)
    first = backend.encode(encoder, clips)
    for weight in (encoder.layers[1].blocks[0].mamba.A_log, encoder.pos_embeds[0].time_embed):
        change(weight)
        assert deviation(backend.encode(encoder, clips), in_double(encoder, clips)) < 3e-6
    assert deviation(backend.encode(encoder, clips), first) > 1e-4
    encoder.load_state_dict(encoder_of(SMALL).state_dict())
    assert torch.equal(backend.encode(encoder, clips), first)


def test_weights_made_in_inference_mode_serve():
    with torch.inference_mode():
        encoder, clips = encoder_of(SMALL), clips_for(SMALL, 1)
        assert deviation(compiled(ISAS[0]).encode(encoder, clips), in_double(encoder, clips)) < 3e-6


@every_isa
def test_double_precision_is_left_to_the_modules(isa: str):
    encoder, clips = encoder_of(SMALL).double(), clips_for(SMALL, 1).double()
    with torch.no_grad():
        assert deviation(compiled(isa).encode(encoder, clips), encoder(clips)) < 1e-13
        mixed = encoder_of(SMALL)
        mixed.layers[0].blocks[0].double()
        block, x = mixed.layers[0].blocks[0], torch.randn(1, 4, 4, 4, 4, 12)
        with pytest.raises(RuntimeError, match="dtype"):
            compiled(isa).block(block, x)  # handed to the modules, which refuse it


def test_used_encoders_can_be_copied_and_pickled():
    encoder, clips = encoder_of(SMALL).use_backend("cpu"), clips_for(SMALL, 1)
    with torch.no_grad():
        first = encoder(clips)
        assert torch.equal(copy.deepcopy(encoder)(clips), first)
        assert torch.equal(pickle.loads(pickle.dumps(encoder))(clips), first)


def test_the_encoder_takes_the_whole_path_in_inference_only(monkeypatch):
    encoder, clips = encoder_of(SMALL).use_backend("cpu"), clips_for(SMALL, 1)
    taken = []
    watched = replace_encode(lambda *a: taken.append(1) or load_backend("cpu").encode(*a))
    monkeypatch.setattr("neurostorm_bids.model.encoder.load_backend", lambda name: watched)
    encoder(clips).sum().backward()
    encoder.train()
    with torch.no_grad():
        encoder(clips)
    assert not taken
    encoder.eval()
    with torch.no_grad():
        encoder(clips)
    assert taken


def replace_encode(encode) -> Backend:
    return Backend("cpu", load_backend("cpu").scan, None, encode)


@every_isa
def test_gradients_of_the_whole_model_equal_autograd_in_single_precision(isa: str):
    config = VARIANTS["prompts"]
    encoder, clips = encoder_of(config), clips_for(config, 1).requires_grad_()
    found = {}
    for name, scan in (("torch", load_backend("torch-reference").scan), ("cpu", compiled(isa).scan)):
        encoder.zero_grad()
        clips.grad = None
        with scanning_by(scan):
            features = encoder(clips)
        (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape)).sum().backward()
        found[name] = [clips.grad, *(parameter.grad for parameter in encoder.parameters())]
    assert all(deviation(a, b) < 1e-4 for a, b in zip(found["cpu"], found["torch"], strict=True))


def scanning_by(scan):
    """Every layer's scan computed by another function."""
    patch = pytest.MonkeyPatch.context()

    class Patched:
        def __enter__(self):
            patch.__enter__().setattr(
                "neurostorm_bids.model.mamba.selective_scan", lambda *a, backend, **named: scan(*a, **named)
            )

        def __exit__(self, *error):
            return patch.__exit__(*error)

    return Patched()


# --- processes ------------------------------------------------------------------------------------------------------


def features_in_child(queue, encoder: Encoder, clips: Tensor) -> None:
    torch.set_num_threads(2)
    queue.put(compiled(ISAS[0]).encode(encoder, clips).numpy())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_process_computes_after_its_parent_did(start: str):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {start}")
    encoder, clips = encoder_of(SMALL), clips_for(SMALL, 1)
    torch.set_num_threads(2)
    here = compiled(ISAS[0]).encode(encoder, clips)  # starts the team of threads
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    child = context.Process(target=features_in_child, args=(queue, encoder, clips), daemon=True)
    child.start()
    try:
        there = torch.from_numpy(queue.get(timeout=60))
    finally:
        child.kill()
    assert torch.equal(here, there)


def say(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_environment_names_the_instruction_set():
    code = "from neurostorm_bids.model.scan import describe_backends as d; print(d()[1])"
    assert say(code, NEUROSTORM_ISA=ISAS[-1]) == f"scan backend cpu: compiled kernels, {ISAS[-1]}"


def test_an_instruction_set_that_is_not_there_leaves_the_work_to_torch():
    code = "from neurostorm_bids.model.scan import resolve_backend as r; print(r('auto', 'cpu'))"
    assert say(code, NEUROSTORM_ISA="avx1024") == "torch"


def test_the_best_instruction_set_is_taken():
    assert library.Kernels().isa == ISAS[0]
    assert any(ISAS[0] in line for line in describe_backends())
