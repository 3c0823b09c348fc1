"""How far evaluations can be believed, and how long they take.

    python benchmarks/evaluation.py null       p values of 200 evaluations of noise: uniform?
    python benchmarks/evaluation.py coverage   do 95 % intervals cover what the trained models reach on fresh people?
    python benchmarks/evaluation.py speed      1,000 people, 288 features, 5 x 5 folds, 1,000 permutations
    python benchmarks/evaluation.py where      signal in covariance, or in the mean image: does the report say so?

The program's own functions are called as ``--group-workflow evaluate`` calls them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace

import numpy as np
from scipy.stats import kstest

from neurostorm_bids.cli import main as run
from neurostorm_bids.evaluation.intervals import resamples
from neurostorm_bids.evaluation.learning import Features, cross_validate, each_repeat
from neurostorm_bids.evaluation.logistic import nested_logistic
from neurostorm_bids.evaluation.metrics import metrics_of
from neurostorm_bids.evaluation.permutation import permutations
from neurostorm_bids.evaluation.problem import Problem, plan_folds
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


def coverage(n_evaluations: int) -> None:
    """Coverage of the 95 % intervals for the mean performance of the trained fold models on 5,000 fresh people."""
    for classes in ((), ("a", "b")):
        for n in (60, 200):
            hits: dict[str, list[bool]] = {}
            for number in range(n_evaluations):
                rng = np.random.default_rng([number, n, len(classes)])
                x, values = simulated(n + 5000, 20, 1.0, len(classes), rng)
                for metric, hit in covered(x, values, n, classes, number).items():
                    hits.setdefault(metric, []).append(hit)
            shares = ", ".join(f"{metric} {np.mean(hit):.3f}" for metric, hit in hits.items())
            print(f"coverage {'classes' if classes else 'numbers'}, {n} people, {n_evaluations} evaluations: {shares}")


def covered(x: np.ndarray, values: np.ndarray, n: int, classes: tuple[str, ...], seed: int) -> dict[str, bool]:
    """Whether each metric's interval covers the truth."""
    problem, whole = problem_of(values[:n], classes), problem_of(values, classes)
    folds = plan_folds(problem, repeats=2, seed=seed)
    outcome = cross_validate(problem, Features.fixed("x", "x", x[:n]), folds, np.zeros((n, 0), int))
    summary = summarise(problem, {"x": outcome}, [], resamples(problem, 1000, seed))
    fresh = np.arange(n, len(values))
    truths: dict[str, list[float]] = {}
    for number, fold in enumerate(folds):
        moved = [replace(fold, repeat=number, test=fresh)]
        trained = cross_validate(whole, Features.fixed("x", "x", x), moved, np.zeros((len(values), 0), int))
        scores = each_repeat(whole, trained)[0]
        for metric, value in scores.items():
            truths.setdefault(metric, []).append(float(value[0]))
    rows = {metric: summary.row("x", metric).interval for metric in truths}
    return {metric: rows[metric].low <= np.mean(truth) <= rows[metric].high for metric, truth in truths.items()}


def speed() -> None:
    """Time of one set of features, everything counted: folds, permutations, metrics, intervals."""
    for kind, classes, n_permutations in (
        ("ridge", (), 1000),
        ("ridge classifier", ("a", "b"), 1000),
        ("logistic", ("a", "b"), 10),
    ):
        rng = np.random.default_rng(0)
        x, values = simulated(1000, 288, 0.5, len(classes), rng)
        problem = problem_of(values, classes)
        started = time.monotonic()
        folds = plan_folds(problem)
        orders = permutations(problem, n_permutations, seed=0)
        learner = nested_logistic if kind == "logistic" else None
        outcome = cross_validate(problem, Features.fixed("x", "x", x), folds, orders, learner=learner)
        summary = summarise(problem, {"x": outcome}, [], resamples(problem, 1000, 0))
        row = summary.rows[0]
        print(
            f"speed {kind}: 1,000 people, 288 features, 5 x 5 nested, {n_permutations} permutations: "
            f"{time.monotonic() - started:.1f} s ({row.metric} {row.value:.3f}, p {row.p:.4f})"
        )


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
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("null", "coverage", "speed", "where"))
    parser.add_argument("-n", type=int, default=200, help="evaluations (default 200)")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed()
    elif arguments.what == "where":
        where(80)
    else:
        (null if arguments.what == "null" else coverage)(arguments.n)


if __name__ == "__main__":
    main()
