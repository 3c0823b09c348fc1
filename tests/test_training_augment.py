"""Augmentation: what a key says, the same for all frames, and never a change of the background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter

from neurostorm_bids.training.augment import Augmentation, _matrix, moved, smoothed

SHAPE = (12, 14, 10)
STILL = {"degrees": 0.0, "scale": 0.0, "noise_probability": 0.0, "smooth_probability": 0.0}


def made(frames: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    clip = np.full((1, *SHAPE, frames), -2.0, np.float32)
    clip[:, 3:9, 3:11, 2:8] = rng.random((1, 6, 8, 6, frames), dtype=np.float32)
    return clip


def test_a_key_decides():
    change = Augmentation()
    np.testing.assert_array_equal(change(made(), (0, 1, 5), -2.0), Augmentation()(made(), (0, 1, 5), -2.0))
    assert not np.array_equal(change(made(), (0, 1, 5), -2.0), change(made(), (0, 2, 5), -2.0))


def test_nothing_is_changed_without_reason():
    np.testing.assert_allclose(Augmentation(**STILL)(made(), 1, -2.0), made(), atol=1e-5)


def test_all_frames_change_alike():
    still = np.repeat(made(1), 4, axis=-1)
    changed = Augmentation(noise_probability=1.0, smooth_probability=1.0)(still, (3, 1), -2.0)
    np.testing.assert_array_equal(changed, np.repeat(changed[..., :1], 4, axis=-1))
    assert changed.shape == still.shape and changed.dtype == np.float32 and not np.allclose(changed, still)


def test_the_background_stays_as_it_is():
    changed = Augmentation(**{**STILL, "noise_probability": 1.0})(made(), 1, -2.0)
    inside = made() > -2
    assert (changed[~inside] == -2).all()
    noise = (changed - made())[inside]
    assert 0.08 < noise.std() < 0.12 and abs(noise.mean()) < 0.03


def test_probabilities_are_kept():
    choose = Augmentation(**{**STILL, "noise_probability": 0.3})
    changed = [not np.allclose(choose(made(1), (7, i), -2.0), made(1), atol=1e-4) for i in range(300)]
    assert 0.22 < np.mean(changed) < 0.38


@pytest.mark.parametrize("seed", [0, 1])
def test_affines_agree_with_scipy(seed: int):
    rng = np.random.default_rng(seed)
    matrix = _matrix(rng.uniform(-0.17, 0.17, 3), 1 + rng.uniform(-0.1, 0.1, 3))
    volume = np.pad(gaussian_filter(rng.standard_normal((6, 8, 6)), 1), ((3, 3), (3, 3), (2, 2)))
    centre = (np.array(SHAPE) - 1) / 2
    expected = affine_transform(volume, matrix, centre - matrix @ centre, order=1)
    found = moved(torch.from_numpy(volume)[None], matrix)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_matrices_turn_and_scale_within_their_range():
    turn = _matrix(np.deg2rad([0.0, 0.0, 90.0]), np.array([2.0, 1.0, 1.0]))
    np.testing.assert_allclose(turn @ [1, 0, 0], [0, 2, 0], atol=1e-12)
    for seed in range(20):
        draw = np.random.default_rng(seed)
        matrix = _matrix(draw.uniform(-1, 1, 3) * np.deg2rad(10), np.ones(3))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.rad2deg(np.arccos((np.trace(matrix) - 1) / 2)) <= 10 * np.sqrt(3) + 0.5


def test_smoothing_agrees_with_scipy():
    volume = np.pad(np.random.default_rng(0).standard_normal((4, 6, 4)), 4)
    expected = gaussian_filter(volume, (0.4, 0.5, 0.3), mode="constant", truncate=4.0)
    found = smoothed(torch.from_numpy(volume)[None], (0.4, 0.5, 0.3))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
