"""Quality figures see what overlap cannot, and warn where a brain is misplaced."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from space_phantoms import run_of, write_image

from neurostorm_bids.errors import CoverageTooLow
from neurostorm_bids.inputs.runs import BoldImage
from neurostorm_bids.space import (
    FIGURES,
    Grid,
    RunQuality,
    Tally,
    assess,
    choose_route,
    require_coverage,
    template,
    to_grid,
)
from neurostorm_bids.space.quality import coverage
from neurostorm_bids.space.template import icbm152, surround, template_brain

GRID = Grid.of((48, 56, 48), [[-4, 0, 0, 94], [0, 4, 0, -130], [0, 0, 4, -78], [0, 0, 0, 1]], "MNI152NLin6Asym")
N_VOLUMES = 6


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    zooms=st.tuples(*[st.sampled_from([0.8, 1.0, 2.0, 2.4, 4.0])] * 3),
    reach_mm=st.sampled_from([0.5, 2.0, 4.1, 12.0]),
    share=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_surround_is_what_a_distance_transform_reaches(shape, zooms, reach_mm, share, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    far = np.full(shape, np.inf) if not mask.any() else distance_transform_edt(~mask, sampling=zooms)
    unsure = np.abs(far - reach_mm) < 1e-5  # voxels just there may fall to either side
    assert np.array_equal(surround(mask, zooms, reach_mm) | unsure, (far <= reach_mm) | unsure)


def run(folder: Path, *, shift_mm=(0, 0, 0), rows: slice = slice(None), t_r_s: float = 0.8, sd: float = 20):
    """The template brain as a run, moved by its affine, with a field of view of some sagittal rows only."""
    brain = template_brain(GRID)
    rng = np.random.default_rng(0)
    still = np.where(brain.brain, 300 + 600 * brain.image, 40)
    data = still[..., None] + rng.normal(0, sd, (*GRID.shape, N_VOLUMES)) * brain.brain[..., None]
    affine = GRID.matrix
    affine[:3, 3] += affine[:3, :3] @ [range(GRID.shape[0])[rows][0], 0, 0] + shift_mm
    bold = write_image(folder / "bold.nii", data[rows].astype(np.float32), affine)
    mask = write_image(folder / "mask.nii", brain.brain[rows].astype(np.uint8), affine)
    return run_of(BoldImage(bold, GRID.template, mask), t_r_s=t_r_s)


def quality_of(folder: Path, **kwargs) -> RunQuality:
    series = to_grid(choose_route(run(folder, **kwargs), GRID), GRID)
    tally = Tally(series)
    assert sum(1 for _ in series.observed_by(tally.add).volumes()) == N_VOLUMES
    return assess(series, tally)


def test_the_template_is_where_the_grid_says():
    brain = template_brain(GRID)
    centre = (np.argwhere(brain.brain) @ GRID.matrix[:3, :3].T + GRID.matrix[:3, 3]).mean(axis=0)
    np.testing.assert_allclose(centre, [0, -19, 8], atol=4)
    assert brain.brain.sum() * 64 == pytest.approx(1.88e6, rel=0.05)  # mm3
    assert brain.region[brain.brain].all()
    assert brain.region.sum() > 1.3 * brain.brain.sum()


def test_a_well_placed_run_raises_no_warning(tmp_path: Path):
    quality = quality_of(tmp_path)
    assert quality.warnings == ()
    assert quality.coverage == quality.dice == 1
    assert quality.outside_fov == quality.centroid_offset == 0
    assert quality.template_correlation > 0.95
    assert quality.lr_asymmetry < 0.1
    assert quality.t_r_in_range


def test_tsnr_is_mean_over_sd(tmp_path: Path):
    noisy, quiet = quality_of(tmp_path, sd=40), quality_of(tmp_path, sd=20)
    assert quiet.tsnr == pytest.approx(2 * noisy.tsnr, rel=0.02)
    brain = template_brain(GRID)
    expected = np.median(300 + 600 * brain.image[brain.brain]) / 20
    assert quiet.tsnr == pytest.approx(expected, rel=0.15)  # SD of six volumes: median below the true SD


@pytest.mark.parametrize("shift_mm", [(12, 0, 0), (0, -12, 0), (0, 0, 12)])
def test_a_shift_is_measured_and_warned_of(tmp_path: Path, shift_mm):
    quality = quality_of(tmp_path, shift_mm=shift_mm)
    assert quality.centroid_offset == pytest.approx(12, abs=1)
    assert any("off the template's centre" in warning for warning in quality.warnings)
    assert quality.template_correlation < 0.9


def test_a_cut_field_of_view_is_told_from_a_misplacement(tmp_path: Path):
    quality = quality_of(tmp_path, rows=slice(0, 27))
    brain = template_brain(GRID).brain
    cut = 1 - brain[:27].sum() / brain.sum()
    assert quality.outside_fov == pytest.approx(cut) and cut > 0.3
    assert quality.coverage == pytest.approx(1 - cut)
    assert quality.dice == 1 and quality.centroid_offset == 0
    assert quality.warnings == (f"{cut:.0%} of the template brain is outside the image",)


def test_too_little_coverage_is_refused_before_voxels_are_read(tmp_path: Path):
    series = to_grid(choose_route(run(tmp_path, rows=slice(0, 20)), GRID), GRID)
    assert 0 < coverage(series) < 0.5
    require_coverage(series, coverage(series))
    with pytest.raises(CoverageTooLow, match=r"covers \d+% of the template brain.*--min-coverage"):
        require_coverage(series, 0.5)


def test_a_repetition_time_the_checkpoints_never_saw_is_flagged(tmp_path: Path):
    quality = quality_of(tmp_path, t_r_s=2.0)
    assert not quality.t_r_in_range
    assert any("repetition time" in warning for warning in quality.warnings)


@pytest.mark.parametrize(("t_r_s", "seen"), [(0.699, False), (0.7, True), (1.0, True), (1.001, False)])
def test_the_ends_of_the_range_of_repetition_times_belong_to_it(tmp_path: Path, t_r_s: float, seen: bool):
    series = to_grid(choose_route(run(tmp_path, t_r_s=t_r_s), GRID), GRID)
    assert assess(series, Tally(series)).t_r_in_range == seen


def test_a_lopsided_signal_is_seen(tmp_path: Path):
    series = to_grid(choose_route(run(tmp_path), GRID), GRID)
    even, lopsided = Tally(series), Tally(series)
    for volume in series.volumes():
        even.add(volume)
        lopsided.add(volume * np.linspace(0.5, 1.5, GRID.shape[0], dtype=np.float32)[:, None, None])
    assert assess(series, lopsided).lr_asymmetry > assess(series, even).lr_asymmetry + 0.2


def test_figures_that_do_not_exist_are_none(tmp_path: Path):
    series = to_grid(choose_route(run(tmp_path), GRID), GRID)
    tally = Tally(series)
    tally.add(np.zeros(GRID.shape, np.float32))
    quality = assess(series, tally)
    assert quality.tsnr is quality.template_correlation is quality.lr_asymmetry is None
    assert all("resembles" not in warning for warning in quality.warnings)


def test_a_brain_outside_the_grid_has_no_centroid(tmp_path: Path):
    one = run(tmp_path)
    corner = np.zeros(GRID.shape, np.uint8)
    corner[0, 0, 0] = 1
    write_image(one.images[0].mask, corner, GRID.matrix)
    matrix = GRID.matrix.copy()
    matrix[:3, 3] += matrix[:3, :3] @ [2, 2, 2]
    inner = Grid.of([n - 4 for n in GRID.shape], matrix, GRID.template)
    series = to_grid(choose_route(one, inner), inner)
    assert assess(series, Tally(series)).centroid_offset is None


def test_every_figure_is_described():
    assert [field.name for field in fields(RunQuality)] == list(FIGURES)


def test_figures_are_those_of_numpy(tmp_path: Path):
    """Mean, SD, correlation, overlap and mirror image, computed from whole arrays."""
    series = to_grid(choose_route(run(tmp_path, shift_mm=(8, 0, 0), rows=slice(0, 40)), GRID), GRID)
    rng = np.random.default_rng(1)
    volumes = rng.normal(500, 50, (5, *GRID.shape)).astype(np.float32)
    volumes[:, 24, 28, 24] = 7.0  # a voxel that never changes counts for no tSNR
    tally = Tally(series)
    for volume in volumes:
        tally.add(volume)
    template, brain = template_brain(GRID), series.brain
    mean, sd = volumes.mean(axis=0, dtype=np.float64), volumes.std(axis=0, dtype=np.float64, ddof=1)
    quality = assess(series, tally)
    region = template.region | brain
    np.testing.assert_allclose(tally.mean_image()[region], mean[region], rtol=1e-6)
    assert not tally.mean_image()[~region].any()
    varies = brain & (sd > 0)
    assert quality.tsnr == pytest.approx(np.median(mean[varies] / sd[varies]), rel=1e-5)
    compared = template.region & series.inside
    expected = np.corrcoef(mean[compared], template.image[compared])[0, 1]
    assert quality.template_correlation == pytest.approx(expected, abs=1e-6)
    both = (brain & template.brain).sum()
    seen = (template.brain & series.inside).sum()
    assert quality.coverage == pytest.approx(both / template.brain.sum())
    assert quality.outside_fov == pytest.approx(1 - seen / template.brain.sum())
    assert quality.dice == pytest.approx(2 * both / (seen + brain.sum()))
    x = GRID.matrix[0, 0] * np.arange(GRID.shape[0]) + GRID.matrix[0, 3]
    mirrored = [int(np.flatnonzero(x == -value)[0]) if -value in x else None for value in x]
    there = np.array([place is not None for place in mirrored])
    other = np.array([place or 0 for place in mirrored])
    twice = brain & brain[other] & there[:, None, None]
    expected = 1 - np.corrcoef(mean[twice], mean[other][twice])[0, 1]
    assert quality.lr_asymmetry == pytest.approx(expected, abs=1e-6)


def test_a_run_that_covers_too_little_is_told_with_its_figures(tmp_path: Path):
    series = to_grid(choose_route(run(tmp_path, rows=slice(0, 20)), GRID), GRID)
    with pytest.raises(CoverageTooLow) as caught:
        require_coverage(series, 0.8)
    assert caught.value.fault == f"the run's brain mask covers {coverage(series):.0%} of the template brain"
    assert (caught.value.file, caught.value.expected) == (tmp_path / "bold.nii", "at least 80%")
    assert caught.value.remedy.startswith("Look at its placement and mask; --min-coverage lowers the limit")


def test_maps_are_of_a_millimetre_and_of_their_tissue():
    t1, grey, white = (icbm152(tissue) for tissue in ("t1", "gm", "wm"))
    for made in (t1, grey, white):
        there = made.on(made.geometry, "nearest")
        assert there.max() == 1 and there.dtype == np.float32
        np.testing.assert_allclose(made.geometry.zooms, 1)
        assert made.geometry.template == "MNI152NLin2009Sym"
    at = Grid.of((2, 1, 1), [[30, 0, 0, -25], [0, 1, 0, -20], [0, 0, 1, 28], [0, 0, 0, 1]], "MNI152NLin2009Sym")
    assert white.on(at, "nearest")[0, 0, 0] > 0.9 > 0.1 > grey.on(at, "nearest")[0, 0, 0]  # the centrum semiovale
    far = Grid.of((2, 1, 1), [[1, 0, 0, 300], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "MNI152NLin2009Sym")
    assert not t1.on(far, "linear").any()


def test_the_region_reaches_twelve_millimetres_beyond_the_brain():
    brain = template_brain(GRID)
    apart = np.array([[4 * n, 0, 0] for n in range(1, 5)])
    rows = np.flatnonzero(brain.brain[:, 28, 20])
    beyond = brain.region[rows[-1] + 1 : rows[-1] + 1 + len(apart), 28, 20]
    assert beyond.tolist() == [True, True, True, False]


def test_maps_under_another_name_are_had_from_nilearn(monkeypatch):
    bundled = {tissue: icbm152(tissue) for tissue in ("t1", "gm", "wm")}
    monkeypatch.setattr(template, "FILE_ENDS", "_of_another_release.nii.gz")
    for tissue, known in bundled.items():
        made = icbm152(tissue)
        at = made.on(known.geometry, "nearest")
        assert np.corrcoef(at.ravel(), known.voxels.ravel())[0, 1] > 0.99, tissue


def test_two_volumes_have_a_tsnr_and_noise_of_the_last_digit_has_none(tmp_path: Path):
    series = to_grid(choose_route(run(tmp_path), GRID), GRID)
    for sd, expected in ((50.0, 500 / 50), (0.001, None)):
        tally = Tally(series)
        for sign in (-1, 1):
            tally.add(np.full(GRID.shape, 500 + sign * sd / np.sqrt(2), np.float32))
        assert tally.tsnr() == (expected if expected is None else pytest.approx(expected, rel=1e-5))
