"""Clips made on a device, which GPU a worker takes, and precision: all of it on the CPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from space_phantoms import centred, run_of, smooth_volume, write_bold
from test_clips import InMemorySeries, brainlike

from neurostorm_bids.cli import parse_settings
from neurostorm_bids.clips import Timing, clips_of, plan_windows, run_statistics
from neurostorm_bids.errors import DeviceUnavailable, ImageUnreadable
from neurostorm_bids.model.device import computing_in, gpu_of_worker
from neurostorm_bids.model.device_clips import DeviceClips, device_batches
from neurostorm_bids.model.inference import Model
from neurostorm_bids.model.weights import load_model
from neurostorm_bids.participant import requested_models
from neurostorm_bids.prepare import images_of
from neurostorm_bids.process import _batches, model_record
from neurostorm_bids.resume import settings_hash
from neurostorm_bids.space import Grid, choose_route, to_grid


@pytest.fixture
def mask() -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.random((7, 6, 5)) > 0.5


@pytest.mark.parametrize(("t_r_s", "stride", "anti_alias"), [(0.8, 4, False), (2.0, 3, False), (0.5, 6, True)])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("intensity", ["none", "hcp"])
def test_batches_on_a_device_are_the_clips_bit_for_bit(mask, t_r_s, stride, anti_alias, batch_size, intensity):
    data = brainlike(30)[: mask.shape[0], : mask.shape[1], : mask.shape[2]]
    mask = mask[: data.shape[0], : data.shape[1], : data.shape[2]]
    series = InMemorySeries(data, mask, t_r_s)
    timing = Timing.of(30, t_r_s, n_dummies=2, anti_alias=anti_alias)
    statistics = run_statistics(series, timing, intensity=intensity)
    windows = plan_windows(timing, clip_frames=4, stride=stride)
    clips = np.stack([clip.data for clip in clips_of(series, statistics, windows)])
    batches = list(device_batches(series, statistics, windows, device="cpu", batch_size=batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.array_equal(torch.cat(batches).numpy(), clips)


def test_raw_volumes_are_resampled_on_the_device():
    rng = np.random.default_rng(0)
    raw = rng.integers(200, 900, (12, 40)).astype(np.int16)  # volumes of 40 voxels
    weights = csr_matrix(rng.random((27, 40)) * (rng.random((27, 40)) > 0.8), dtype=np.float32)
    on_grid = np.moveaxis((weights @ raw.T.astype(np.float32)).reshape(3, 3, 3, 12), 3, 3)
    mask = rng.random((3, 3, 3)) > 0.3
    series = InMemorySeries(on_grid, mask, 0.8)
    timing = Timing.of(12, 0.8)
    statistics = run_statistics(series, timing)
    windows = plan_windows(timing, clip_frames=4, stride=4)
    clips = DeviceClips(np.flatnonzero(mask), mask.shape, statistics, windows, "cpu", resampling=weights)
    for window, clip in zip(windows.kept, clips_of(series, statistics, windows), strict=True):
        while clips.n_volumes <= clips.last_volume(window):
            clips.add(raw[clips.n_volumes])
        batch = clips.blank(1)
        clips.write(window, batch[0])
        assert np.abs(batch[0].numpy() - clip.data).max() < 1e-5


@pytest.mark.parametrize("gain", ["none", "hcp"])
@pytest.mark.parametrize(("interpolation", "by_weights"), [("linear", True), ("nearest", True), ("lanczos", False)])
def test_a_run_on_another_grid_is_resampled_on_the_device(tmp_path: Path, gain, interpolation, by_weights):
    volume = smooth_volume((20, 24, 18), low=300)
    affine = centred((20, 24, 18), (4.2, 4.1, 4.3), degrees=(4.0, -7.0, 3.0))
    image = write_bold(tmp_path, "MNI152NLin6Asym", volume, affine, t_r_s=0.8)
    grid = Grid.of((24, 28, 22), centred((24, 28, 22), (3.5, 3.5, 3.5), codes="LAS"), "MNI152NLin6Asym")
    series = to_grid(choose_route(run_of(image, t_r_s=0.8), grid, offline=True, interpolation=interpolation), grid)
    timing = Timing.of(series.n_volumes, series.t_r_s, n_dummies=1)
    statistics = run_statistics(series, timing, intensity=gain)
    windows = plan_windows(timing, clip_frames=1, stride=1)
    images = images_of(series)
    assert (images is not None) == by_weights
    found = torch.cat(list(device_batches(series, statistics, windows, device="cpu", batch_size=3, images=images)))
    clips = np.stack([clip.data for clip in clips_of(series, statistics, windows)])
    assert len(clips) > 1
    np.testing.assert_allclose(found.numpy(), clips, atol=2e-6 * np.abs(clips).max())


def test_precision_is_for_gpus_and_changes_results(tmp_path: Path):
    with pytest.raises(DeviceUnavailable, match=r"--precision bf16 is for GPUs.*cpu-bfloat16"):
        load_model("demo", device="cpu", precision="bf16")
    settings = parse_settings(["/data", "/out", "participant"])
    assert settings_hash(settings) != settings_hash(replace(settings, precision="bf16"))
    assert [
        request.precision for request in requested_models(replace(settings, model=("demo",), precision="tf32"))
    ] == ["tf32"]


def test_a_model_multiplies_in_its_precision():
    exact = load_model("demo", device="cpu")
    short = Model(exact._branches, torch.device("cpu"), backend="torch", precision="bf16")
    clip = torch.randn(1, 1, *exact.config.img_size, generator=torch.Generator().manual_seed(0))
    a, b = exact.embed(clip), short.embed(clip)
    assert b.dtype == torch.float32
    assert 1e-5 < float((a - b).abs().max() / a.abs().max()) < 3e-2
    assert (model_record(exact).precision, model_record(short).precision) == ("float32", "bfloat16")


def test_an_image_that_ends_early_is_refused_on_a_device_too(mask):
    data = brainlike(12)[:7, :6, :5]
    mask = mask[: data.shape[0], : data.shape[1], : data.shape[2]]
    whole, timing = InMemorySeries(data, mask, 0.8), Timing.of(12, 0.8)
    statistics, windows = run_statistics(whole, timing), plan_windows(timing, clip_frames=4, stride=4)
    cut = InMemorySeries(data[..., :9], mask, 0.8, 12)
    with pytest.raises(ImageUnreadable, match="ends after 9 volumes"):
        list(device_batches(cut, statistics, windows, device="cpu", batch_size=8))


def test_a_run_is_batched_where_its_models_are():
    asked = []
    prepared = SimpleNamespace(batches_on=lambda device, n: asked.append((device, n)) or iter([torch.ones(n)]))
    models = [SimpleNamespace(device="cuda:1", batch_size=size) for size in (2, 8)]
    assert len(next(iter(_batches(prepared, models)))) == 8
    assert asked == [("cuda:1", 8)]


def test_workers_take_turns_on_the_gpus():
    names = [f"ForkServerProcess-{number}" for number in range(1, 9)]
    found = [gpu_of_worker(3, name) for name in names]
    assert found == [0, 1, 2, 0, 1, 2, 0, 1]
    assert all(a != b for a, b in pairwise(found))
    assert gpu_of_worker(4, "SpawnPoolWorker-2:3") == 1
    assert gpu_of_worker(4, "MainProcess") == 0
    assert gpu_of_worker(4) == 0  # this very process is no worker, or one of one GPU
    assert gpu_of_worker(1, "ForkServerProcess-5") == 0


@pytest.mark.parametrize("text", ["auto", "cuda", "2"])
def test_the_device_of_a_worker(text: str, monkeypatch):
    from neurostorm_bids.model import weights

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(weights, "gpu_of_worker", lambda n_gpus: n_gpus - 1)
    assert weights._device(text) == torch.device("cuda", 2 if text == "2" else 3)


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(DeviceUnavailable, match=rf"--device 64: this machine has {torch.cuda.device_count()} GPUs"):
        load_model("any", device="64")


def test_precision_holds_within_its_block_only():
    product = torch.eye(3)
    with computing_in("bf16", "cpu"):
        assert (product @ product).dtype == torch.bfloat16
    with computing_in("tf32", "cpu"):
        assert torch.get_float32_matmul_precision() == "high"
        assert (product @ product).dtype == torch.float32
    with pytest.raises(RuntimeError, match="inside"), computing_in("tf32", "cpu"):
        raise RuntimeError("inside")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.is_autocast_enabled("cpu")
