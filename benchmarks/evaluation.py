"""How far evaluations can be believed, and how long they take.

    python benchmarks/evaluation.py null       p values of 200 evaluations of noise: uniform?
    python benchmarks/evaluation.py coverage   do 95 % intervals cover what the trained models reach on fresh people?
    python benchmarks/evaluation.py retrieval  the same of telling people apart
    python benchmarks/evaluation.py marks      are runs marked that are unlike the training runs, and no others?
    python benchmarks/evaluation.py speed      1,000 people, 288 features, 5 x 5 folds (-n 1000 permutations)
    python benchmarks/evaluation.py tangent    the same of functional connectivity: 4,950 features, learnt in each fold
    python benchmarks/evaluation.py where      signal in covariance, or in the mean image: does the report say so?

The program's own functions are called as ``--group-workflow evaluate`` calls them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import kstest

from neurostorm_bids.cli import main as run
from neurostorm_bids.evaluation.baselines import connectivity
from neurostorm_bids.evaluation.intervals import N_REFITS, resamples
from neurostorm_bids.evaluation.learning import Features, Learner, cross_validate, each_repeat
from neurostorm_bids.evaluation.logistic import nested_logistic
from neurostorm_bids.evaluation.metrics import metrics_of
from neurostorm_bids.evaluation.permutation import p_value, permutations
from neurostorm_bids.evaluation.problem import Fold, Problem, plan_folds
from neurostorm_bids.evaluation.retrieval import credits_of, interval_of, permuted_scores, ranks, retrieval_scores
from neurostorm_bids.evaluation.shift import TrainingDistribution
from neurostorm_bids.evaluation.summary import summarise
from neurostorm_bids.simulate import EffectSizes, Expression, Levels, ceilings, write_dataset


def problem_of(values: np.ndarray, classes: tuple[str, ...]) -> Problem:
    """A problem of people without families."""
    names = tuple(f"{number:05d}" for number in range(len(values)))
    kind = "classification" if classes else "regression"
    return Problem("target", kind, names, values, names, ("",) * len(names), classes, rows=names)


def simulated(n: int, d: int, effect: float, n_classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features, and values that the first five of them tell something of."""
    x = rng.normal(size=(n, d))
    latent = effect * x[:, :5].sum(axis=1) / np.sqrt(5) + rng.normal(size=n)
    return x, (latent > 0).astype(int) if n_classes else latent


def null(n_evaluations: int) -> None:
    """Uniformity of p on noise, 60 people and 20 features, 5 folds twice."""
    for classes in ((), ("a", "b")):
        found: dict[str, list[float]] = {}
        for number in range(n_evaluations):
            rng = np.random.default_rng([number, len(classes)])
            x, values = simulated(60, 20, 0.0, len(classes), rng)
            problem = problem_of(values, classes)
            folds = plan_folds(problem, repeats=2, seed=number)
            orders = permutations(problem, 199, seed=number)
            outcomes = {"x": cross_validate(problem, Features.fixed("x", "x", x), folds, orders)}
            summary = summarise(problem, outcomes, [], resamples(problem, 10, number))
            for metric in metrics_of(problem.kind):
                found.setdefault(metric, []).append(summary.row("x", metric).p)
        for metric, p in found.items():
            below = np.mean(np.array(p) <= 0.05)
            print(
                f"null {problem.kind} {metric}: KS p = {kstest(p, 'uniform').pvalue:.3f}, share p <= 0.05: {below:.3f}"
            )


def gaussian(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """20 independent features, five of which tell half of the variance."""
    return simulated(n, 20, 1.0, 0, rng)


def wide(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """More features than people, which go along with one another, and little to tell."""
    hidden, directions = rng.normal(size=(n, 10)), np.random.default_rng(5).normal(size=(10, 200))
    x = hidden @ directions + 2 * rng.normal(size=(n, 200))
    return x, 0.7 * hidden[:, :3].sum(axis=1) / np.sqrt(3) + rng.normal(size=n)


def heavy(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features and values with outliers (t distributions of 4 and 5 degrees of freedom)."""
    x = rng.standard_t(4, size=(n, 20))
    return x, x[:, :3].sum(axis=1) / np.sqrt(6) + rng.standard_t(5, size=n)


def skewed(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values like reaction times or volumes: log-normal."""
    x = rng.normal(size=(n, 20))
    return x, np.exp(0.5 * (x[:, :2].sum(axis=1) / np.sqrt(2) + rng.normal(size=n)))


def noise(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """20 features that tell nothing."""
    return simulated(n, 20, 0.0, 0, rng)


def wide_noise(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """As many features as the model has, which tell nothing."""
    return rng.normal(size=(n, 288)), rng.normal(size=n)


def weak(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """100 features, five of which tell a seventh of the variance."""
    return simulated(n, 100, 0.4, 0, rng)


def separable(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell nearly everything."""
    x = rng.normal(size=(n, 20))
    return x, x[:, :4].sum(axis=1) / 2 + 0.25 * rng.normal(size=n)


def clear(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two groups that lie far apart: hardly a decision is wrong."""
    group = rng.choice([-1.0, 1.0], size=n)
    x = rng.normal(size=(n, 20))
    x[:, :4] += 1.2 * group[:, None]
    return x, group + 0.1 * rng.normal(size=n)


Family = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
# name -> values as they are, or the level above which they are of the second class
FAMILIES: dict[str, tuple[Family, float | None]] = {
    "gaussian": (gaussian, None),
    "wide": (wide, None),
    "heavy": (heavy, None),
    "skewed": (skewed, None),
    "separable": (separable, None),
    "weak": (weak, None),
    "noise": (noise, None),
    "wide-noise": (wide_noise, None),
    "gaussian-classes": (gaussian, 0.0),
    "wide-classes": (wide, 0.0),
    "rare-class": (gaussian, 1.19),
    "separable-classes": (separable, 0.0),
    "clear-classes": (clear, 0.0),
    "weak-classes": (weak, 0.0),
    "noise-classes": (noise, 0.0),
}
N_FRESH = 4000


def coverage(numbers: range, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Coverage of the 95 % intervals, in percent: of each metric, and of its difference from half of the features."""
    n_evaluations = len(numbers)
    print(
        f"{n_evaluations} evaluations each, seeds from {numbers.start}: "
        f"1 SD of the simulation is {error_of(0.95, n_evaluations):.1f} at 95 %"
    )
    shown = None
    for name in names:
        for n in sizes:
            hits, truth = hits_of(name, n, numbers)
            metrics = [metric for metric in truth if metric in hits]
            if metrics != shown:
                cells = " | ".join(f"{metric} (difference)" for metric in metrics)
                print(f"\n| family | people | {cells} |\n{'|---' * (2 + len(metrics))}|")
                shown = metrics
            both = " | ".join(f"{_percent(hits[m])} ({_percent(hits.get(f'{m} difference', []))})" for m in metrics)
            print(f"| {name} ({metrics[0]} {np.mean(truth[metrics[0]]):.2f}) | {n} | {both} |", flush=True)


def error_of(share: float, n: int) -> float:
    """Standard error of a share of n evaluations, in percent."""
    return 100 * float(np.sqrt(share * (1 - share) / n))


def _percent(hits: Sequence[bool]) -> str:
    return f"{100 * np.mean(hits):.1f}" if hits else "n/a"


def hits_of(name: str, n: int, numbers: range) -> tuple[dict[str, list[bool]], dict[str, list[float]]]:
    """Of each metric, whether intervals covered the truth, and that truth."""
    family, threshold = FAMILIES[name]
    hits: dict[str, list[bool]] = {}
    truths: dict[str, list[float]] = {}
    for number in numbers:
        x, values = family(n + N_FRESH, np.random.default_rng([number, n]))
        y = values if threshold is None else (values > threshold).astype(int)
        found, truth = covered(x, y, n, () if threshold is None else ("a", "b"), number)
        for metric, hit in found.items():
            hits.setdefault(metric, []).append(hit)
        for metric, value in truth.items():
            truths.setdefault(metric, []).append(value)
    return hits, truths


def covered(
    x: np.ndarray, values: np.ndarray, n: int, classes: tuple[str, ...], seed: int
) -> tuple[dict[str, bool], dict[str, float]]:
    """Whether each metric's interval covers the truth, and that of the difference from half of the features; the truth.

    The truth is the mean performance of the trained fold models, the same that are evaluated, on fresh people.
    """
    problem, whole = problem_of(values[:n], classes), problem_of(values, classes)
    folds, weights = plan_folds(problem, repeats=2, seed=seed), resamples(problem, 1000, seed)
    sets = {"x": x, "half": x[:, ::2]}
    outcomes = {
        name: cross_validate(
            problem, Features.fixed(name, name, of[:n]), folds, np.zeros((n, 0), int), weights=weights[:N_REFITS]
        )
        for name, of in sets.items()
    }
    summary = summarise(problem, outcomes, ["x"], weights)
    truth = {name: on_fresh(whole, of, folds, np.arange(n, len(values))) for name, of in sets.items()}
    found = {}
    for metric, value in truth["x"].items():
        difference = summary.difference("x", "half", metric)
        for name, interval, true in (
            (metric, summary.row("x", metric).interval, value),
            (f"{metric} difference", difference.interval, value - truth["half"][metric]),
        ):
            if not np.isnan(interval.low):
                found[name] = bool(interval.low <= true <= interval.high)
    return found, truth["x"]


def on_fresh(whole: Problem, x: np.ndarray, folds: Sequence[Fold], fresh: np.ndarray) -> dict[str, float]:
    """Mean over the trained fold models of each metric on fresh rows."""
    each = []
    for number, fold in enumerate(folds):
        moved = [replace(fold, repeat=number, test=fresh)]
        trained = cross_validate(whole, Features.fixed("x", "x", x), moved, np.zeros((whole.n_rows, 0), int))
        each.append(each_repeat(whole, trained)[0])
    return {metric: float(np.mean([scores[metric][0] for scores in each])) for metric in each[0]}


def people(n: int, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two runs of each of n people."""
    person = rng.normal(size=(n, 12))
    return person + noise * rng.normal(size=(n, 12)), person + noise * rng.normal(size=(n, 12))


def retrieval(n_evaluations: int) -> None:
    """Coverage for the mean over 400 galleries of one size, and uniformity of p on noise."""
    for n, noise in ((24, 1.0), (60, 1.2), (60, 0.5), (200, 1.0)):
        names = tuple(map(str, range(n)))
        fresh = [retrieval_scores(ranks(*people(n, noise, np.random.default_rng([9, i])), names)) for i in range(400)]
        hits: dict[str, list[bool]] = {}
        for number in range(n_evaluations):
            found = ranks(*people(n, noise, np.random.default_rng([3, number])), names)
            for metric, values in credits_of(found.rank).items():
                interval, truth = interval_of(values), np.mean([scores[metric] for scores in fresh])
                hits.setdefault(metric, []).append(bool(interval.low <= truth <= interval.high))
        shares = ", ".join(f"{metric} {np.mean(hit):.2f}" for metric, hit in hits.items())
        print(f"retrieval, {n} people, rank-1 {np.mean([scores['rank1'] for scores in fresh]):.2f}: {shares}")
    p = []
    for number in range(n_evaluations):
        rng = np.random.default_rng([7, number])
        found = ranks(rng.normal(size=(40, 12)), rng.normal(size=(40, 12)), tuple(map(str, range(40))))
        p.append(p_value("map", retrieval_scores(found)["map"], permuted_scores(found, 199, number)["map"]))
    below = np.mean(np.array(p) <= 0.05)
    print(f"retrieval, noise, map: KS p = {kstest(p, 'uniform').pvalue:.3f}, share p <= 0.05: {below:.3f}")


def marks(n_evaluations: int) -> None:
    """Shares of runs that are marked: of new people like those trained on, and of people further and further away."""
    found: dict[float, list[float]] = {}
    for number in range(n_evaluations):
        rng = np.random.default_rng([5, number])
        mixing = rng.normal(size=(20, 288)) * 0.7 ** np.arange(20)[:, None]

        def runs(n: int, away: float, rng=rng, mixing=mixing) -> np.ndarray:
            person = np.repeat(rng.normal(size=(n, 20)), 2, axis=0)
            return (person + 0.5 * rng.normal(size=person.shape) + away) @ mixing + 0.05 * rng.normal(size=(2 * n, 288))

        trained = TrainingDistribution.of(runs(100, 0.0), [str(i // 2) for i in range(200)])
        for away in (0.0, 1.0, 2.0, 4.0):
            found.setdefault(away, []).append(float(np.mean(trained.distance(runs(100, away)) > trained.threshold)))
    shares = ", ".join(f"{np.mean(share):.3f} at {away:g} SD in each direction" for away, share in found.items())
    print(f"marked of 200 runs of 100 new people, 100 trained on, {n_evaluations} evaluations: {shares}")


# learner -> classes and learner, where it is not the default of the kind
LEARNERS: dict[str, tuple[tuple[str, ...], Learner | None]] = {
    "ridge": ((), None),
    "ridge-classifier": (("a", "b"), None),
    "logistic": (("a", "b"), nested_logistic),
}


def speed(names: Sequence[str], n_permutations: int) -> None:
    """Time of one set of features, everything counted: folds, permutations, refits, metrics, intervals."""
    for name in names:
        classes, learner = LEARNERS[name]
        x, values = simulated(1000, 288, 0.5, len(classes), np.random.default_rng(0))
        features = Features.fixed("x", "x", x)
        timed(f"{name}, 288 features", problem_of(values, classes), features, n_permutations, learner)


def timed(what: str, problem: Problem, features: Features, n_permutations: int, learner=None, repeats: int = 5) -> None:
    """Evaluate once, 5 x 5 nested folds, and say how long it took."""
    started = time.monotonic()
    folds, weights = plan_folds(problem, repeats=repeats), resamples(problem, 1000, 0)
    orders = permutations(problem, n_permutations, seed=0)
    outcome = cross_validate(problem, features, folds, orders, learner=learner, weights=weights[:N_REFITS])
    row = summarise(problem, {"x": outcome}, [], weights).rows[0]
    print(
        f"speed, {what}: {problem.n_rows} people, 5 x 5 nested, {repeats} times, {n_permutations} permutations: "
        f"{time.monotonic() - started:.1f} s ({row.metric} {row.value:.3f} [{row.interval.low:.3f}, "
        f"{row.interval.high:.3f}], p {row.p:.4f})",
        flush=True,
    )


def tangent(n_permutations: int, repeats: int) -> None:
    """Functional connectivity of 1,000 people, 300 volumes of 100 parcels, whose covariance goes along with a value."""
    rng = np.random.default_rng(0)
    values, pattern = rng.normal(size=1000), 0.05 * rng.normal(size=(100, 100))
    mixing = (np.eye(100) + pattern * (1 + 0.2 * value) + 0.03 * rng.normal(size=(100, 100)) for value in values)
    courses = [[(rng.normal(size=(300, 100)) @ mixed).astype(np.float32)] for mixed in mixing]
    started = time.monotonic()
    both = connectivity(courses)
    print(f"covariances and correlations: {time.monotonic() - started:.1f} s", flush=True)
    for features in both:
        timed(f"{features.name}, 4,950 features", problem_of(values, ()), features, n_permutations, repeats=repeats)


NOTHING = Expression()
PLACES = {"covariance": Expression(covariance=0.9), "mean image": Expression(mean_image=0.03)}


def where(n_subjects: int) -> None:
    """The command line on simulated images whose age lies in one place only, with the untrained demo model."""
    levels = Levels(run_field=0.005, site_field=0.0, site_noise=0.0, motion_artefact=0.0, noise=0.02)
    for place, expression in PLACES.items():
        effects = EffectSizes(
            age=expression, sex=NOTHING, diagnosis=NOTHING, cognition=NOTHING, fingerprint=NOTHING, age_r2=0.9
        )
        with tempfile.TemporaryDirectory() as folder:
            data, out = f"{folder}/data", f"{folder}/out"
            plan = {"n_volumes": 200, "zoom_mm": 8.0, "seed": 3, "effects": effects, "levels": levels}
            simulation = write_dataset(data, n_subjects=n_subjects, **plan)
            print(f"--- signal in the {place}; an oracle reaches {ceilings(simulation)['age']}")
            common = ("--model", "demo", "--quiet", "--work-dir", f"{folder}/work")
            run([data, out, "participant", *common])
            words = ("--group-workflow", "evaluate", "--target", "age", "--n-permutations", "200", "--repeats", "2")
            run([data, out, "group", *words, "--allow-leakage", *common])


def main() -> None:
    """Run one of them."""
    runs = {"null": null, "retrieval": retrieval, "marks": marks}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*runs, "coverage", "speed", "tangent", "where"))
    parser.add_argument("-n", type=int, default=200, help="evaluations; permutations of speed, tangent (default 200)")
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), help="of coverage")
    parser.add_argument("--people", nargs="+", type=int, default=[60, 200], help="of coverage (default 60 200)")
    parser.add_argument("--seed", type=int, default=0, help="first of coverage's seeds, one an evaluation (default 0)")
    parser.add_argument("--learner", nargs="+", default=list(LEARNERS), choices=list(LEARNERS), help="of speed")
    parser.add_argument("--repeats", type=int, default=5, help="of tangent (default 5)")
    arguments = parser.parse_args()
    if arguments.what in runs:
        runs[arguments.what](arguments.n)
    elif arguments.what == "coverage":
        coverage(range(arguments.seed, arguments.seed + arguments.n), arguments.family, arguments.people)
    elif arguments.what == "tangent":
        tangent(arguments.n, arguments.repeats)
    else:
        speed(arguments.learner, arguments.n) if arguments.what == "speed" else where(80)


if __name__ == "__main__":
    main()
