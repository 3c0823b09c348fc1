"""Participants: what they are (phenotypes), and what shows of it in their images (expressions)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm, qmc
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from neurostorm_bids.simulate.effects import DIAGNOSES, N_PAIRS, TRAITS, EffectSizes, Simulation

AGE_MEAN, AGE_SD, AGE_RANGE = 45.0, 12.0, (18.0, 90.0)
COGNITION_MEAN, COGNITION_SD = 100.0, 15.0
N_FIELDS = 6  # smooth fields in which mean images differ
N_CANDIDATES = 32  # low-discrepancy cohorts to choose the best of
SOURCES = ("sex", "diagnosis", "sex-own", "diagnosis-1", "diagnosis-2", "age", "age-own", "cognition", "cognition-own")


@dataclass(frozen=True, eq=False)
class Cohort:
    """Who takes part.

    Attributes
    ----------
    phenotypes : DataFrame
        Indexed by label: age (years), sex, diagnosis, cognition, site, family_id. Complete; a dataset may lack some.
    expressions : ndarray of shape (n, 5)
        In the order of ``TRAITS``; of SD 1 among people of the same sex and diagnosis.
    fingerprints : ndarray of shape (n, pairs)
        What is a person's own in the correlation of each pair, of SD 1.
    fields : ndarray of shape (n, 6)
        Coefficients of smooth fields in the mean image, of SD 1.
    fd_mm : ndarray of shape (n,)
        Mean framewise displacement.
    """

    phenotypes: pd.DataFrame
    expressions: np.ndarray
    fingerprints: np.ndarray
    fields: np.ndarray
    fd_mm: np.ndarray

    @property
    def labels(self) -> list[str]:
        """Participant labels, without ``sub-``."""
        return list(self.phenotypes.index)


def draw_cohort(simulation: Simulation) -> Cohort:
    """Draw the participants of a dataset; the same ones for the same plan."""
    n, effects = simulation.n_subjects, simulation.effects
    rng = np.random.default_rng([simulation.seed, 0])
    family = rng.permutation(n) // simulation.family_size
    shared = effects.heritability if simulation.family_size > 1 else 0.0
    uniform = _balanced(n, effects, rng) if simulation.draws == "balanced" else rng.random((n, len(SOURCES)))
    sources = dict(zip(SOURCES, _normal(uniform).T, strict=True))
    sources["cognition-own"] = _inherited(sources["cognition-own"][:, None], family, shared, rng)[:, 0]
    phenotypes, expressions = _participants(sources, effects)
    own = rng.standard_normal((n, N_PAIRS + N_FIELDS))
    own = _inherited(own, family, shared, rng)
    log_fd = _correlated(standardised(phenotypes["age"].to_numpy()), effects.motion_age, rng)
    phenotypes["site"] = [f"site{number + 1}" for number in rng.permutation(n) % simulation.n_sites]
    phenotypes["family_id"] = [f"F{number + 1:03d}" for number in family]
    width = max(2, len(str(n)))
    phenotypes.index = pd.Index([f"{number:0{width}d}" for number in range(1, n + 1)], name="participant_id")
    levels = simulation.levels
    fd_mm = levels.motion_mm * np.exp(levels.motion_spread * log_fd)
    return Cohort(phenotypes, expressions, own[:, :N_PAIRS], own[:, N_PAIRS:], fd_mm)


def standardised(values: np.ndarray) -> np.ndarray:
    """Values less their mean, by their SD (which may be 0)."""
    return (values - values.mean()) / (values.std() or 1.0)


def diagnosis_centres(effects: EffectSizes) -> np.ndarray:
    """Class means of the two diagnosis expressions: an equilateral triangle.  # (3, 2)"""
    angles = np.deg2rad([90.0, 210.0, 330.0])
    return effects.diagnosis_separation * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _participants(sources: dict[str, np.ndarray], effects: EffectSizes) -> tuple[pd.DataFrame, np.ndarray]:
    female = sources["sex"] > 0
    diagnosis = np.minimum((3 * norm.cdf(sources["diagnosis"])).astype(int), 2)
    plane = diagnosis_centres(effects)[diagnosis] + np.stack([sources["diagnosis-1"], sources["diagnosis-2"]], axis=1)
    sex = effects.sex_separation * (female - 0.5) + sources["sex-own"]
    expressions = {"sex": sex, "age": sources["age"], "diagnosis-1": plane[:, 0], "diagnosis-2": plane[:, 1]}
    expressions["cognition"] = sources["cognition"]
    age = AGE_MEAN + AGE_SD * _explained(sources, "age", effects.age_r2)
    cognition = COGNITION_MEAN + COGNITION_SD * _explained(sources, "cognition", effects.cognition_r2)
    phenotypes = pd.DataFrame(
        {
            "age": np.clip(age, *AGE_RANGE).round(1),
            "sex": np.where(female, "F", "M"),
            "diagnosis": np.array(DIAGNOSES)[diagnosis],
            "cognition": cognition.round(1),
        }
    )
    return phenotypes, np.stack([expressions[trait] for trait in TRAITS], axis=1)


def _explained(sources: dict[str, np.ndarray], trait: str, r2: float) -> np.ndarray:
    return np.sqrt(r2) * sources[trait] + np.sqrt(1 - r2) * sources[f"{trait}-own"]


def _correlated(values: np.ndarray, correlation: float, rng: np.random.Generator) -> np.ndarray:
    return correlation * values + np.sqrt(1 - correlation**2) * rng.standard_normal(len(values))


def _inherited(values: np.ndarray, family: np.ndarray, shared: float, rng: np.random.Generator) -> np.ndarray:
    """Values of which families have a share of the variance in common.  # (n, k)"""
    of_family = rng.standard_normal((len(values), values.shape[1]))[family]
    return np.sqrt(shared) * of_family + np.sqrt(1 - shared) * values


# --- a cohort that looks like its population ----------------------------------------------------------------------


def _balanced(n: int, effects: EffectSizes, rng: np.random.Generator) -> np.ndarray:
    """The best of several scrambled Sobol sequences.  # (n, sources) in (0, 1)"""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The balance properties", UserWarning)  # n need be no power of 2
        candidates = [qmc.Sobol(len(SOURCES), rng=rng).random(n) for _ in range(N_CANDIDATES)]
    return min(candidates, key=lambda uniform: _departure(uniform, effects))


def _departure(uniform: np.ndarray, effects: EffectSizes) -> float:
    """How far a cohort is from its population, in predictability and in correlations among its sources."""
    if len(uniform) < 2 * len(DIAGNOSES):
        return 0.0
    normal = _normal(uniform)
    sources = dict(zip(SOURCES, normal.T, strict=True))
    phenotypes, expressions = _participants(sources, effects)
    found = predictability(phenotypes, expressions, effects)
    expected = expected_predictability(effects)
    correlations = np.corrcoef(normal.T) - np.eye(len(SOURCES))
    off = [found[name] - expected[name] for name in expected]
    return float(np.abs([*off, 0.1 * np.abs(correlations).max()]).max())


def predictability(phenotypes: pd.DataFrame, expressions: np.ndarray, effects: EffectSizes) -> dict[str, float]:
    """What an observer of the expressions would reach: sex AUROC, age R2, balanced accuracy of the diagnosis."""
    if phenotypes["sex"].nunique() < 2:
        return dict.fromkeys(("sex", "age", "diagnosis"), 0.0)
    female = phenotypes["sex"] == "F"
    centres = diagnosis_centres(effects)
    distance = ((expressions[:, None, 2:4] - centres) ** 2).sum(axis=-1)  # (n, 3)
    age = AGE_MEAN + AGE_SD * np.sqrt(effects.age_r2) * expressions[:, 1]
    return {
        "sex": float(roc_auc_score(female, expressions[:, 0])),
        "age": float(r2_score(phenotypes["age"], age)),
        "diagnosis": float(
            balanced_accuracy_score(phenotypes["diagnosis"], np.array(DIAGNOSES)[distance.argmin(axis=1)])
        ),
    }


def expected_predictability(effects: EffectSizes) -> dict[str, float]:
    """The same in the population."""
    return {
        "sex": float(norm.cdf(effects.sex_separation / np.sqrt(2))),
        "age": effects.age_r2,
        "diagnosis": _triangle_accuracy(effects.diagnosis_separation),
    }


def _triangle_accuracy(separation: float, n_points: int = 4096) -> float:
    """Share of a unit normal around one corner of the triangle that lies nearest to that corner."""
    points = _normal(qmc.Sobol(2, rng=np.random.default_rng(0)).random(n_points))
    half_way = separation * np.sqrt(3) / 2  # to the bisecting lines, towards either other corner
    towards = np.array([[-0.5, -np.sqrt(0.75)], [0.5, -np.sqrt(0.75)]])
    return float((points @ towards.T < half_way).all(axis=1).mean())


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Standard normal values of uniform ones."""
    return norm.ppf(np.clip(uniform, 1e-9, 1 - 1e-9))
