"""The Triton backend against torch in double precision: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_goldens import SHIPPED, TOLERANCE, config_of, read_golden
from test_model_scan import NAMES, arguments, deviation
from torch import Tensor, nn

from neurostorm_bids.errors import BackendUnavailable
from neurostorm_bids.model import Encoder, EncoderConfig
from neurostorm_bids.model.encoder import Block
from neurostorm_bids.model.mamba import Mamba
from neurostorm_bids.model.scan import BACKENDS, Backend, load_backend, resolve_backend, selective_scan
from neurostorm_bids.model.windows import WindowLayout

triton = pytest.importorskip("triton", reason="triton is not installed")
backend = pytest.importorskip(
    "neurostorm_bids.model.scan.triton", reason="this Triton does not serve", exc_type=ImportError
)

INTERPRETED = backend.interpreted()
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"
FUSED = (
    backend.FUSED if ON_GPU else backend.Fused(backend.Launch(channels=128, unroll=1))
)  # fewer programs to interpret
LAYER = ("A_log", "D", "in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")

if INTERPRETED and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
    pytest.skip("the interpreter of this Triton does not know this numpy", allow_module_level=True)
if not INTERPRETED and not ON_GPU:
    pytest.skip("no GPU, and Triton was imported without TRITON_INTERPRET=1", allow_module_level=True)


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def scan(values: dict[str, Tensor], fused=FUSED) -> Tensor:
    """The scan of float32 copies on the device, back on the CPU."""
    given = {name: value.float().to(DEVICE) for name, value in values.items()}
    return fused.scan(*[given.pop(name) for name in NAMES[:6]], **given).cpu()


def truth(values: dict[str, Tensor]) -> Tensor:
    return selective_scan(**values, backend="torch-reference")


def gradients(values: dict[str, Tensor], fused=None) -> dict[str, Tensor]:
    """Of a weighted sum of the outputs: float32 on the device or, without kernels, float64 by autograd."""
    dtype, device = (torch.float64, "cpu") if fused is None else (torch.float32, DEVICE)
    leaves = {name: value.detach().to(device, dtype).requires_grad_() for name, value in values.items()}
    compute = load_backend("torch-reference").scan if fused is None else fused.scan
    rest = {name: leaves[name] for name in ("z", "delta_bias") if name in leaves}
    y = compute(*(leaves[name] for name in NAMES[:6]), **rest)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype, device=device).reshape(y.shape)
    found = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    return {name: grad.cpu() for name, grad in zip(leaves, found, strict=True)}


def require_same_gradients(values: dict[str, Tensor], fused=FUSED, tolerance: float = 1e-5) -> None:
    exact, found = gradients(values), gradients(values, fused)
    for name in values:
        assert deviation(found[name], exact[name]) < tolerance, name


# --- the scan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 70])
def test_the_scan_at_many_lengths(length: int):
    values = arguments(1, length, 5, 16, seed=length)
    assert deviation(scan(values), truth(values)) < 1e-6


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9, 33])
def test_gradients_at_many_lengths(length: int):
    require_same_gradients(arguments(1, length, 3, 16, seed=length))


@pytest.mark.parametrize("states", [1, 3, 24])
def test_any_number_of_states(states: int):
    values = arguments(2, 5, 3, states)
    assert deviation(scan(values), truth(values)) < 1e-6
    require_same_gradients(values)


@pytest.mark.parametrize("launch", [(8, 3, 2, 256), (16, 8, 3, 256), (64, 1, 8, 0)])
def test_sizes_of_programs_do_not_change_the_result(launch):
    # 20 channels are no multiple of 8 or 16; no scratch memory means one window at a time
    channels, unroll, chunk, scratch_mb = launch
    fused = backend.Fused(backend.Launch(channels=channels, unroll=unroll, chunk=chunk, scratch_mb=scratch_mb))
    values = arguments(2, 7, 20, 16)
    assert deviation(scan(values, fused), truth(values)) < 1e-6
    require_same_gradients(values, fused)


@pytest.mark.parametrize("step", [-12.0, -7.0, 2.0])
def test_gradients_at_small_and_large_steps(step: float):
    require_same_gradients(arguments(1, 12, 3, 16, step=step))


def test_small_steps_keep_their_digits():
    # softplus as log(1 + exp(x)) loses up to 6e-5 here
    values = arguments(1, 40, 4, 16, step=-7.0) | {"D": torch.zeros(4, dtype=torch.float64)}
    assert deviation(scan(values), truth(values)) < 1e-6


def test_huge_steps_forget_and_overflow_nothing():
    values = arguments(1, 20, 4, 16, step=1e4)
    assert deviation(scan(values), truth(values)) < 1e-5
    values = arguments(1, 20, 4, 16, step=-1e4)
    assert deviation(scan(values), truth(values)) < 1e-6


@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_spread_as_in_double_precision(name: str, bad: float):
    values = arguments(2, 10, 3, 4)
    values[name][1, 6, 0] = bad
    exact = truth(values)
    assert torch.equal(torch.isnan(scan(values)), torch.isnan(exact))
    if bad != bad:
        assert torch.isnan(exact[1, 6]).any()


def test_nan_reaches_the_gradients_of_its_window_only():
    values = arguments(2, 6, 3, 4)
    values["u"][1, 3, 0] = float("nan")
    found = gradients(values, FUSED)
    assert torch.isnan(found["delta"][1]).any()
    assert torch.isnan(found["A"][0]).any()
    assert all(torch.isfinite(found[name][0]).all() for name in ("u", "delta", "B", "C", "z"))


def test_tensors_need_not_be_contiguous():
    values = arguments(2, 6, 4, 16)
    strided = {name: value.movedim(0, -1).contiguous().movedim(-1, 0) for name, value in values.items()}
    joined = torch.cat([values["B"], torch.ones(2, 6, 3), values["C"]], dim=-1)  # as a projection hands them on
    strided |= {"B": joined[..., :16], "C": joined[..., 19:]}
    assert not strided["u"].is_contiguous()
    assert not strided["C"].is_contiguous()
    assert deviation(scan(strided), truth(values)) < 1e-6
    require_same_gradients(strided)


def test_gate_and_bias_may_be_left_out():
    values = arguments(1, 6, 3, 4)
    core = {name: values[name] for name in NAMES[:6]}
    assert deviation(scan(core), truth(core)) < 1e-6
    require_same_gradients(core)


@pytest.mark.parametrize("shape", [(0, 5, 4, 16), (2, 0, 4, 16)])
def test_nothing_to_scan(shape):
    values = {name: value.float().to(DEVICE).requires_grad_() for name, value in arguments(*shape).items()}
    y = FUSED.scan(*(values[name] for name in NAMES[:6]), z=values["z"], delta_bias=values["delta_bias"])
    assert y.shape == shape[:3]
    y.sum().backward()
    assert all(values[name].grad.abs().sum() == 0 for name in NAMES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(dtype: torch.dtype):
    values = {name: value.float() for name, value in arguments(1, 8, 3, 16).items()}
    halves = {name: value.to(dtype) for name, value in values.items() if name in ("u", "delta", "B", "C", "z")}
    on_device = {name: value.to(DEVICE) for name, value in (values | halves).items()}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in on_device.items()}
    y = FUSED.scan(*(leaves[name] for name in NAMES[:6]), z=leaves["z"], delta_bias=leaves["delta_bias"])
    rounded = values | {name: value.float() for name, value in halves.items()}
    assert y.dtype == torch.float32
    assert deviation(y.detach().cpu(), truth({name: value.double() for name, value in rounded.items()})) < 1e-6
    y.sum().backward()
    assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves.values())


def test_what_the_kernels_do_not_know_goes_to_torch():
    values = arguments(1, 4, 3, 2)
    double = {name: value.to(DEVICE) for name, value in values.items()}
    y = FUSED.scan(*(double[name] for name in NAMES[:6]), z=double["z"], delta_bias=double["delta_bias"])
    assert y.dtype == torch.float64
    assert deviation(y.cpu(), truth(values)) < 1e-13
    many = arguments(1, 4, 3, 100)
    assert deviation(scan(many), truth(many)) < 1e-5


def test_gradients_are_the_same_bits_each_time():
    values = arguments(3, 9, 5, 16)
    first, second = gradients(values, FUSED), gradients(values, FUSED)
    assert all(torch.equal(first[name], second[name]) for name in values)


# --- the Mamba layer ------------------------------------------------------------------------------------------------


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter moved, so that none is 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=g)
    return module


@pytest.fixture
def with_fused(monkeypatch):
    """Let layers that ask for "triton" take the kernels at the sizes of these tests."""
    monkeypatch.setattr(
        "neurostorm_bids.model.mamba.load_backend",
        lambda name: replace(backend.BACKEND, mixer=FUSED.mixer) if name == "triton" else load_backend(name),
    )


def test_the_golden_layer(with_fused):
    _, values, weights = read_golden(SHIPPED, "E_mamba")
    layer = Mamba(36, backend="triton").to(DEVICE)
    layer.load_state_dict(weights)
    tokens = None if ON_GPU else 48  # a causal layer's first outputs need no more than its first inputs
    for length in (256, 261) if ON_GPU else (261,):
        x, y = (torch.from_numpy(values[f"{name}_{length}"][:, :tokens]) for name in "xy")
        n = len(x) if ON_GPU else 1
        found = layer(x[:n].to(DEVICE)).cpu()
        assert (found - y[:n]).abs().max() < TOLERANCE


def layer_gradients(layer: Mamba, x: Tensor) -> dict[str, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    found = torch.autograd.grad((y * weights).sum(), [leaf, *parameters])
    return {"y": y.detach().cpu()} | {name: grad.cpu() for name, grad in zip(("x", *names), found, strict=True)}


@pytest.mark.parametrize("sizes", [(20, 5, 4, 9), (7, 16, 2, 6), (33, 3, 3, 2)])
def test_gradients_of_the_layer(sizes, with_fused):
    c, states, taps, length = sizes
    layer = perturbed(Mamba(c, d_state=states, d_conv=taps))
    x = torch.randn(2, length, c, generator=torch.Generator().manual_seed(1))
    exact = Mamba(c, d_state=states, d_conv=taps, backend="torch-reference").double()
    exact.load_state_dict(layer.state_dict())
    layer.backend = "triton"
    found, exact = layer_gradients(layer.to(DEVICE), x.to(DEVICE)), layer_gradients(exact, x.double())
    for name in exact:
        assert deviation(found[name], exact[name]) < 1e-5, name


def test_the_layer_keeps_little_for_its_backward(with_fused):
    layer, x = Mamba(12, backend="triton").to(DEVICE), torch.randn(2, 4, 12, device=DEVICE)
    sizes: list[int] = []
    parameters = {parameter.data_ptr() for parameter in layer.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters and tensor.dim() == 3 and tensor.shape[:2] == (2, 4):
            sizes.append(tensor.shape[2])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert sorted(sizes) == [48, 48]  # what enters the kernels, and a row of B, C and step; the rest is computed again


@pytest.mark.parametrize("change", ["double", "one tap"])
def test_a_layer_that_the_kernels_do_not_know_goes_to_torch(change: str, with_fused):
    layer = perturbed(Mamba(6, d_state=3, d_conv=1 if change == "one tap" else 4))
    x = torch.randn(1, 5, 6, device=DEVICE)
    if change == "double":
        layer, x = layer.double(), x.double()
    layer = layer.to(DEVICE)
    expected = layer_gradients(layer, x)
    layer.backend = "triton"
    found = layer_gradients(layer, x)
    assert all(deviation(found[name], expected[name]) < 1e-5 for name in expected)


def test_a_layer_in_half_precision(with_fused):
    layer = perturbed(Mamba(12)).to(DEVICE)
    x = torch.randn(1, 8, 12, device=DEVICE)
    exact = layer(x)
    layer.backend = "triton"
    # the interpreter multiplies no bfloat16 matrices
    with torch.autocast(DEVICE, torch.float16):
        found = layer(x)
    assert found.dtype == torch.float16
    assert deviation(found.detach(), exact.detach()) < 5e-3
    found.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_a_backward_under_autocast_computes_in_the_type_of_its_forward():
    layer = perturbed(Mamba(8, d_state=4)).to(DEVICE)
    xz = torch.randn(1, 5, 32, device=DEVICE)
    expected = torch.autograd.grad(FUSED.mixer(layer, xz).sum(), layer.dt_proj.weight)[0]
    y = FUSED.mixer(layer, xz).sum()
    with torch.autocast(DEVICE, torch.float16):
        found = torch.autograd.grad(y, layer.dt_proj.weight)[0]
    assert torch.equal(found, expected)


# --- inference of blocks and encoders -------------------------------------------------------------------------------

TINY = EncoderConfig(
    img_size=(6, 6, 4, 3),
    in_chans=2,
    embed_dim=6,
    patch_size=(2, 2, 2, 1),
    depths=(2, 1),
    c_multiplier=2,
    window_size=(2, 2, 2, 2),
    first_window_size=(2, 2, 2, 2),
    last_layer_full_MSA=True,
    d_state=4,
)


@pytest.mark.parametrize(
    ("grid", "window", "shifted", "wrap"),
    [
        ((4, 4, 4, 4), (2, 2, 2, 2), True, True),
        ((5, 3, 4, 7), (4, 2, 4, 3), True, True),
        ((5, 3, 4, 7), (4, 2, 4, 3), True, False),
        ((3, 2, 5, 1), (4, 4, 2, 4), False, True),
    ],
)
@pytest.mark.parametrize("prompt_len", [0, 3])
def test_rows_go_to_their_windows_and_back(grid, window, shifted, wrap, prompt_len):
    from neurostorm_bids.model.scan.fused.blocks import BlockWeights, FusedBlocks

    block = perturbed(Block(replace(TINY, prompt_len=prompt_len), 6, window, shifted=shifted)).to(DEVICE)
    layout = WindowLayout.fitted(grid, window, shifted=shifted, wrap=wrap)
    x = torch.randn(2, *grid, 6, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    fused, weights = FusedBlocks(backend.Launch()), BlockWeights(block, torch.float32)
    windows = fused._norm_windows(x, layout, weights)
    expected = layout.split(block.norm1(x))
    if prompt_len:
        expected = torch.cat([block.prompt.expand(len(expected), -1, -1), expected], dim=1)
    assert (windows - expected).abs().max() < 1e-6
    tokens = x.clone()
    normed = fused._join_norm(tokens, windows, layout, weights)
    expected = x + layout.join(windows[:, prompt_len:])
    assert torch.equal(tokens, expected)
    assert (normed - block.norm2(expected)).abs().max() < 1e-5


@pytest.mark.parametrize("products", ["highest", "high"])
@torch.no_grad()
def test_a_block_in_inference(products: str):
    # padding along t, a shift, and prompts; "high" takes the fused MLP, which the interpreter computes exactly
    block = perturbed(Block(replace(TINY, prompt_len=2), 6, (2, 2, 2, 2), shifted=True)).eval().to(DEVICE)
    x = torch.randn(1, 3, 2, 2, 3, 6, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    expected, before = block.compute(x), x.clone()
    torch.set_float32_matmul_precision(products)
    assert deviation(FUSED.block(block, x), expected) < (2e-3 if ON_GPU and products == "high" else 1e-5)
    assert torch.equal(x, before)


@torch.no_grad()
def test_weights_are_read_again_when_they_change():
    block = perturbed(Block(TINY, 6, (2, 2, 1, 1), shifted=False)).eval().to(DEVICE)
    x = torch.randn(1, 2, 2, 1, 1, 6, device=DEVICE)
    first = FUSED.block(block, x)
    block.mamba.out_proj.weight.mul_(2)
    second = FUSED.block(block, x)
    assert deviation(second, first) > 1e-3
    assert deviation(second, block.compute(x)) < 1e-5


@pytest.mark.parametrize("frames", [3, 2])
@torch.no_grad()
def test_the_encoder_in_inference(frames: int):
    # two channels, odd grids at the merge, and clips shorter than the model's
    encoder = perturbed(Encoder(TINY, backend="torch")).eval().to(DEVICE)
    clips = torch.randn(1, 2, 6, 6, 4, frames, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    assert deviation(FUSED.encode(encoder, clips), encoder(clips)) < 1e-5


@torch.no_grad()
def test_the_encoder_in_half_precision():
    encoder = perturbed(Encoder(replace(TINY, img_size=(4, 4, 4, 2)), backend="torch")).eval().to(DEVICE)
    clips = torch.randn(1, 2, 4, 4, 4, 2, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    with torch.autocast(DEVICE, torch.float16):
        found = FUSED.encode(encoder, clips)
    assert found.dtype == torch.float32
    assert 0 < deviation(found, encoder(clips)) < 1e-2


@torch.no_grad()
def test_golden_blocks():
    description, golden, weights = read_golden(SHIPPED, "A1_win")
    encoder = Encoder(config_of(description["config"]), backend="torch").eval()
    encoder.load_state_dict(weights)
    tokens = torch.from_numpy(golden["patch_embed"]).movedim(1, -1).to(DEVICE)
    for number, (embed, stage) in enumerate(zip(encoder.to(DEVICE).pos_embeds, encoder.layers, strict=True)):
        tokens = embed(tokens)
        for place, block in enumerate(stage.blocks):
            tokens = FUSED.block(block, tokens)
            if (name := f"L{number}B{place}_out") in golden:
                assert (tokens.cpu() - torch.from_numpy(golden[name])).abs().max() < TOLERANCE, name
        if stage.downsample is not None:
            tokens = stage.downsample(tokens)
    assert (tokens.movedim(-1, 1).cpu() - torch.from_numpy(golden["output"])).abs().max() < TOLERANCE


@pytest.mark.shared
@pytest.mark.skipif(not ON_GPU, reason="too slow to interpret")
@pytest.mark.parametrize("case", ["A1_win", "A2_pad_win", "A3_4stage_full", "B1_prompt", "B2_prompt_pad_full"])
@torch.no_grad()
def test_golden_encoders(shared: Path, case: str):
    description, golden, weights = read_golden(shared / "golden", case)
    encoder = Encoder(config_of(description["config"]), backend="torch").eval().to(DEVICE)
    encoder.load_state_dict(weights)
    found = FUSED.encode(encoder, torch.from_numpy(golden["input"]).to(DEVICE))
    assert (found.cpu() - torch.from_numpy(golden["output"])).abs().max() < TOLERANCE


@torch.no_grad()
def test_an_encoder_in_double_precision_goes_to_torch():
    config = replace(TINY, img_size=(2, 2, 2, 1), depths=(1,))
    encoder = Encoder(config, backend="torch").eval().double().to(DEVICE)
    clips = torch.randn(1, 2, 2, 2, 2, 1, dtype=torch.float64, device=DEVICE)
    assert torch.equal(FUSED.encode(encoder, clips), encoder(clips))


# --- the seam -------------------------------------------------------------------------------------------------------


def test_the_backend_is_offered_on_its_devices():
    assert "triton" in BACKENDS
    loaded = load_backend("triton")
    assert isinstance(loaded, Backend)
    assert "cuda" in loaded.devices
    assert resolve_backend("triton", "cuda:1") == "triton"
    if INTERPRETED:
        assert resolve_backend("triton", "cpu") == "triton"
    else:
        with pytest.raises(BackendUnavailable, match="'triton' does not run on cpu"):
            resolve_backend("triton", "cpu")


def test_an_encoder_takes_the_backend_in_inference_and_in_training():
    config = replace(TINY, img_size=(4, 4, 2, 2), depths=(1, 1), prompt_len=1)
    encoder = perturbed(Encoder(config, backend="torch")).to(DEVICE)
    clips = torch.randn(2, 2, 4, 4, 2, 2, generator=torch.Generator().manual_seed(6)).to(DEVICE)

    def results() -> list[Tensor]:
        loss = encoder.train()(clips).square().mean()
        grads = torch.autograd.grad(loss, list(encoder.parameters()))
        with torch.no_grad():
            return [encoder.eval()(clips), loss.detach(), *grads]

    expected = results()
    encoder.use_backend("triton")
    for found, exact in zip(results(), expected, strict=True):
        assert deviation(found, exact) < 1e-5


@pytest.mark.parametrize(("version", "has_compiler"), [("3.3.1", True), ("3.6.0", False)])
def test_a_triton_that_cannot_serve_says_why(version: str, has_compiler: bool):
    with pytest.raises(ImportError, match=r"3\.4 is needed" if has_compiler else "C compiler: install gcc"):
        backend.require_usable(version, has_compiler=has_compiler)


@pytest.mark.parametrize(("version", "has_compiler"), [("3.4.0", True), ("3.8.0", False), ("3.10.0+git1", False)])
def test_a_triton_that_serves(version: str, has_compiler: bool):
    backend.require_usable(version, has_compiler=has_compiler)


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path):
    # the interpreter takes what the compiler refuses
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).parent / "compile_triton.py"
    done = subprocess.run([sys.executable, str(script), "90"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    from neurostorm_bids.model.scan.fused import block_kernels, kernels

    kind = type(kernels.scan_forward)
    named = vars(kernels) | vars(block_kernels)
    assert compiled == {name for name, value in named.items() if isinstance(value, kind) and not name.startswith("_")}
