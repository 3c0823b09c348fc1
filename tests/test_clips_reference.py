"""``--preprocessing reference`` against what the published code computes, value for value."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from neurostorm_bids.clips import plan_windows
from neurostorm_bids.clips import reference as reference_module
from neurostorm_bids.clips.reference import loaded_clip, reference_run
from neurostorm_bids.clips.torch_sum import TorchMean
from neurostorm_bids.errors import ConstantSeries, MaskUnusable, NonFiniteVoxels, OutputNotWritable, TooFewFrames

SHIPPED = Path(__file__).parent / "data" / "golden_preprocess"
CASES = ["G1_nomask_3mm", "G2_mask_aniso", "G3_crop", "G4_downT"]


def golden_run(folder: Path, case: str, **options):
    mask = folder / f"{case}_mask.nii.gz"
    return reference_run(folder / f"{case}.nii.gz", mask if mask.exists() else None, **options)


def write(path: Path, data: np.ndarray, zooms: tuple[float, ...]) -> Path:
    image = nib.Nifti1Image(data, np.diag([*zooms[:3], 1]))
    image.header.set_zooms(zooms[: data.ndim])
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


# --- golden values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[:3])
def test_shipped_golden_runs_are_equal(case: str):
    expected, frames = json.loads((SHIPPED / f"{case}.json").read_text()), np.load(SHIPPED / f"{case}.npz")
    run = golden_run(SHIPPED, case)
    found = np.stack(list(run.frames()), axis=-1)
    assert np.array_equal(found, frames["frames_min"])
    assert (run.statistics.mean, run.statistics.std) == (expected["mean"], expected["std"])
    assert run.scale == expected["scale"]
    assert loaded_clip(np.moveaxis(found, -1, 0)[:4], run.scale)[0, 0, 0, 0] == np.float32(expected["pad_value"])


@pytest.mark.parametrize("variant", ["min", "zero"])
@pytest.mark.parametrize("case", CASES)
def test_golden_runs_are_equal_with_frames_padding_and_resizing(shared: Path, case: str, variant: str):
    arrays = np.load(shared / "golden" / f"{case}.npz")
    figures = json.loads((shared / "golden" / f"{case}.json").read_text())["variants"][variant]
    run = golden_run(shared / "golden", case, background={"min": "minimum", "zero": "zero"}[variant])
    found = np.stack(list(run.frames()))
    assert np.array_equal(found, arrays[f"frames_{variant}"])
    assert run.timing.n_frames == arrays["num_frames"]
    assert run.scale == arrays[f"scale_{variant}"] == figures["scale"]
    assert (run.statistics.mean, run.statistics.std) == (figures["mean"], figures["std"])
    padded = loaded_clip(found[:4], run.scale)
    assert [1, *padded.shape] == figures["padded_shape"]
    assert np.array_equal(padded[48, :, :, 0], arrays[f"padded_centre_{variant}"])
    assert np.array_equal(padded[:, 48, :, 1], arrays[f"padded_sagittal_{variant}"])
    corner = np.array(figures["pad_offset"])
    assert np.array_equal(padded[tuple(corner)], (found[:4, 0, 0, 0] * np.float32(run.scale)).astype(np.float32))
    resized = loaded_clip(found[:4], run.scale, (48, 40, 56))
    assert np.array_equal(resized[..., :2], arrays[f"resized_48_40_56_{variant}"])


# --- the whole computation in memory, by torch ------------------------------------------------------------------


def torch_sum(values: torch.Tensor) -> float:
    """Sum as one of two threads adds it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return np.float32(values.sum().item())
    finally:
        torch.set_num_threads(threads)


def two_thread_mean(values: np.ndarray) -> np.float32:
    tensor, n = torch.from_numpy(values), len(values)
    half = -(-n // 2) if n > 32768 else n
    return (torch_sum(tensor[:half]) + torch_sum(tensor[half:])) / np.float32(n)


def in_memory(data: np.ndarray, zooms, mask: np.ndarray | None):
    """The published preprocessing of a small array: int8 frames (t, x, y, z) and their scale."""
    zooms = np.asarray(zooms, np.float32)
    size = [
        int(np.rint(np.float32(n) * (zoom / np.float32(2)))) for n, zoom in zip(data.shape[:3], zooms[:3], strict=True)
    ]
    volumes = torch.from_numpy(np.moveaxis(data, -1, 0).astype(np.float32))[:, None]
    volumes = functional.interpolate(volumes, size=size, mode="trilinear", align_corners=False)[:, 0]
    n_frames = max(1, int(np.rint(np.float32(data.shape[3]) * (zooms[3] / np.float32(0.8)))))
    rows = volumes.permute(1, 2, 3, 0).reshape(1, -1, data.shape[3])
    frames = functional.interpolate(rows, size=n_frames, mode="linear", align_corners=False).reshape(*size, n_frames)
    crop = tuple(slice(max(n - 96, 0) // 2, max(n - 96, 0) // 2 + 96) for n in size)
    frames = frames.numpy()[crop].copy()
    background = frames == 0
    if mask is not None:
        small = functional.interpolate(
            torch.from_numpy(mask.astype(np.float32))[None, None], size=size, mode="trilinear", align_corners=False
        )
        background = np.broadcast_to(small.numpy()[0, 0][crop][..., None] == 0, frames.shape)
    frames[background | (frames < 0)] = 0
    inside = frames[~background]
    mean, std = two_thread_mean(inside), np.float32(inside.std(ddof=1, dtype=np.float64))
    z = (frames - mean) / std
    z[background] = z[~background].min()
    scale = float(np.abs(z).max()) / 127
    return np.moveaxis(np.rint(z / np.float32(scale)).astype(np.int8), -1, 0), scale


@given(n_values=st.integers(1, 200_000), cuts=st.lists(st.integers(1, 60_000), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_the_mean_is_torchs_to_the_last_bit_however_it_is_fed(n_values: int, cuts: list[int]):
    values = np.random.default_rng(n_values).gamma(3, 300, n_values).astype(np.float32)
    mean, start = TorchMean(n_values), 0
    while start < n_values:
        for cut in cuts:
            mean.feed(values[start : start + cut])
            start += cut
    assert mean.result() == two_thread_mean(values)


@given(
    shape=st.tuples(*[st.integers(4, 26)] * 3),
    n_volumes=st.integers(2, 9),
    zooms=st.tuples(*[st.sampled_from([1.5, 2.0, 2.2, 3.0, 3.5, 4.0])] * 3),
    t_r_s=st.sampled_from([0.4, 0.72, 0.8, 1.1, 2.0, 2.2]),
    stored=st.sampled_from([np.int16, np.float32, np.float64, np.uint8]),
    with_mask=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_any_run_equals_the_computation_in_memory(
    tmp_path_factory, shape, n_volumes, zooms, t_r_s, stored, with_mask, seed
):
    rng = np.random.default_rng(seed)
    inside = rng.random(shape) < 0.6
    inside.flat[: inside.size // 2] = True
    data = rng.gamma(4, 25, (*shape, 1)) + rng.normal(0, 3, (*shape, n_volumes))
    if stored != np.uint8:
        data[rng.random(data.shape) < 0.01] *= -0.2
    data = (data * inside[..., None]).clip(-200, 250).astype(stored)
    folder = tmp_path_factory.mktemp("run")
    bold = write(folder / "bold.nii.gz", data, (*zooms, t_r_s))
    mask = write(folder / "mask.nii.gz", inside.astype(np.uint8), zooms) if with_mask else None
    run = reference_run(bold, mask)
    frames, scale = in_memory(data, (*zooms, t_r_s), inside if with_mask else None)
    assert run.scale == scale
    assert np.array_equal(np.stack(list(run.frames())), frames)


@pytest.mark.parametrize("with_mask", [True, False])
def test_the_figures_of_a_run_are_numpys(tmp_path, monkeypatch, with_mask: bool):
    """On the model's own spacing and time nothing is interpolated, so that what is counted is the file's voxels."""
    monkeypatch.setattr(reference_module, "BLOCK_BYTES", 4 * 9 * 1000)  # several blocks of a thousand voxels
    rng = np.random.default_rng(4)
    inside = rng.random((20, 18, 16)) < 0.6
    data = (rng.gamma(4, 25, (*inside.shape, 1)) + rng.normal(0, 3, (*inside.shape, 9))).astype(np.float32)
    data[rng.random(data.shape) < 0.01] *= -0.2
    data *= inside[..., None]
    bold = write(tmp_path / "bold.nii.gz", data, (2, 2, 2, 0.8))
    mask = write(tmp_path / "mask.nii.gz", inside.astype(np.uint8), (2, 2, 2)) if with_mask else None
    found = reference_run(bold, mask).statistics
    values = np.maximum(data[inside], 0).astype(float)
    assert (found.n_foreground, found.n_negative) == (inside.sum(), (data < 0).sum())
    assert found.negative_share == pytest.approx((data < 0).sum() / values.size)
    assert (found.mean, found.std) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert (found.minimum, found.timing.n_frames) == (0, 9)
    assert found.temporal_variance_share == pytest.approx(values.var(axis=1).mean() / values.var())
    np.testing.assert_allclose(found.mean_image[inside], values.mean(axis=1), rtol=1e-6)
    assert not found.mean_image[~inside].any()


# --- the rest ---------------------------------------------------------------------------------------------------


def test_blocks_of_voxels_change_nothing(monkeypatch):
    whole = list(golden_run(SHIPPED, CASES[0]).frames())
    monkeypatch.setattr(reference_module, "BLOCK_BYTES", 4 * 15 * 1000)
    assert all(map(np.array_equal, whole, golden_run(SHIPPED, CASES[0]).frames()))


def test_clips_are_padded_frames_with_their_onsets_and_the_orientation_is_warned_about():
    run = golden_run(SHIPPED, CASES[0], n_dummies=1, start_time_s=3.0)
    windows = plan_windows(run.timing, clip_frames=4, stride=4)
    frames = np.stack(list(run.frames()))
    clips = list(run.clips(windows))
    assert [clip.first_frame for clip in clips] == [0, 4, 8]
    assert clips[1].onset_s == pytest.approx(3.0 + 2.0 + 4 * run.timing.step_s)
    for clip in clips:
        expected = loaded_clip(frames[clip.first_frame : clip.last_frame + 1], run.scale)
        assert np.array_equal(clip.data[0], expected)
    batch = np.empty((3, 1, 48, 40, 56, 4), np.float32)
    for number, clip in enumerate(run.clips(windows, img_size=(48, 40, 56), buffers=batch)):
        assert np.shares_memory(clip.data, batch) and np.array_equal(clip.data, batch[number])
    assert "left and right are as stored" in run.warnings[0]


def test_the_affine_is_ignored(tmp_path):
    original = nib.load(SHIPPED / f"{CASES[0]}.nii.gz")
    turned = nib.Nifti1Image(np.asarray(original.dataobj), np.diag([-3.0, 3, 3, 1]), original.header)
    nib.save(turned, tmp_path / "turned.nii.gz")
    same = reference_run(tmp_path / "turned.nii.gz")
    assert all(map(np.array_equal, golden_run(SHIPPED, CASES[0]).frames(), same.frames()))


def test_milliseconds_are_not_taken_for_seconds(tmp_path):
    data = np.random.default_rng(0).gamma(4, 25, (6, 6, 6, 10)).astype(np.float32)
    image = nib.Nifti1Image(data, np.diag([3.0, 3, 3, 1]))
    image.header.set_zooms((3, 3, 3, 2000))
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "bold.nii.gz")
    assert reference_run(tmp_path / "bold.nii.gz").timing.n_frames == 25


def test_a_full_disk_is_reported(monkeypatch):
    class FullDisk:
        def __init__(self, **_):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference_module.tempfile, "TemporaryFile", FullDisk)
    with pytest.raises(OutputNotWritable, match=r"beyond 0 volumes \(No space left.*--work-dir"):
        golden_run(SHIPPED, CASES[0])


def test_unusable_runs_are_refused(tmp_path):
    zooms = (3.0, 3.0, 3.0, 2.0)
    data = np.random.default_rng(0).gamma(4, 25, (6, 6, 6, 10)).astype(np.float32)
    bold = write(tmp_path / "bold.nii.gz", data, zooms)
    with pytest.raises(TooFewFrames):
        plan_windows(reference_run(bold).timing, clip_frames=40)
    with pytest.raises(ConstantSeries):
        reference_run(write(tmp_path / "constant.nii.gz", np.full_like(data, 7), zooms))
    with pytest.raises(MaskUnusable, match="no voxel"):
        reference_run(bold, write(tmp_path / "empty.nii.gz", np.zeros((6, 6, 6), np.uint8), zooms))
    with pytest.raises(MaskUnusable, match="the series"):
        reference_run(bold, write(tmp_path / "other.nii.gz", np.ones((7, 6, 6), np.uint8), zooms))
    with pytest.raises(MaskUnusable, match="4D"):
        reference_run(bold, bold)
    data[2, 2, 2, 3] = np.nan
    with pytest.raises(NonFiniteVoxels, match="volume 3"):
        reference_run(write(tmp_path / "nan.nii.gz", data, zooms))
