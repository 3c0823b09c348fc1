"""Frames by the compiled kernels, bit for bit those of NumPy, on every instruction set."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurostorm_bids.clips import compiled, normalisation, statistics
from neurostorm_bids.clips.compiled import FRAME_BLOCK, FrameKernels, frame_kernels

library = pytest.importorskip("neurostorm_bids.model.scan.cpu_library")
if frame_kernels() is None:
    pytest.skip("the kernels were not compiled", allow_module_level=True)


def kernels_for(isa: str) -> FrameKernels:
    try:
        table = library.Kernels(isa)._functions
    except ImportError:
        pytest.skip(f"this machine has no {isa}")
    symbols = SimpleNamespace(
        ns_write_frames=ctypes.CFUNCTYPE(None)(table.write_frames),
        ns_sum_frames=ctypes.CFUNCTYPE(ctypes.c_int64)(table.sum_frames),
    )
    return FrameKernels(symbols)


@st.composite
def some_frames(draw: st.DrawFn):
    """Volumes with negative and very large values, and frames of one to three of them."""
    n_voxels = draw(st.sampled_from((1, 15, FRAME_BLOCK - 1, FRAME_BLOCK, 2 * FRAME_BLOCK + 17)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    volumes = rng.normal(500, 400, (6, n_voxels)).astype(np.float32) * np.float32(draw(st.sampled_from((1, 1e-3, 1e7))))
    widths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=23))
    parts = [
        [(volumes[place], np.float32(rng.uniform(0.05, 1))) for place in rng.choice(6, width, replace=False)]
        for width in widths
    ]
    return n_voxels, parts


@pytest.mark.parametrize("isa", library.ISAS)
@settings(max_examples=40, deadline=None)
@given(some_frames())
def test_sums_are_those_of_numpy(isa, case):
    n_voxels, parts = case
    kernels, expected, found = kernels_for(isa), statistics._Sums(n_voxels), statistics._Sums(n_voxels)
    for begins in (True, False):  # the run goes on with the same frames
        expected._add_by_blocks(parts, begins)
        found.n_negative += kernels.add(parts, begins, found.minimum, found.first, found.deviation, found.square)
    assert found.n_negative == expected.n_negative
    for name in ("first", "deviation", "square", "minimum"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("isa", library.ISAS)
@settings(max_examples=40, deadline=None)
@given(some_frames(), st.booleans())
def test_clips_are_those_of_numpy(isa, case, with_nan):
    n_voxels, parts = case
    if with_nan:
        parts[0][0][0][0] = np.nan
    kernels, voxels = kernels_for(isa), np.flatnonzero(np.arange(2 * n_voxels) % 2)
    expected, found = (np.full((1, 2 * n_voxels, 1, 1, len(parts)), 7, np.float32) for _ in range(2))
    live = SimpleNamespace(voxels=voxels)
    run = SimpleNamespace(mean=431.7, std=77.3, background=np.float32(7))
    writer = normalisation._ClipWriter(live, run, len(parts))
    writer._write_by_blocks(parts, expected)
    kernels.write(parts, voxels, writer._mean, writer._std, writer._scratch, found)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.isnan(found).any() == with_nan


def test_arrays_that_the_kernels_cannot_read_are_refused():
    volume = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="contiguous float32, not float32 with strides"):
        compiled.Frames([[(volume[::2], np.float32(1))]])
    with pytest.raises(ValueError, match="contiguous float32, not float64"):
        compiled.Frames([[(volume.astype(float), np.float32(1))]])


def test_without_a_library_numpy_serves(monkeypatch):
    def missing():
        raise ImportError("the kernel was not compiled")

    monkeypatch.setattr(compiled, "kernel_library", missing)
    frame_kernels.cache_clear()
    try:
        assert frame_kernels() is None
    finally:
        frame_kernels.cache_clear()
