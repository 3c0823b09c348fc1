"""The clip store: what is read is what the participant level normalised, whoever built it and however it ended."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurostorm_bids.clips import Timing, frames_of, plan_windows, run_statistics
from neurostorm_bids.clips import clips_of as clips_of_run
from neurostorm_bids.errors import ClipStoreUnreadable, TrainingError
from neurostorm_bids.training.clip_store import ClipStore, NormalisedRun, StoredRun, store_key, write_run

SHAPE = (7, 8, 9)


def made_run(seed: int = 0, n_frames: int = 30, spike: float = 0.0) -> tuple[NormalisedRun, np.ndarray]:
    """A run of anatomy and a tenth of it as fluctuation, and its frames (t, x, y, z)."""
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) > 0.4
    frames = np.full((n_frames, *SHAPE), -2.5, np.float32)
    frames[:, mask] = rng.standard_normal(mask.sum()) + 0.1 * rng.standard_normal((n_frames, mask.sum()))
    if spike:
        frames[(5, *np.argwhere(mask)[3])] = spike
    run = NormalisedRun(lambda: iter(frames), mask, n_frames, -2.5, onset_s=4.0, notes={"task": "rest"})
    return run, frames


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.002), ("float16", 0.001)])
def test_clips_come_back_from_anywhere_in_the_run(tmp_path: Path, precision: str, most: float):
    run, frames = made_run()
    stored = ClipStore(tmp_path, precision).run("k", lambda: run)
    for first in (0, 7, 10):
        clip = stored.clip(first, 20)
        assert clip.shape == (1, *SHAPE, 20) and clip.dtype == np.float32
        np.testing.assert_allclose(clip[0].transpose(3, 0, 1, 2), frames[first : first + 20], atol=most)
        assert (clip[0][~run.mask] == np.float32(-2.5)).all()
        np.testing.assert_allclose(stored.frames(first, 20), frames[first : first + 20][:, run.mask], atol=most)
    np.testing.assert_array_equal(stored.mask, run.mask)
    assert stored.info.error_max <= most and stored.info.notes == {"task": "rest"}
    assert stored.onset_of(10) == pytest.approx(12.0)


def test_frames_equal_those_of_the_participant_level(tmp_path: Path):
    rng = np.random.default_rng(1)
    mask = rng.random(SHAPE) > 0.3
    volumes = (1000 * mask * (1 + 0.1 * rng.standard_normal((26, *SHAPE)))).astype(np.float32)

    class Series:
        n_volumes, t_r_s = 26, 1.0

        def __init__(self) -> None:
            self.mask = mask

        def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
            return iter(volumes[start:])

    series, timing = Series(), Timing.of(26, 1.0)
    statistics = run_statistics(series, timing)
    run = NormalisedRun(
        lambda: frames_of(series, statistics), mask, timing.n_frames, float(statistics.background), step_s=timing.step_s
    )
    stored = ClipStore(tmp_path).run("k", lambda: run)
    for clip in clips_of_run(series, statistics, plan_windows(timing, clip_frames=10, stride=7)):
        error = np.abs(stored.clip(clip.first_frame, 10) - clip.data).max()
        assert error <= stored.info.error_max + 1e-6 < 0.03
        assert stored.onset_of(clip.first_frame) == pytest.approx(clip.onset_s)


def test_an_outlier_costs_no_other_voxel_its_precision(tmp_path: Path):
    run, frames = made_run(spike=5000.0)
    stored = ClipStore(tmp_path).run("k", lambda: run)
    error = np.abs(stored.frames(0, 30) - frames[:, run.mask]).max(axis=0)  # (v,)
    assert error[3] < 5000 / 254 + 1 and np.delete(error, 3).max() < 0.003


@settings(max_examples=40, deadline=None)
@given(values=hnp.arrays(np.float32, (4, 12), elements=st.floats(-100, 100, width=32)))
def test_the_error_is_at_most_half_a_level_of_each_voxel(tmp_path_factory, values: np.ndarray):
    mask = np.zeros((3, 4, 5), bool)
    mask.reshape(-1)[::5] = True
    frames = np.zeros((4, 3, 4, 5), np.float32)
    frames[:, mask] = values
    path = tmp_path_factory.mktemp("store") / "run.safetensors"
    write_run(path, NormalisedRun(lambda: iter(frames), mask, 4, 0.0), "int8")
    stored = StoredRun.open(path)
    error = np.abs(stored.frames(0, 4) - values)
    assert (error <= np.ptp(values, axis=0) / 254 / 2 * 1.001 + 1e-5).all()
    assert stored.info.error_max == pytest.approx(error.max(), abs=1e-5)


def test_what_is_there_is_not_made_again(tmp_path: Path):
    store = ClipStore(tmp_path)
    store.run("k", lambda: made_run()[0])
    before = store.path_of("k").stat().st_mtime_ns
    store.run("k", lambda: pytest.fail("made again"))
    assert store.path_of("k").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [store.path_of("k").name]


def test_a_damaged_file_is_refused_and_made_again(tmp_path: Path):
    store = ClipStore(tmp_path)
    whole = store.run("k", lambda: made_run()[0]).clip(3, 20)
    path = store.path_of("k")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ClipStoreUnreadable, match=r"cannot be read.*Remove the file"):
        StoredRun.open(path)
    np.testing.assert_array_equal(store.run("k", lambda: made_run()[0]).clip(3, 20), whole)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"frames": np.zeros((3, 4), np.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(ClipStoreUnreadable, match="cannot be read"):
        StoredRun.open(tmp_path / "x.safetensors")
    with pytest.raises(ClipStoreUnreadable, match="cannot be read"):
        StoredRun.open(tmp_path / "none.safetensors")


def test_a_builder_that_fails_leaves_nothing(tmp_path: Path):
    run, frames = made_run()
    short = NormalisedRun(lambda: iter(frames[:10]), run.mask, 30, 0.0)
    with pytest.raises(TrainingError, match="a run of 30 frames gave 10"):
        write_run(tmp_path / "run.safetensors", short, "float16")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_builder_left_is_removed(tmp_path: Path):
    store = ClipStore(tmp_path)
    (tmp_path / f".{store.path_of('k').name}.0123456789ab.tmp").write_bytes(b"half")
    store.run("k", lambda: made_run()[0])
    assert [path.name for path in tmp_path.iterdir()] == [store.path_of("k").name]


def build(folder: Path, barrier, n_frames: int) -> None:
    run, _ = made_run(n_frames=n_frames)
    barrier.wait()
    StoredRun.open(ClipStore(folder).run("k", lambda: run).path).clip(0, 20)


def test_builders_that_meet_leave_one_whole_file(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    builders = [context.Process(target=build, args=(tmp_path, barrier, 400)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    np.testing.assert_allclose(
        ClipStore(tmp_path).run("k", lambda: pytest.fail("damaged")).frames(0, 400),
        made_run(n_frames=400)[1][:, made_run()[0].mask],
        atol=0.003,
    )


def test_a_run_can_be_sent_to_workers_after_it_was_read(tmp_path: Path):
    stored = ClipStore(tmp_path).run("k", lambda: made_run()[0])
    clip = stored.clip(2, 20)
    packed = pickle.dumps(stored)
    assert len(packed) < 2000
    np.testing.assert_array_equal(pickle.loads(packed).clip(2, 20), clip)


def test_clips_beyond_the_run_are_refused(tmp_path: Path):
    stored = ClipStore(tmp_path).run("k", lambda: made_run()[0])
    with pytest.raises(ValueError, match="frames 11 to 30 of a run of 30"):
        stored.clip(11, 20)
    with pytest.raises(ValueError, match="contiguous float32"):
        stored.clip(0, 20, out=np.empty((1, *SHAPE, 20)))


def test_displacement_is_kept_and_may_be_unknown(tmp_path: Path):
    run, frames = made_run()
    assert np.isnan(ClipStore(tmp_path).run("none", lambda: run).fd_mm).all()
    known = NormalisedRun(lambda: iter(frames), run.mask, 30, 0.0, fd_mm=np.linspace(0, 1, 30))
    np.testing.assert_allclose(ClipStore(tmp_path).run("known", lambda: known).fd_mm, np.linspace(0, 1, 30), atol=1e-6)


def test_keys_depend_on_every_setting_and_on_no_order():
    key = store_key({"image": "abc", "t_r_s": 0.8})
    assert key == store_key({"t_r_s": 0.8, "image": "abc"}) != store_key({"image": "abc", "t_r_s": 0.72})
    assert ClipStore(Path("w"), "float16").path_of(key) != ClipStore(Path("w"), "int8").path_of(key)
