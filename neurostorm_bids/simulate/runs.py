"""One run before it becomes an image: network time courses, task blocks, head motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from scipy.signal import lfilter

from neurostorm_bids.inputs.motion import framewise_displacement
from neurostorm_bids.simulate.brain import pair_loadings
from neurostorm_bids.simulate.cohort import N_FIELDS, Cohort
from neurostorm_bids.simulate.effects import CONDITIONS, N_PAIRS, TRAITS, Simulation

COMMON_COUPLING = 0.2  # Fisher z of every pair before anything individual
REST = "rest"
HEAD_RADIUS_MM = 50.0


class Stream(IntEnum):
    """Sources of random numbers of a run, one for each thing drawn, so that none depends on another."""

    COUPLING = 1
    BLOCKS = 2
    COURSES = 3
    MOTION = 4
    TRAITS = 5
    FIELDS = 6
    NOISE = 7
    SITE = 8


@dataclass(frozen=True)
class Block:
    """One block of a task, in seconds from the first volume."""

    onset_s: float
    duration_s: float
    condition: str


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a participant, and everything that was drawn for it.

    ``subject`` counts from 0 in the cohort; ``key`` sets this run's random numbers apart from all others'.
    """

    simulation: Simulation
    cohort: Cohort
    subject: int
    entities: dict[str, str]
    key: tuple[int, ...]

    def rng(self, stream: Stream) -> np.random.Generator:
        """A source of random numbers of this run's own."""
        return np.random.default_rng([self.simulation.seed, stream, *self.key])

    @property
    def task(self) -> str:
        return self.entities["task"]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Task blocks; a rest run has none."""
        if self.task == REST:
            return ()
        plan = self.simulation
        start = plan.n_dummies * plan.t_r_s
        n_blocks = int((plan.n_volumes * plan.t_r_s - start) / plan.block_s + 1e-9)
        rng = self.rng(Stream.BLOCKS)
        order = [name for _ in range(n_blocks) for name in rng.permutation(CONDITIONS[: plan.n_conditions])][:n_blocks]
        return tuple(
            Block(round(start + plan.block_s * place, 3), plan.block_s, str(name)) for place, name in enumerate(order)
        )

    @cached_property
    def coupling(self) -> np.ndarray:
        """Correlation within each pair.  # (pairs,)"""
        effects = self.simulation.effects
        z = np.full(N_PAIRS, COMMON_COUPLING) + pair_loadings() @ self._shown("covariance")
        z += effects.fingerprint.covariance * self.cohort.fingerprints[self.subject]
        z += effects.run_to_run * self.rng(Stream.COUPLING).standard_normal(N_PAIRS)
        return np.tanh(z)

    def _shown(self, where: str) -> np.ndarray:
        """Expressions times their effect.  # (traits,)"""
        sizes = np.array([getattr(self.simulation.effects.of(trait), where) for trait in TRAITS])
        return sizes * self.cohort.expressions[self.subject]

    @cached_property
    def courses(self) -> np.ndarray:
        """Time courses of the networks, spontaneous fluctuation of SD 1 plus responses.  # (networks, t)"""
        plan = self.simulation
        rng = self.rng(Stream.COURSES)
        white = rng.standard_normal((2 * N_PAIRS + len(CONDITIONS), plan.n_volumes))
        first, second = white[:N_PAIRS], white[N_PAIRS : 2 * N_PAIRS]
        r = self.coupling[:, None]
        white[N_PAIRS : 2 * N_PAIRS] = r * first + np.sqrt(1 - r**2) * second
        courses = autoregressive(white, persistence(plan))
        courses[2 * N_PAIRS :] += plan.effects.task * self.responses
        return courses

    @cached_property
    def responses(self) -> np.ndarray:
        """Haemodynamic response to each condition's blocks, 1 at the plateau.  # (conditions, t)"""
        plan = self.simulation
        times = np.arange(plan.n_volumes) * plan.t_r_s
        return np.stack([response(self.blocks, name, times) for name in CONDITIONS])

    @cached_property
    def motion(self) -> np.ndarray:
        """Translations (mm) and rotations (rad).  # (t, 6)"""
        plan, rng = self.simulation, self.rng(Stream.MOTION)
        steps = rng.standard_t(4, (plan.n_volumes, 6))
        walk = lfilter([1.0], [1.0, -0.98], steps, axis=0)
        walk = (walk - walk[0]) / np.repeat([1.0, HEAD_RADIUS_MM], 3)
        mean = np.nanmean(framewise_displacement(walk[:, :3], walk[:, 3:]))
        wanted = self.cohort.fd_mm[self.subject] * np.exp(0.1 * rng.standard_normal())
        return walk * wanted / mean

    @cached_property
    def fd_mm(self) -> np.ndarray:
        """Framewise displacement, NaN for the first volume.  # (t,)"""
        return framewise_displacement(self.motion[:, :3], self.motion[:, 3:])

    @cached_property
    def trait_coefficients(self) -> np.ndarray:
        """How far each trait's map shows in the mean image, run-to-run changes included.  # (traits,)"""
        effects = self.simulation.effects
        changes = self.rng(Stream.TRAITS).standard_normal(len(TRAITS))
        shows = np.array([effects.of(trait).mean_image > 0 for trait in TRAITS])
        return self._shown("mean_image") + shows * self.simulation.levels.run_field * changes

    @cached_property
    def field_coefficients(self) -> np.ndarray:
        """How far each smooth field shows in the mean image: participant, run and site.  # (fields,)"""
        plan = self.simulation
        changes = self.rng(Stream.FIELDS).standard_normal(N_FIELDS)
        own = plan.effects.fingerprint.mean_image * self.cohort.fields[self.subject]
        return own + plan.levels.run_field * changes + self._site()[:-1] * plan.levels.site_field

    @property
    def noise_level(self) -> float:
        """SD of the white noise; scanners differ."""
        levels = self.simulation.levels
        return levels.noise * float(np.exp(self._site()[-1] * levels.site_noise))

    def _site(self) -> np.ndarray:
        """What is particular to the site: fields, and noise.  # (fields + 1,)"""
        if self.simulation.n_sites == 1:
            return np.zeros(N_FIELDS + 1)
        number = int(self.cohort.phenotypes["site"].iloc[self.subject].removeprefix("site"))
        return np.random.default_rng([self.simulation.seed, Stream.SITE, number]).standard_normal(N_FIELDS + 1)


def runs_of(simulation: Simulation, cohort: Cohort) -> list[Run]:
    """All runs of a dataset in the order of their names."""
    return [
        Run(simulation, cohort, subject, entities, (subject, *key))
        for subject, label in enumerate(cohort.labels)
        for entities, key in _places(simulation, subject, label)
    ]


def _places(simulation: Simulation, subject: int, label: str) -> list[tuple[dict[str, str], tuple[int, ...]]]:
    n_sessions = simulation.sessions[subject % len(simulation.sessions)]
    digits = 1 if version_of(simulation.fmriprep_version) < (22,) else 2
    places: list[tuple[dict[str, str], tuple[int, ...]]] = []
    for session in range(1, n_sessions + 1) if n_sessions else [0]:
        for task_number, task in enumerate(simulation.tasks):
            for number in range(1, simulation.runs + 1):
                entities = {"sub": label, **({"ses": str(session)} if session else {}), "task": task}
                entities |= {"run": f"{number:0{digits}d}"} if simulation.runs > 1 else {}
                places.append((entities, (session, task_number, number)))
    return places


def version_of(text: str) -> tuple[int, ...]:
    """``"23.2.3"`` as (23, 2, 3)."""
    return tuple(int(part) for part in text.split("."))


def persistence(simulation: Simulation) -> float:
    """Correlation of a network's activity from one volume to the next."""
    return float(np.exp(-simulation.t_r_s / simulation.levels.correlation_time_s))


def autoregressive(white: np.ndarray, phi: float) -> np.ndarray:
    """Stationary first-order autoregressive series of SD 1 from white ones.  # (k, t) -> (k, t)"""
    driven = np.sqrt(1 - phi**2) * white
    driven[:, 0] = white[:, 0]
    return lfilter([1.0], [1.0, -phi], driven, axis=1)


def response(blocks: Sequence[Block], condition: str, times_s: np.ndarray) -> np.ndarray:
    """Haemodynamic response (SPM's) to the blocks of a condition, 1 at the plateau.  # (t,)"""
    from nilearn.glm.first_level import compute_regressor

    own = [block for block in blocks if block.condition == condition]
    if not own:
        return np.zeros(len(times_s))
    design = np.array([[block.onset_s, block.duration_s, 1.0] for block in own]).T  # (3, blocks)
    return compute_regressor(design, "spm", times_s)[0][:, 0]
