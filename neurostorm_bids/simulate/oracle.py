"""The oracle: an observer who knows the generator and sees the networks' time courses without noise.

What it reaches is the ceiling for any method on the same runs. It fits nothing: all its parameters are those of the
generator, so there is no training set and no fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, roc_auc_score

from neurostorm_bids.simulate.brain import pair_loadings
from neurostorm_bids.simulate.cohort import (
    AGE_MEAN,
    AGE_SD,
    COGNITION_MEAN,
    COGNITION_SD,
    Cohort,
    diagnosis_centres,
    draw_cohort,
)
from neurostorm_bids.simulate.effects import CONDITIONS, DIAGNOSES, N_PAIRS, TRAITS, Simulation
from neurostorm_bids.simulate.runs import COMMON_COUPLING, REST, Block, Run, persistence, response, runs_of

Ceilings = dict[str, dict[str, float]]


def ceilings(simulation: Simulation, *, clip_s: float = 16.0, delay_s: float = 5.0) -> Ceilings:
    """Figures that the oracle reaches on the runs of a dataset.

    Parameters
    ----------
    simulation : Simulation
    clip_s, delay_s : float
        Length of the clips from which task states are told, and how long after its block a clip begins.

    Returns
    -------
    dict
        ``sex`` (auroc, balanced_accuracy), ``age`` and ``cognition`` (r2, mae), ``diagnosis`` (balanced_accuracy);
        with several runs of a task ``identity`` (rank1 across runs, gallery); with task runs ``state`` (accuracy).
    """
    cohort = draw_cohort(simulation)
    runs = runs_of(simulation, cohort)
    observed = Observations.of(simulation, cohort, runs)
    found = {**_sex(observed), **_scores(observed), **_diagnosis(observed)}
    return {**found, **_identity(observed, runs), **_state(simulation, runs, clip_s, delay_s)}


@dataclass(frozen=True, eq=False)
class Observations:
    """What the oracle takes from each run, and how exact it is.

    Attributes
    ----------
    couplings : ndarray of shape (runs, pairs)
        Fisher-z correlations of the innovations of each pair.
    error : ndarray of shape (runs,)
        Variance of each around the participant's own.
    """

    simulation: Simulation
    cohort: Cohort
    subjects: np.ndarray  # (runs,)
    couplings: np.ndarray
    error: np.ndarray
    images: np.ndarray  # (runs, traits): coefficients of the traits' maps in the mean image

    @classmethod
    def of(cls, simulation: Simulation, cohort: Cohort, runs: list[Run]) -> Observations:
        """Observe every run."""
        spread = simulation.effects.run_to_run**2
        return cls(
            simulation,
            cohort,
            np.array([run.subject for run in runs]),
            np.stack([coupling_of(run.courses, persistence(simulation)) for run in runs]),
            np.full(len(runs), spread + 1 / (simulation.n_volumes - 4)),
            np.stack([run.trait_coefficients for run in runs]),
        )

    def expressions(self) -> tuple[np.ndarray, np.ndarray]:
        """Estimates of every participant's expressions and their error variance.  # (n, traits), (n, traits)"""
        estimates, errors = [], []
        for subject in range(len(self.cohort.labels)):
            mine = self.subjects == subject
            estimate, error = self._combined(self.couplings[mine], self.error[mine], self.images[mine])
            estimates.append(estimate)
            errors.append(error)
        return np.stack(estimates), np.stack(errors)

    def _combined(self, couplings: np.ndarray, error: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both sources, each by its precision; nothing known is an estimate of 0 without bound."""
        effects, n_runs = self.simulation.effects, len(couplings)
        contrast = (couplings.mean(axis=0) - COMMON_COUPLING) @ pair_loadings() / N_PAIRS  # (traits,)
        covariance = np.array([effects.of(trait).covariance for trait in TRAITS])
        mean_image = np.array([effects.of(trait).mean_image for trait in TRAITS])
        spread = error.mean() / n_runs + effects.fingerprint.covariance**2  # around what the traits say
        of_coupling = covariance**2 * N_PAIRS / spread
        of_image = mean_image**2 * n_runs / max(self.simulation.levels.run_field, 1e-6) ** 2
        from_coupling = contrast / np.where(covariance, covariance, 1)
        from_image = images.mean(axis=0) / np.where(mean_image, mean_image, 1)
        precision = of_coupling + of_image
        estimate = (of_coupling * from_coupling + of_image * from_image) / np.where(precision, precision, 1)
        return estimate, 1 / np.maximum(precision, 1e-9)


def coupling_of(courses: np.ndarray, phi: float) -> np.ndarray:
    """Fisher-z correlation within each pair, after taking the autocorrelation out.  # (networks, t) -> (pairs,)"""
    innovations = courses[: 2 * N_PAIRS, 1:] - phi * courses[: 2 * N_PAIRS, :-1]
    innovations = innovations - innovations.mean(axis=1, keepdims=True)
    first, second = innovations[:N_PAIRS], innovations[N_PAIRS:]
    r = (first * second).sum(axis=1) / np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.arctanh(np.clip(r, -0.999, 0.999))


# --- phenotypes -----------------------------------------------------------------------------------------------------


def _sex(observed: Observations) -> Ceilings:
    sex = observed.cohort.phenotypes["sex"]
    if sex.nunique() < 2:
        return {}
    estimate = observed.expressions()[0][:, TRAITS.index("sex")]
    predicted = np.where(estimate > 0, "F", "M")
    accuracy = balanced_accuracy_score(sex, predicted)
    return {"sex": {"auroc": float(roc_auc_score(sex == "F", estimate)), "balanced_accuracy": float(accuracy)}}


def _scores(observed: Observations) -> Ceilings:
    estimates, errors = observed.expressions()
    effects, found = observed.simulation.effects, {}
    for name, r2, mean, sd in (
        ("age", effects.age_r2, AGE_MEAN, AGE_SD),
        ("cognition", effects.cognition_r2, COGNITION_MEAN, COGNITION_SD),
    ):
        trait = TRAITS.index(name)
        posterior = estimates[:, trait] / (1 + errors[:, trait])
        truth = observed.cohort.phenotypes[name]
        if len(truth) > 1:
            predicted = mean + sd * np.sqrt(r2) * posterior
            mae = mean_absolute_error(truth, predicted)
            found[name] = {"r2": float(r2_score(truth, predicted)), "mae": float(mae)}
    return found


def _diagnosis(observed: Observations) -> Ceilings:
    truth = observed.cohort.phenotypes["diagnosis"]
    if truth.nunique() < len(DIAGNOSES):
        return {}
    plane = observed.expressions()[0][:, [TRAITS.index("diagnosis-1"), TRAITS.index("diagnosis-2")]]
    distance = ((plane[:, None] - diagnosis_centres(observed.simulation.effects)) ** 2).sum(axis=-1)  # (n, 3)
    predicted = np.array(DIAGNOSES)[distance.argmin(axis=1)]
    return {"diagnosis": {"balanced_accuracy": float(balanced_accuracy_score(truth, predicted))}}


# --- identity -------------------------------------------------------------------------------------------------------


def _identity(observed: Observations, runs: list[Run]) -> Ceilings:
    """Each participant's first run of the first task looked for among everybody's last."""
    task = observed.simulation.tasks[0]
    places: dict[int, list[int]] = {}
    for number, run in enumerate(runs):
        if run.task == task:
            places.setdefault(run.subject, []).append(number)
    both = [(numbers[0], numbers[-1]) for numbers in places.values() if len(numbers) > 1]
    if len(both) < 2:
        return {}
    query, gallery = np.array(both).T
    likeness = _likeness(_signature(observed, runs, query), _signature(observed, runs, gallery), _same(observed))
    rank1 = (likeness.argmax(axis=1) == np.arange(len(both))).mean()
    return {"identity": {"rank1": float(rank1), "gallery": float(len(both))}}


def _signature(observed: Observations, runs: list[Run], chosen: np.ndarray) -> np.ndarray:
    """Couplings and mean-image coefficients of runs, each of SD 1 over people and runs.  # (runs, features)"""
    between, within = _variances(observed)
    fields = np.stack([runs[number].field_coefficients for number in chosen])
    features = np.concatenate([observed.couplings[chosen] - COMMON_COUPLING, fields], axis=1)
    return features / np.sqrt(between + within)


def _same(observed: Observations) -> np.ndarray:
    """Correlation of each feature over two runs of one person.  # (features,)"""
    between, within = _variances(observed)
    return between / (between + within)


def _variances(observed: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Variance of each feature between people, and between runs of a person."""
    effects, levels = observed.simulation.effects, observed.simulation.levels
    spread = np.array([1 + effects.sex_separation**2 / 4, 1, *[1 + effects.diagnosis_separation**2 / 2] * 2, 1])
    covariance = np.array([effects.of(trait).covariance for trait in TRAITS])
    coupling = (pair_loadings() ** 2) @ (spread * covariance**2)  # (pairs,)
    coupling += effects.fingerprint.covariance**2
    n_fields = observed.cohort.fields.shape[1]
    between = np.concatenate([coupling, np.full(n_fields, effects.fingerprint.mean_image**2)])
    within = np.concatenate([np.full(N_PAIRS, observed.error.mean()), np.full(n_fields, levels.run_field**2)])
    return between, np.maximum(within, 1e-12)


def _likeness(query: np.ndarray, gallery: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Log-likelihood ratio of "one person" against "two", up to what does not depend on the pair.  # (q, g)"""
    rest = 1 - same**2
    cross = (query * same / rest) @ gallery.T
    squares = ((query**2 * same**2 / rest).sum(axis=1))[:, None] + (gallery**2 * same**2 / rest).sum(axis=1)
    return cross - squares / 2


# --- task state -----------------------------------------------------------------------------------------------------


def _state(simulation: Simulation, runs: list[Run], clip_s: float, delay_s: float) -> Ceilings:
    n_frames = round(clip_s / simulation.t_r_s)
    right = [hit for run in runs if run.task != REST for hit in _told(run, n_frames, delay_s)]
    return {"state": {"accuracy": float(np.mean(right)), "n_clips": float(len(right))}} if right else {}


def _told(run: Run, n_frames: int, delay_s: float) -> list[bool]:
    """Whether the condition of each block is told from the clip that begins ``delay_s`` after it."""
    plan, right = run.simulation, []
    names = CONDITIONS[: plan.n_conditions]
    first_network = 2 * N_PAIRS
    for block in run.blocks:
        start = int(np.ceil((block.onset_s + delay_s) / plan.t_r_s - 1e-9))
        clip = run.courses[first_network : first_network + len(names), start : start + n_frames]
        if clip.shape[1] == n_frames:
            times = (start + np.arange(n_frames)) * plan.t_r_s - block.onset_s
            expected = response([Block(0.0, block.duration_s, block.condition)], block.condition, times)
            scores = _whitened(clip, persistence(plan)) @ _whitened(expected[None], persistence(plan))[0]
            right.append(names[int(scores.argmax())] == block.condition)
    return right


def _whitened(series: np.ndarray, phi: float) -> np.ndarray:
    """Series of white noise in place of autoregressive noise of SD 1.  # (k, t) -> (k, t)"""
    innovations = (series[:, 1:] - phi * series[:, :-1]) / np.sqrt(1 - phi**2)
    return np.concatenate([series[:, :1], innovations], axis=1)
