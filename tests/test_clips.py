"""Clips: time, one mean and SD, background, windows; against torch, closed forms, and an in-memory computation."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurostorm_bids.clips import Timing, clips_of, frames_of, normalise, plan_windows, run_statistics
from neurostorm_bids.clips import normalisation as normalisation_module
from neurostorm_bids.clips import series as series_module
from neurostorm_bids.clips import statistics as statistics_module
from neurostorm_bids.clips.timing import linear_weights, triangle_weights
from neurostorm_bids.errors import (
    ConfoundsUnusable,
    ConstantSeries,
    DemeanedSeries,
    EveryClipMoved,
    ImageUnreadable,
    MaskUnusable,
    MotionUnknown,
    NonFiniteVoxels,
    TooFewFrames,
)


class InMemorySeries:
    """A run on the model's grid, as the space stage hands it on; counts how many of its volumes are alive."""

    def __init__(self, data: np.ndarray, mask: np.ndarray, t_r_s: float, n_volumes: int | None = None):
        self.data, self.mask, self.t_r_s = data, mask, t_r_s
        self.n_volumes = data.shape[-1] if n_volumes is None else n_volumes
        self.passes = 0
        self.alive, self.most_alive = 0, 0

    def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
        self.passes += 1
        for index in range(start, self.data.shape[-1]):
            volume = np.ascontiguousarray(self.data[..., index])
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
            weakref.finalize(volume, self._gone)
            yield volume

    def _gone(self) -> None:
        self.alive -= 1


SHAPE = (9, 8, 7)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.random(SHAPE) < 0.4


def brainlike(n_volumes: int, seed: int = 0, negatives: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    data = rng.gamma(9, 100, (*SHAPE, 1)) + rng.normal(0, 15, (*SHAPE, n_volumes))
    data[rng.random(data.shape) < negatives] *= -0.1
    return data.astype(np.float32)


def resampled(data: np.ndarray, n_frames: int) -> np.ndarray:
    """The reference's temporal step, by torch, in memory."""
    rows = torch.from_numpy(np.ascontiguousarray(data.reshape(1, -1, data.shape[-1])))
    frames = torch.nn.functional.interpolate(rows, size=n_frames, mode="linear", align_corners=False)
    return frames.numpy().reshape(*data.shape[:-1], n_frames)


def all_clips(series: InMemorySeries, timing: Timing, clip_frames: int = 4, stride: int = 4, **options):
    windows = plan_windows(timing, clip_frames=clip_frames, stride=stride)
    statistics = run_statistics(series, timing, **options)
    return list(clips_of(series, statistics, windows)), statistics


# --- time -------------------------------------------------------------------------------------------------------


@given(n_volumes=st.integers(1, 1500), n_frames=st.integers(1, 1500))
@settings(max_examples=60, deadline=None)
def test_linear_weights_are_those_of_torch(n_volumes: int, n_frames: int):
    values = np.random.default_rng(n_volumes).normal(800, 300, (3, n_volumes)).astype(np.float32)
    volumes, weights = linear_weights(n_volumes, n_frames)
    ours = (values[:, volumes].astype(np.float64) * weights).sum(axis=2)
    assert np.allclose(ours, resampled(values, n_frames), rtol=2e-7, atol=1e-4)


@given(n_frames=st.integers(1, 200), extra=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_triangle_weights_are_those_of_torch(n_frames: int, extra: int):
    n_volumes = n_frames + extra
    ours = np.zeros((n_frames, n_volumes))
    volumes, weights = triangle_weights(n_volumes, n_frames)
    np.add.at(ours, (np.arange(n_frames)[:, None], volumes), weights)
    each_volume = torch.eye(n_volumes)[:, None, None, :]
    expected = torch.nn.functional.interpolate(
        each_volume, size=(1, n_frames), mode="bilinear", align_corners=False, antialias=True
    )
    # torch places the frames in float32, a hundredth of a percent of a volume off over a long run
    assert np.abs(ours - expected.numpy()[:, 0, 0].T).max() < 1e-4


def test_a_ramp_in_time_stays_a_ramp_and_anti_aliasing_removes_a_fast_alternation():
    timing = Timing.of(200, 0.4, target_t_r_s=0.8)
    seconds = (np.arange(200) + 0.5) * 0.4
    volumes, weights = timing.frames
    centres = (np.arange(100) + 0.5) * 0.8
    assert np.allclose((seconds[volumes] * weights).sum(axis=1), centres, atol=1e-4)
    smooth = Timing.of(200, 0.4, target_t_r_s=0.8, anti_alias=True)
    volumes, weights = smooth.frames
    assert np.allclose((seconds[volumes] * weights).sum(axis=1)[1:-1], centres[1:-1], atol=1e-4)
    alternation = (-1.0) ** np.arange(200)
    assert np.abs((alternation[volumes] * weights).sum(axis=1))[1:-1].max() < 1e-6


def test_anti_aliasing_leaves_a_slow_run_alone():
    with_it, without = Timing.of(100, 2.0, anti_alias=True), Timing.of(100, 2.0)
    assert np.array_equal(with_it.frames.weights, without.frames.weights)


@pytest.mark.parametrize(("n_volumes", "t_r_s", "n_frames"), [(200, 2.0, 500), (5, 0.5, 3), (3, 1.2, 4), (1, 0.4, 0)])
def test_frame_count_rounds_halves_to_even(n_volumes: int, t_r_s: float, n_frames: int):
    assert Timing.of(n_volumes, t_r_s, target_t_r_s=0.8).n_frames == n_frames


def test_onsets_count_dummies_start_time_and_the_effective_step():
    timing = Timing.of(103, 2.2, n_dummies=3, start_time_s=5.0)  # 100 volumes = 220 s = 275 frames
    assert timing.n_frames == 275 and timing.step_s == pytest.approx(0.8)
    assert timing.onset_s(10) == pytest.approx(5.0 + 3 * 2.2 + 8.0)
    odd = Timing.of(7, 2.0, target_t_r_s=0.8)  # 14 s are 17.5 frames: 18
    assert odd.n_frames == 18 and odd.step_s == pytest.approx(14 / 18)
    windows = plan_windows(odd, clip_frames=6, stride=6)
    assert [window.onset_s for window in windows.kept] == pytest.approx([0, 6 * 14 / 18, 12 * 14 / 18])
    assert windows.kept[0].duration_s == pytest.approx(6 * 14 / 18)


# --- windows ----------------------------------------------------------------------------------------------------


@given(
    n_volumes=st.integers(1, 600),
    t_r_s=st.floats(0.3, 4.0),
    dummies=st.integers(0, 10),
    clip_frames=st.integers(1, 40),
    stride=st.integers(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_windows_cover_the_run_in_order(n_volumes: int, t_r_s: float, dummies: int, clip_frames: int, stride: int):
    timing = Timing.of(n_volumes + dummies, t_r_s, n_dummies=dummies)
    if timing.n_frames < clip_frames:
        with pytest.raises(TooFewFrames):
            plan_windows(timing, clip_frames=clip_frames, stride=stride)
        return
    windows = plan_windows(timing, clip_frames=clip_frames, stride=stride)
    assert len(windows.kept) == (timing.n_frames - clip_frames) // stride + 1
    assert all(b.first_frame - a.first_frame == stride for a, b in zip(windows.kept, windows.kept[1:], strict=False))
    assert all(window.last_frame - window.first_frame + 1 == clip_frames for window in windows.kept)
    assert windows.kept[-1].last_frame + 1 + windows.n_dropped_frames == timing.n_frames
    assert windows.n_dropped_frames < stride
    end_s = dummies * t_r_s + n_volumes * t_r_s
    assert windows.kept[-1].onset_s + windows.kept[-1].duration_s <= end_s + 1e-6


def test_too_short_a_run_says_what_it_has_and_what_it_needs():
    with pytest.raises(
        TooFewFrames, match=r"5 volumes after 2 dummies at TR 2 s are 10 s.*20 frames.*16 s or 8 volumes"
    ):
        plan_windows(Timing.of(7, 2.0, n_dummies=2))
    plan_windows(Timing.of(8, 2.0))


def test_more_dummies_than_volumes_are_too_few_frames():
    with pytest.raises(TooFewFrames, match="0 volumes after 9 dummies"):
        plan_windows(Timing.of(5, 2.0, n_dummies=9))


def test_statistics_of_no_frame_are_refused(mask):
    with pytest.raises(TooFewFrames, match=r"1 volumes at TR 0\.3 s"):
        run_statistics(InMemorySeries(brainlike(1), mask, 0.3), Timing.of(1, 0.3))


def test_clips_above_the_motion_threshold_are_left_out_and_counted():
    timing = Timing.of(42, 0.8, n_dummies=2)
    fd_mm = np.full(42, 0.1)
    fd_mm[0] = np.nan
    fd_mm[24:30] = 2.0  # frames 22 to 27: the second clip
    windows = plan_windows(timing, fd_mm=fd_mm, fd_threshold_mm=0.5)
    assert [window.first_frame for window in windows.kept] == [0]
    assert [window.first_frame for window in windows.excluded] == [20]
    assert windows.excluded[0].mean_fd_mm == pytest.approx((6 * 2.0 + 14 * 0.1) / 20)
    assert plan_windows(timing, fd_mm=fd_mm).kept[1].mean_fd_mm == windows.excluded[0].mean_fd_mm
    with pytest.raises(EveryClipMoved, match="all 2 clips"):
        plan_windows(timing, fd_mm=fd_mm, fd_threshold_mm=0.01)


def test_displacement_follows_the_frames_in_time():
    timing = Timing.of(20, 2.0)  # 50 frames
    windows = plan_windows(timing, clip_frames=25, stride=25, fd_mm=np.repeat([0.2, 0.6], 10))
    first, second = (window.mean_fd_mm for window in windows.kept)
    assert first == pytest.approx(0.2, abs=0.01) and second == pytest.approx(0.6, abs=0.01)
    undefined_start = np.concatenate([[np.nan], np.full(19, 0.3)])
    assert plan_windows(timing, fd_mm=undefined_start).kept[0].mean_fd_mm == pytest.approx(0.3)


def test_a_threshold_needs_displacement_of_the_right_length():
    gap = np.r_[np.full(20, 0.1), np.full(20, np.nan)]
    assert plan_windows(Timing.of(40, 0.8), fd_mm=gap).kept[1].mean_fd_mm is None
    with pytest.raises(MotionUnknown, match="clip that begins with frame 20"):
        plan_windows(Timing.of(40, 0.8), fd_mm=gap, fd_threshold_mm=0.5)
    with pytest.raises(MotionUnknown, match="--fd-threshold"):
        plan_windows(Timing.of(40, 0.8), fd_threshold_mm=0.5)
    with pytest.raises(ConfoundsUnusable, match=r"39 values .* for 40 volumes"):
        plan_windows(Timing.of(40, 0.8), fd_mm=np.zeros(39))


# --- statistics and clips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_volumes", "t_r_s", "dummies"), [(20, 2.0, 0), (20, 2.0, 3), (60, 0.5, 0), (30, 0.8, 2)])
@pytest.mark.parametrize("negatives", [0.0, 0.02])
def test_clips_equal_the_whole_run_normalised_in_memory(mask, n_volumes, t_r_s, dummies, negatives):
    data = brainlike(n_volumes, negatives=negatives)
    timing = Timing.of(n_volumes, t_r_s, n_dummies=dummies)
    clips, statistics = all_clips(InMemorySeries(data, mask, t_r_s), timing)
    frames = resampled(data[..., dummies:], timing.n_frames)
    expected = normalise(frames, mask)
    for clip in clips:
        assert clip.data.shape == (1, *SHAPE, 4) and clip.data.dtype == np.float32
        assert np.abs(clip.data[0] - expected[..., clip.first_frame : clip.last_frame + 1]).max() < 1e-6
    inside = np.maximum(frames[mask].astype(np.float64), 0)
    assert statistics.mean == pytest.approx(inside.mean(), rel=1e-7)
    assert statistics.std == pytest.approx(inside.std(ddof=1), rel=1e-7)
    share = inside.var(axis=1).mean() / inside.var()
    assert statistics.temporal_variance_share == pytest.approx(share, rel=1e-5)
    assert np.allclose(statistics.mean_image[mask], inside.mean(axis=1), rtol=1e-6)
    assert statistics.n_negative == (frames[mask] < 0).sum()


def test_without_the_compiled_kernels_the_bytes_are_the_same(mask, monkeypatch):
    data, timing = brainlike(60, negatives=0.02), Timing.of(60, 0.5)
    clips, statistics = all_clips(InMemorySeries(data, mask, 0.5), timing)
    for module in (statistics_module, normalisation_module):
        monkeypatch.setattr(module, "frame_kernels", lambda: None)
    by_numpy, of_numpy = all_clips(InMemorySeries(data, mask, 0.5), timing)
    assert (of_numpy.mean, of_numpy.std, of_numpy.n_negative) == (
        statistics.mean,
        statistics.std,
        statistics.n_negative,
    )
    np.testing.assert_array_equal([clip.data for clip in by_numpy], [clip.data for clip in clips])


def test_clips_bear_what_their_windows_say(mask):
    timing = Timing.of(60, 0.8, start_time_s=0.4)
    windows = plan_windows(timing, clip_frames=20, fd_mm=np.linspace(0.1, 0.4, 60))
    series = InMemorySeries(brainlike(60), mask, 0.8)
    for clip, window in zip(clips_of(series, run_statistics(series, timing), windows), windows.kept, strict=True):
        names = ("first_frame", "last_frame", "onset_s", "duration_s", "mean_fd_mm")
        assert [getattr(clip, name) for name in names] == [getattr(window, name) for name in names]


@pytest.mark.parametrize(("n_volumes", "t_r_s"), [(100, 0.72), (100, 0.8), (61, 2.0), (203, 0.55), (7, 3.0)])
@pytest.mark.parametrize(("n_together", "stride"), [(20, 20), (4, 3), (1, 1), (500, 20)])
def test_the_longest_span_is_that_of_every_group(n_volumes: int, t_r_s: float, n_together: int, stride: int):
    frames = Timing.of(n_volumes, t_r_s).frames
    groups = [frames.volumes[start : start + n_together] for start in range(0, len(frames.volumes), stride)]
    assert series_module.longest_span(frames, n_together, stride) == max(int(np.ptp(group)) + 1 for group in groups)


def test_background_takes_the_smallest_foreground_value(mask):
    clips, statistics = all_clips(InMemorySeries(brainlike(20), mask, 2.0), Timing.of(20, 2.0), 50, 50)
    data = clips[0].data[0]
    assert np.unique(data[~mask]).tolist() == [statistics.background]
    assert data[mask].min() == statistics.background


def test_background_can_be_zero(mask):
    series, timing = InMemorySeries(brainlike(20), mask, 2.0), Timing.of(20, 2.0)
    clips, _ = all_clips(series, timing, 50, 50, background="zero")
    plain, _ = all_clips(series, timing, 50, 50)
    assert not clips[0].data[0][~mask].any()
    assert np.array_equal(clips[0].data[0][mask], plain[0].data[0][mask])


def test_negatives_count_as_zero_but_stay_foreground(mask):
    data = brainlike(20, negatives=0.01)
    clipped = np.maximum(resampled(data, 50), 0)
    _, statistics = all_clips(InMemorySeries(data, mask, 2.0), Timing.of(20, 2.0), 50, 50)
    assert statistics.minimum == 0 and statistics.n_negative > 0
    assert statistics.mean == pytest.approx(clipped[mask].mean(dtype=float), rel=1e-7)


@given(factor=st.floats(1e-3, 1e4))
@settings(max_examples=15, deadline=None)
def test_a_constant_factor_changes_no_clip(factor: float):
    mask = np.random.default_rng(1).random(SHAPE) < 0.4
    data, timing = brainlike(20), Timing.of(20, 2.0)
    plain, _ = all_clips(InMemorySeries(data, mask, 2.0), timing)
    scaled, _ = all_clips(InMemorySeries(data * np.float32(factor), mask, 2.0), timing)
    assert all(np.abs(a.data - b.data).max() < 1e-5 for a, b in zip(plain, scaled, strict=True))


def test_however_the_pass_is_cut_up_the_bytes_are_the_same(mask, monkeypatch):
    series, timing = InMemorySeries(brainlike(30, negatives=0.01), mask, 2.0), Timing.of(30, 2.0)
    whole, statistics = all_clips(series, timing)
    for module in ("series", "statistics", "normalisation"):
        monkeypatch.setattr(f"neurostorm_bids.clips.{module}.BLOCK", 17)
    monkeypatch.setattr("neurostorm_bids.clips.statistics.GROUP", 3)
    assert series_module.BLOCK == 17
    pieces, again = all_clips(series, timing)
    assert (again.mean, again.std, again.minimum) == (statistics.mean, statistics.std, statistics.minimum)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(whole, pieces, strict=True))


def test_fortran_ordered_volumes_give_the_same_clips(mask):
    data, timing = brainlike(20), Timing.of(20, 2.0)
    turned = InMemorySeries(data, mask, 2.0)
    turned.volumes = lambda start=0: (np.asfortranarray(data[..., i]) for i in range(start, 20))
    plain, _ = all_clips(InMemorySeries(data, mask, 2.0), timing)
    fortran, _ = all_clips(turned, timing)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(plain, fortran, strict=True))


def test_overlapping_and_sparse_clips_are_cut_from_the_same_frames(mask):
    series, timing = InMemorySeries(brainlike(30), mask, 2.0), Timing.of(30, 2.0)
    statistics = run_statistics(series, timing)
    run = np.stack(list(frames_of(series, statistics)), axis=-1)
    assert run.shape == (*SHAPE, 75)
    for stride in (1, 3, 7, 11):
        windows = plan_windows(timing, clip_frames=7, stride=stride)
        for clip in clips_of(series, statistics, windows):
            assert np.array_equal(clip.data[0], run[..., clip.first_frame : clip.last_frame + 1])


def test_buffers_are_written_in_turn_and_hold_the_same_values(mask):
    series, timing = InMemorySeries(brainlike(30), mask, 2.0), Timing.of(30, 2.0)
    windows, statistics = plan_windows(timing, clip_frames=10, stride=10), run_statistics(series, timing)
    batch = np.full((3, 1, *SHAPE, 10), np.nan, np.float32)
    own = list(clips_of(series, statistics, windows))
    for number, clip in enumerate(clips_of(series, statistics, windows, buffers=batch)):
        assert np.shares_memory(clip.data, batch[number % 3])
        assert np.array_equal(batch[number % 3], own[number].data)
    assert len({id(clip.data) for clip in own}) == len(own) == 7
    with pytest.raises(ValueError, match="contiguous"):
        next(clips_of(series, statistics, windows, buffers=[np.zeros((1, *SHAPE, 9), np.float32)]))


@pytest.mark.parametrize(
    "buffer",
    [np.empty((1, *SHAPE, 4)), np.empty((1, *SHAPE, 4), np.float32, order="F"), np.empty((1, *SHAPE, 5), np.float32)],
)
def test_buffers_of_another_kind_are_refused(mask, buffer):
    timing, series = Timing.of(20, 2.0), InMemorySeries(brainlike(20), mask, 2.0)
    windows = plan_windows(timing, clip_frames=4, stride=4)
    with pytest.raises(ValueError, match="a clip buffer must be contiguous float32"):
        next(clips_of(series, run_statistics(series, timing), windows, buffers=[buffer]))


@pytest.mark.parametrize("n_volumes", [30, 240])
def test_few_volumes_are_alive_however_long_the_run(mask, n_volumes):
    series, timing = InMemorySeries(brainlike(n_volumes), mask, 2.0), Timing.of(n_volumes, 2.0)
    statistics = run_statistics(series, timing)
    buffers = np.empty((1, 1, *SHAPE, 20), np.float32)
    for _ in clips_of(series, statistics, plan_windows(timing), buffers=buffers):
        pass
    assert series.passes == 2 and series.most_alive <= 2


# --- refusals ---------------------------------------------------------------------------------------------------


def test_a_constant_run_is_refused(mask):
    with pytest.raises(ConstantSeries, match="every value inside the mask is 700"):
        run_statistics(InMemorySeries(np.full((*SHAPE, 20), 700, np.float32), mask, 2.0), Timing.of(20, 2.0))


@pytest.mark.parametrize(("share", "right"), [(1.1e-6, True), (0.9e-6, False)])
def test_a_spread_of_a_millionth_of_the_mean_is_one(share: float, right: bool):
    if right:
        series_module.require_spread(700.0, (share * 700) ** 2)
        return
    with pytest.raises(ConstantSeries):
        series_module.require_spread(700.0, (share * 700) ** 2)


def test_a_run_without_temporal_variance_is_warned_about(mask):
    still = np.repeat(brainlike(1), 20, axis=-1)
    statistics = run_statistics(InMemorySeries(still, mask, 2.0), Timing.of(20, 2.0))
    assert "hardly differ" in statistics.warnings[0]
    assert statistics_module._warnings(0.000012) == (
        "only 0.0012 % of the variance is temporal: the volumes of this run hardly differ",
    )
    assert run_statistics(InMemorySeries(brainlike(20), mask, 2.0), Timing.of(20, 2.0)).warnings == ()


def test_a_demeaned_run_is_refused(mask):
    data = brainlike(20)
    with pytest.raises(DemeanedSeries, match="of the values inside the mask are negative"):
        run_statistics(InMemorySeries(data - data.mean(axis=-1, keepdims=True), mask, 2.0), Timing.of(20, 2.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_undefined_voxels_are_refused_inside_the_mask_only(mask, bad):
    data = brainlike(20)
    data[tuple(np.argwhere(~mask)[0])] = bad
    run_statistics(InMemorySeries(data, mask, 2.0), Timing.of(20, 2.0))
    data[(*np.argwhere(mask)[0], 7)] = bad
    with pytest.raises(NonFiniteVoxels, match="1 voxels of volume 7"):
        run_statistics(InMemorySeries(data, mask, 2.0), Timing.of(20, 2.0))


def test_an_image_that_ends_early_is_refused(mask):
    series = InMemorySeries(brainlike(20), mask, 2.0, n_volumes=25)
    with pytest.raises(ImageUnreadable, match="ends after 20 volumes"):
        run_statistics(series, Timing.of(25, 2.0))


def test_faults_that_a_series_reports_at_its_end_are_heard(mask):
    class Faulty(InMemorySeries):
        def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
            yield from super().volumes(start)
            raise ImageUnreadable("the checksum is wrong")

    with pytest.raises(ImageUnreadable, match="checksum"):
        run_statistics(Faulty(brainlike(20), mask, 2.0), Timing.of(20, 2.0))


def test_an_empty_mask_is_refused():
    with pytest.raises(MaskUnusable, match="no voxel"):
        run_statistics(InMemorySeries(brainlike(20), np.zeros(SHAPE, bool), 2.0), Timing.of(20, 2.0))
