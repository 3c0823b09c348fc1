"""What is simulated: effect sizes, levels of the images, the plan of a dataset. Fixed before anything is drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TRAITS = ("sex", "age", "diagnosis-1", "diagnosis-2", "cognition")  # a diagnosis of three classes needs a plane
N_PAIRS = 24  # of neighbouring networks, which fluctuate together more or less
DIAGNOSES = ("control", "typeA", "typeB")
CONDITIONS = ("motor", "visual", "memory", "language")

Draws = Literal["balanced", "independent"]


@dataclass(frozen=True)
class Expression:
    """How one SD of an expression shows in the images.

    Parameters
    ----------
    covariance : float
        Change of the Fisher-z correlation within each pair of networks: half of the pairs go up, half go down.
    mean_image : float
        SD over the brain of the change of the mean image, as a share of its intensity.
    """

    covariance: float = 0.0
    mean_image: float = 0.0


@dataclass(frozen=True)
class EffectSizes:
    """Effect sizes of the cohort.

    The first four say how well an observer who saw the expressions themselves could tell the phenotype; the others
    how the expressions show in the images. ``Expression()`` takes a trait out of the images altogether.

    Parameters
    ----------
    sex_separation : float
        Distance of the two means in within-sex SDs: AUROC = Phi(distance / sqrt(2)).
    age_r2, cognition_r2 : float
        Share of the phenotype's variance that its expression explains.
    diagnosis_separation : float
        Distance of the three class means from their centre, in within-class SDs.
    sex, age, diagnosis, cognition, fingerprint : Expression
    task : float
        Plateau of the response to a block, in SDs of the network's spontaneous fluctuation.
    run_to_run : float
        SD of the change of each pair's Fisher-z correlation from run to run.
    heritability : float
        Share of the variance of fingerprints and of what cognition adds to its expression that families have in
        common (only where there are families).
    motion_age : float
        Correlation of age with the logarithm of mean framewise displacement.
    """

    sex_separation: float = 2.65
    age_r2: float = 0.77
    diagnosis_separation: float = 2.05
    cognition_r2: float = 0.7
    sex: Expression = Expression(covariance=0.2)
    age: Expression = Expression(covariance=0.4)
    diagnosis: Expression = Expression(covariance=0.2)
    cognition: Expression = Expression(covariance=0.3)
    fingerprint: Expression = Expression(covariance=0.15, mean_image=0.01)
    task: float = 2.0
    run_to_run: float = 0.1
    heritability: float = 0.5
    motion_age: float = 0.0

    def of(self, trait: str) -> Expression:
        """Effect of a trait's expression ("diagnosis-1" and "diagnosis-2" have that of the diagnosis)."""
        return getattr(self, trait.partition("-")[0])


@dataclass(frozen=True)
class Levels:
    """Levels of the images; amplitudes are shares of the mean intensity.

    Parameters
    ----------
    intensity : float
        Mean intensity of the brain.
    tissue_contrast : float
        SD of the mean image over the brain.
    fluctuation : float
        SD of a network's time course at its centre.
    network_mm : float
        SD of a network's profile in space.
    noise : float
        SD of white noise, independent in every voxel and volume.
    correlation_time_s : float
        Time after which a network's autocorrelation has fallen to 1/e.
    run_field : float
        SD of smooth changes of the mean image from run to run.
    site_field, site_noise : float
        SD over sites of a smooth field in the mean image, and of the logarithm of the noise level.
    motion_mm : float
        Median over participants of mean framewise displacement.
    motion_spread : float
        SD over participants of the logarithm of mean framewise displacement.
    motion_artefact : float
        Signal change at the edge of the brain per millimetre of framewise displacement.
    """

    intensity: float = 1000.0
    tissue_contrast: float = 0.06
    fluctuation: float = 0.04
    network_mm: float = 7.0
    noise: float = 0.03
    correlation_time_s: float = 1.5
    run_field: float = 0.01
    site_field: float = 0.02
    site_noise: float = 0.1
    motion_mm: float = 0.12
    motion_spread: float = 0.4
    motion_artefact: float = 0.1


# People of the demo: their traits show in the mean image as well, where a small model finds them in minutes. By default
# they lie in temporal covariance alone.
DEMO_EFFECTS = EffectSizes(
    sex=Expression(covariance=0.2, mean_image=0.03),
    age=Expression(covariance=0.4, mean_image=0.03),
    diagnosis=Expression(covariance=0.2, mean_image=0.03),
)


@dataclass(frozen=True)
class Simulation:
    """The plan of a dataset; the same plan always gives the same bytes on the same machine.

    Parameters
    ----------
    n_subjects : int
    sessions : tuple of int
        Number of sessions, taken in turn by the participants: ``(1, 2)`` gives every second one two. 0: no ``ses-``.
    runs : int
        Runs of each task in each session.
    tasks : tuple of str
        Every task but "rest" has blocks of conditions, and an events table.
    spaces : tuple of str
        Template spaces; the first is simulated, the others are interpolated from it.
    zoom_mm : float
        Voxel size.
    n_volumes : int
        Volumes of a run, dummies included.
    t_r_s : float
    n_dummies : int
        Volumes before the steady state, bright and flagged in the confounds.
    block_s, n_conditions : float, int
        Length of a task block, and how many conditions take turns.
    n_sites, family_size : int
    missing : float
        Share of the participants without age and cognition score.
    draws : {"balanced", "independent"}
        "balanced": a low-discrepancy cohort, whose phenotypes are as common, as uncorrelated and as predictable as in
        the population, also when it is small. "independent": participants are independent draws.
    fmriprep_version : str
        Release whose file names are followed.
    seed : int
    """

    n_subjects: int = 4
    sessions: tuple[int, ...] = (0,)
    runs: int = 1
    tasks: tuple[str, ...] = ("rest",)
    spaces: tuple[str, ...] = ("MNI152NLin6Asym",)
    zoom_mm: float = 4.0
    n_volumes: int = 100
    t_r_s: float = 0.8
    n_dummies: int = 0
    block_s: float = 20.0
    n_conditions: int = 3
    n_sites: int = 1
    family_size: int = 1
    missing: float = 0.0
    draws: Draws = "balanced"
    fmriprep_version: str = "23.2.3"
    seed: int = 0
    effects: EffectSizes = field(default_factory=EffectSizes)
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        if not 1 <= self.n_conditions <= len(CONDITIONS):
            raise ValueError(f"n_conditions is {self.n_conditions}; the brain has networks for 1 to {len(CONDITIONS)}")
        if min(self.n_subjects, self.runs, self.n_sites, self.family_size) < 1 or min(self.sessions) < 0:
            raise ValueError("participants, runs, sites and family members are counted from 1, sessions from 0")
        if not self.spaces or not self.tasks:
            raise ValueError("a dataset needs a space and a task")
        if not 0 <= self.n_dummies < self.n_volumes:
            raise ValueError(f"{self.n_dummies} dummy volumes in a run of {self.n_volumes}")

    def as_json(self) -> dict[str, Any]:
        """The plan in JSON's own types."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Simulation:
        """The plan that `as_json` gave."""
        effects: dict[str, Any] = {
            name: Expression(**value) if isinstance(value, dict) else value
            for name, value in content["effects"].items()
        }
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        plain |= {"effects": EffectSizes(**effects), "levels": Levels(**content["levels"])}
        return cls(**plain)
