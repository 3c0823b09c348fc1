"""Samples and batches: everything follows from (seed, epoch, sample), and processes share one batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import CONFIG, N_FRAMES, runs

from neurostorm_bids.errors import MotionUnknown, TrainingError
from neurostorm_bids.training.clip_store import StoredRun
from neurostorm_bids.training.data import (
    ClipDataset,
    ClipSamples,
    Cursor,
    KeyedBatches,
    PairSamples,
    collate,
    whole_run_stretches,
)
from neurostorm_bids.training.schedule import warmup_cosine


def batches(n: int, size: int, epoch: int = 0, **options) -> KeyedBatches:
    return KeyedBatches(n, size, 7, epoch=lambda: epoch, **options)


@given(n=st.integers(1, 60), size=st.integers(1, 9), epoch=st.integers(0, 5))
@settings(deadline=None)
def test_every_sample_comes_once_an_epoch_before_any_comes_twice(n, size, epoch):
    if n < size:
        return
    order = [index for batch in batches(n, size, epoch) for _, index in batch]
    assert sorted(order[:n]) == list(range(n))
    assert order[n:] == order[: len(order) - n]


@pytest.mark.parametrize("epoch", [0, 3])
def test_two_processes_share_the_batch_of_one(epoch):
    whole = list(batches(21, 8, epoch))
    halves = [list(batches(21, 4, epoch, rank=rank, world=2)) for rank in (0, 1)]
    assert whole == [first + second for first, second in zip(*halves, strict=True)]


def test_epochs_differ_and_come_again():
    assert list(batches(21, 4, 1)) != list(batches(21, 4, 2))
    assert list(batches(21, 4, 1)) == list(batches(21, 4, 1))


def test_a_resumed_epoch_begins_behind_what_was_seen_and_the_next_one_at_its_start():
    cursor = Cursor(epoch=2, batch=3)
    assert list(batches(21, 4, 2, cursor=cursor)) == list(batches(21, 4, 2))[3:]
    assert list(batches(21, 4, 3, cursor=cursor)) == list(batches(21, 4, 3))


def test_a_batch_larger_than_the_data_says_which_one_fits():
    with pytest.raises(TrainingError, match=r"batch of 4 on each of 2 processes, and 6 samples.*--batch-size 3"):
        batches(6, 4, world=2)


def test_clips_begin_anywhere_in_their_run_and_by_key_alone(tmp_path):
    run = runs(tmp_path, 1, 1)[0]
    samples = ClipSamples(list(whole_run_stretches(run, 6)), seed=1)
    assert len(samples) == N_FRAMES // 6
    firsts = {samples.views(epoch, index)[0].first for epoch in range(60) for index in range(len(samples))}
    assert firsts == set(range(N_FRAMES - 6 + 1))
    assert samples.views(3, 1) == samples.views(3, 1) != samples.views(4, 1)


def test_fixed_clips_lie_end_to_end(tmp_path):
    run = runs(tmp_path, 1, 1)[0]
    stretches = list(whole_run_stretches(run, 6, fixed=True))
    assert [part.starts.tolist() for part in stretches] == [[0], [6], [12], [18]]


def test_a_pair_is_of_two_runs_where_there_are_two_else_of_two_times(tmp_path):
    both = runs(tmp_path, 1, 2)
    for epoch in range(20):
        first, second = PairSamples([both], 6, 0).views(epoch, 0)
        assert {first.run.name, second.run.name} == {run.name for run in both}
        first, second = PairSamples([both[:1]], 6, 0).views(epoch, 0)
        assert abs(first.first - second.first) >= 6


def test_local_views_are_two_clips_twice_with_keys_of_their_own(tmp_path):
    views = PairSamples([runs(tmp_path, 1, 2)], 6, 0, augmented_twice=True).views(0, 0)
    assert len(views) == 4 and len({view.key for view in views}) == 4
    assert len({view.run.name for view in views}) == 1
    assert [view.first for view in views[:2]] == [view.first for view in views[2:]]


def moving(tmp_path, threshold: float):
    """A run of 26 frames whose head moves at frame 10 alone, by 3 mm: by 0.5 mm on average over clips of 6."""
    run = runs(tmp_path, 1, 1)[0]
    stored = StoredRun.open(run.stored.path)
    stored.__dict__["fd_mm"] = np.where(np.arange(N_FRAMES) == 10, 3.0, 0.0).astype(np.float32)
    return replace(run, stored=stored, fd_threshold_mm=threshold)


def test_no_clip_that_moved_more_than_the_threshold_is_trained_on(tmp_path):
    still = [*range(5), *range(11, 21)]
    run = moving(tmp_path, 0.4)
    assert run.starts(6).tolist() == still and moving(tmp_path, 0.6).starts(6).tolist() == list(range(21))
    assert [part.first for part in whole_run_stretches(run, 6, fixed=True)] == [0, 12, 18]
    samples = ClipSamples(list(whole_run_stretches(run, 6)), seed=1)
    assert {samples.views(epoch, index)[0].first for epoch in range(60) for index in range(4)} == set(still)
    pairs = [PairSamples([[run]], 6, 0).views(epoch, 0) for epoch in range(200)]
    firsts = [sorted(view.first for view in pair) for pair in pairs]
    assert all(b - a >= 6 and {a, b} <= set(still) for a, b in firsts)
    assert {a for a, _ in firsts} == {0, 1, 2, 3, 4, 11, 12, 13, 14}


def test_a_threshold_needs_displacement(tmp_path):
    run = replace(runs(tmp_path, 1, 1)[0], fd_threshold_mm=0.5)
    with pytest.raises(MotionUnknown, match="sub-00_run-1: --fd-threshold needs framewise displacement"):
        run.starts(6)


def test_pairs_of_times_are_equally_likely(tmp_path):
    run = runs(tmp_path, 1, 1)[0]
    seen = [tuple(sorted(v.first for v in PairSamples([[run]], 12, 0).views(epoch, 0))) for epoch in range(900)]
    assert set(seen) == {(0, 12), (0, 13), (0, 14), (1, 13), (1, 14), (2, 14)}
    assert min(seen.count(pair) for pair in set(seen)) > 110  # 150 expected


def test_a_run_too_short_for_a_pair_is_named(tmp_path):
    run = runs(tmp_path, 1, 1)[0]
    with pytest.raises(TrainingError, match="sub-00_run-1 has 26 frames, too few for two clips"):
        PairSamples([[run]], 14, 0).views(0, 0)


def test_a_batch_holds_what_the_store_holds(tmp_path):
    run = runs(tmp_path, 1, 1)[0]
    data = ClipDataset(ClipSamples(list(whole_run_stretches(run, 6, 2.5, fixed=True)), 0), CONFIG.img_size[3])
    batch = collate([data[(0, 1)], data[(0, 3)]])
    assert batch["clips"].shape == (2, 1, 8, 8, 8, 6)
    assert np.array_equal(batch["clips"][1].numpy(), run.stored.clip(18, 6))
    assert batch["labels"].tolist() == [2.5, 2.5] and batch["index"].tolist() == [1, 3]
    assert batch["files"] == ["sub-00_run-1"] * 2


def test_augmentation_gets_clip_key_and_background(tmp_path):
    run = runs(tmp_path, 1, 1)[0]
    seen = []

    def augment(clip, key, background):
        seen.append((key, background))
        return clip + 1

    data = ClipDataset(ClipSamples(list(whole_run_stretches(run, 6, fixed=True)), 5), 6, augment)
    assert np.array_equal(data[(2, 1)]["clips"][0], run.stored.clip(6, 6) + 1)
    assert seen == [((5, 2, 1), run.stored.info.background)]


@given(st.integers(1, 200), st.integers(0, 50))
def test_the_learning_rate_rises_then_falls_to_zero(n_steps, n_warmup):
    n_warmup = min(n_warmup, n_steps - 1)
    factors = [warmup_cosine(step, n_steps=n_steps, n_warmup=n_warmup) for step in range(n_steps + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[: n_warmup + 1] == sorted(factors[: n_warmup + 1])
    assert factors[n_warmup:] == sorted(factors[n_warmup:], reverse=True) and factors[-1] < 1e-9
