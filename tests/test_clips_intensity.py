"""``--intensity hcp``: a known receive field is found, and the mean image averages 10,000."""

from __future__ import annotations

import numpy as np
import pytest

from neurostorm_bids.clips import Timing, clips_of, plan_windows, run_statistics
from neurostorm_bids.clips.intensity import hcp_gain
from neurostorm_bids.errors import ConstantSeries

SHAPE = (30, 34, 28)


def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, anatomy with bright fluid, dark edge and dropout, and a smooth receive field (a factor of 3 over it)."""
    x, y, z = (np.linspace(-1, 1, n) for n in SHAPE)
    x, y, z = np.meshgrid(x, y, z, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    mask = radius < 0.95
    anatomy = np.where(np.sin(9 * x) * np.sin(7 * y) * np.sin(8 * z) > 0.1, 1100.0, 900.0)
    anatomy[(np.abs(x) < 0.15) & (np.abs(y) < 0.3) & (np.abs(z) < 0.15)] = 2000  # ventricles
    anatomy[radius > 0.88] *= 0.6
    anatomy[(y > 0.7) & (z < -0.3)] *= 0.1
    anatomy += np.random.default_rng(0).normal(0, 30, SHAPE)
    field = np.exp(0.45 * x - 0.4 * y + 0.25 * (x**2 + z**2) - 0.2 * y * z)
    return mask, anatomy, field


def test_a_smooth_receive_field_is_removed():
    mask, anatomy, field = head()
    gain = hcp_gain((anatomy * field)[mask], mask)
    left = np.log(gain * field[mask])
    before = np.log(field[mask])
    assert before.std() > 0.25
    assert left.std() < 0.1 * before.std()
    assert ((anatomy * field)[mask] * gain).mean() == pytest.approx(10_000, rel=1e-5)


def test_an_even_image_keeps_its_contrast():
    mask, anatomy, _ = head()
    gain = hcp_gain(anatomy[mask], mask)
    assert np.std(gain) / np.mean(gain) < 0.03


def test_the_gain_reaches_statistics_and_clips():
    mask, anatomy, field = head()
    rng = np.random.default_rng(1)
    data = ((anatomy * field)[..., None] * (1 + 0.01 * rng.normal(size=(*SHAPE, 12)))).astype(np.float32)
    data[~mask] = 0
    data[tuple(np.argwhere(mask)[100])] = -5

    class Series:
        n_volumes, t_r_s = 12, 2.0

        def __init__(self, values):
            self.values, self.mask = values, mask

        def volumes(self, start=0):
            return (self.values[..., index] for index in range(start, 12))

    timing = Timing.of(12, 2.0)
    windows = plan_windows(timing, clip_frames=15, stride=15)
    corrected = run_statistics(Series(data), timing, intensity="hcp")
    assert corrected.mean_image[mask].mean() == pytest.approx(10_000, rel=1e-5)
    scaled = np.zeros_like(data)
    scaled[mask] = data[mask] * corrected.gain[:, None]
    by_hand = run_statistics(Series(scaled), timing)
    for name in ("mean", "std", "minimum", "temporal_variance_share"):
        assert getattr(corrected, name) == pytest.approx(getattr(by_hand, name), rel=1e-6)
    found, expected = (list(clips_of(Series(d), s, windows)) for d, s in ((data, corrected), (scaled, by_hand)))
    assert len(found) == 2
    assert all(np.abs(a.data - b.data).max() < 1e-5 for a, b in zip(found, expected, strict=True))
    plain = run_statistics(Series(data), timing)
    assert plain.gain is None and np.isclose(plain.mean, np.maximum(data[mask], 0).mean(), rtol=1e-3)


def test_flat_masks_and_empty_images_are_handled():
    mask = np.zeros(SHAPE, bool)
    mask[5:20, 5:20, 7] = True  # one slice: polynomials in z are undetermined
    values = np.random.default_rng(0).gamma(50, 20, mask.sum())
    assert np.isfinite(hcp_gain(values, mask)).all()
    with pytest.raises(ConstantSeries, match="no voxel of the mean image is above 0"):
        hcp_gain(np.zeros(mask.sum()), mask)
