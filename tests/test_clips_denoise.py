"""Confound regression: a planted confound goes, the rest and the mean image stay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nilearn.signal import clean

from neurostorm_bids.clips import Timing, run_statistics
from neurostorm_bids.clips import denoise as denoise_module
from neurostorm_bids.clips.denoise import confound_regressors, denoised, orthonormal_basis
from neurostorm_bids.errors import ConfoundsUnusable

SHAPE = (5, 6, 4)
MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
TISSUE = ["csf", "white_matter", "global_signal"]


class Series:
    def __init__(self, data: np.ndarray, mask: np.ndarray):
        self.data, self.mask, self.t_r_s, self.n_volumes = data, mask, 2.0, data.shape[-1]

    def volumes(self, start: int = 0) -> Iterator[np.ndarray]:
        for index in range(start, self.n_volumes):
            yield self.data[..., index].astype(np.float32)


def confounds_table(folder: Path, n_volumes: int = 120, drop: str | None = None) -> tuple[Path, Path, dict]:
    """A table and sidecar with fMRIPrep's columns; derivatives start with n/a, as fMRIPrep writes them."""
    rng = np.random.default_rng(0)
    columns = {}
    for name in (*MOTION, *TISSUE):
        series = rng.normal(size=n_volumes).cumsum() * 0.05
        slope = np.diff(series, prepend=np.nan)
        columns |= {name: series, f"{name}_power2": series**2}
        columns |= {f"{name}_derivative1": slope, f"{name}_derivative1_power2": slope**2}
    meta = {}
    for number in range(14):
        name, tissue = f"{'w' if number < 7 else 'c'}_comp_cor_{number % 7:02d}", "WM" if number < 7 else "CSF"
        columns[name] = rng.normal(size=n_volumes)
        meta[name] = {"Method": "aCompCor", "Mask": tissue, "Retained": True, "VarianceExplained": 0.1}
    at = (np.arange(n_volumes) + 0.5) / n_volumes
    columns |= {f"cosine{k:02d}": np.cos(np.pi * (k + 1) * at) for k in range(3)}
    columns.pop(drop, None)
    lines = ["\t".join(columns)]
    for row in zip(*columns.values(), strict=True):
        lines.append("\t".join("n/a" if np.isnan(value) else repr(float(value)) for value in row))
    table, sidecar = folder / "sub-01_desc-confounds_regressors.tsv", folder / "sub-01_desc-confounds_regressors.json"
    table.write_text("\n".join(lines) + "\n")
    sidecar.write_text(json.dumps(meta))
    return table, sidecar, columns


def brain(n_volumes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < 0.7
    data = rng.gamma(9, 100, (*SHAPE, 1)) + rng.normal(0, 5, (*SHAPE, n_volumes))
    return data.astype(np.float32), mask


def read(series) -> np.ndarray:
    return np.stack(list(series.volumes()), axis=-1)


@pytest.mark.parametrize(("strategy", "n_regressors"), [("24P", 24), ("36P", 36), ("acompcor", 12 + 10 + 3)])
def test_strategies_take_the_columns_of_their_papers(tmp_path, strategy, n_regressors):
    table, sidecar, columns = confounds_table(tmp_path)
    regressors = confound_regressors(table, sidecar, strategy)
    assert regressors.shape == (120, n_regressors)
    found = {name for name, values in columns.items() if any(np.allclose(values[1:], r[1:]) for r in regressors.T)}
    assert set(MOTION) <= found
    assert (set(TISSUE) <= found) == (strategy == "36P")
    assert ("cosine02" in found) == ("w_comp_cor_04" in found) == ("c_comp_cor_04" in found) == (strategy == "acompcor")
    assert "w_comp_cor_05" not in found


def test_a_planted_confound_goes_and_the_mean_image_stays(tmp_path):
    table, sidecar, _ = confounds_table(tmp_path)
    regressors = confound_regressors(table, sidecar, "24P")
    data, mask = brain(120)
    weights = np.random.default_rng(5).normal(0, 40, (*SHAPE, 24))
    planted = data + (weights @ (regressors - regressors.mean(axis=0)).T).astype(np.float32)
    clean_of_planted, clean_of_plain = (read(denoised(Series(d, mask), regressors))[mask] for d in (planted, data))
    assert np.abs(clean_of_planted - clean_of_plain).max() < 2e-3
    assert np.abs((planted - data)[mask]).max() > 20
    assert np.allclose(clean_of_planted.mean(axis=1), data[mask].mean(axis=1), atol=1e-3)


def test_residuals_are_those_of_nilearn(tmp_path):
    table, sidecar, _ = confounds_table(tmp_path)
    regressors = confound_regressors(table, sidecar, "36P")
    data, mask = brain(120)
    series = denoised(Series(data, mask), regressors)
    expected = clean(
        data[mask].T.astype(float), confounds=regressors, detrend=True, standardize=None, standardize_confounds=True
    )
    found = read(series)[mask].T
    # nilearn detrends data and confounds one after the other, which spans the same space
    assert np.abs(found - found.mean(axis=0) - expected).max() < 1e-3
    assert series.n_regressors == 37


def test_dummies_neither_count_nor_change_and_background_passes():
    rng = np.random.default_rng(3)
    data, mask = brain(60)
    data[..., :4] += 5000
    regressors = rng.normal(size=(60, 5))
    cleaned = read(denoised(Series(data, mask), regressors, n_dummies=4))
    assert np.array_equal(cleaned[..., :4], data[..., :4])
    assert np.array_equal(cleaned[~mask], data[~mask])
    alone = read(denoised(Series(data[..., 4:], mask), regressors[4:]))
    assert np.array_equal(cleaned[..., 4:], alone)
    assert np.array_equal(
        np.stack(list(denoised(Series(data, mask), regressors, n_dummies=4).volumes(10)), -1), cleaned[..., 10:]
    )


def test_the_size_of_groups_changes_nothing_that_matters(monkeypatch):
    data, mask = brain(61)
    regressors = np.random.default_rng(3).normal(size=(61, 5))
    whole = read(denoised(Series(data, mask), regressors))
    monkeypatch.setattr(denoise_module, "GROUP", 7)
    assert np.allclose(whole, read(denoised(Series(data, mask), regressors)), atol=1e-3)


def test_a_denoised_series_goes_on_to_statistics():
    data, mask = brain(60)
    series = denoised(Series(data, mask), np.random.default_rng(3).normal(size=(60, 5)))
    plain = run_statistics(Series(data, mask), Timing.of(60, 2.0))
    statistics = run_statistics(series, Timing.of(60, 2.0))
    assert statistics.mean == pytest.approx(plain.mean, rel=1e-4)
    assert statistics.temporal_variance_share < plain.temporal_variance_share


def test_observers_see_what_was_cleaned():
    data, mask = brain(60)
    series, seen = denoised(Series(data, mask), np.random.default_rng(3).normal(size=(60, 5))), []
    given = read(series.observed_by(lambda volume: seen.append(volume.copy())))
    assert np.array_equal(np.stack(seen, axis=-1), given) and np.array_equal(given, read(series))
    assert len(seen) == 60  # the series itself is not observed


def test_redundant_and_constant_regressors_count_once():
    rng = np.random.default_rng(0)
    regressors = rng.normal(size=(50, 3))
    doubled = np.column_stack([regressors, regressors @ rng.normal(size=(3, 3)), np.ones(50), np.zeros(50)])
    basis = orthonormal_basis(doubled)
    assert basis.shape == (50, 4)  # the trend is the fourth
    assert np.allclose(basis.T @ basis, np.eye(4), atol=1e-12) and np.abs(basis.sum(axis=0)).max() < 1e-12


def test_unusable_confounds_are_refused(tmp_path):
    data, mask = brain(40)
    with pytest.raises(ConfoundsUnusable, match="39 rows for 40 volumes"):
        denoised(Series(data, mask), np.zeros((39, 2)))
    with pytest.raises(ConfoundsUnusable, match=r"25 independent regressors for 40 volumes.*at least 50 volumes"):
        denoised(Series(data, mask), np.random.default_rng(0).normal(size=(40, 24)))
    table, sidecar, _ = confounds_table(tmp_path, drop="rot_y_derivative1")
    with pytest.raises(ConfoundsUnusable, match=r"--denoise 24P cannot be built.*rot_y_derivative1") as caught:
        confound_regressors(table, sidecar, "24P")
    assert caught.value.file == table
    table, _, _ = confounds_table(tmp_path)
    with pytest.raises(ConfoundsUnusable, match="--denoise acompcor cannot be built"):
        confound_regressors(table, None, "acompcor")
    table.write_text(table.read_text().replace("trans_x", "trans_other", 1))
    with pytest.raises(ConfoundsUnusable, match="--denoise 36P cannot be built"):
        confound_regressors(table, sidecar, "36P")


def test_missing_values_beyond_the_first_volume_are_refused(tmp_path):
    table, sidecar, columns = confounds_table(tmp_path)
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    rows[7][list(columns).index("rot_x")] = "n/a"
    table.write_text("".join("\t".join(row) + "\n" for row in rows))
    with pytest.raises(ConfoundsUnusable, match="columns that --denoise 24P needs hold missing values") as caught:
        confound_regressors(table, sidecar, "24P")
    assert caught.value.file == table


def test_the_real_table_of_fmriprep_gives_every_strategy(shared):
    folder = shared / "real" / "confounds"
    table, sidecar = (folder / f"test_desc-confounds_regressors.{ending}" for ending in ("tsv", "json"))
    assert [confound_regressors(table, sidecar, s).shape for s in ("24P", "36P", "acompcor")] == [
        (30, 24),
        (30, 36),
        (30, 26),
    ]
