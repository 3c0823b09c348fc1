"""Simulated fMRIPrep datasets with a known signal, and an oracle that says how much of it can be read.

    from neurostorm_bids import simulate

    simulation = simulate.write_dataset("fmriprep", n_subjects=60, runs=2, seed=1)
    simulate.ceilings(simulation)["age"]["r2"]

Where the signal lies is known exactly. Each participant has a few expressions (one for sex, one for age, two for the
diagnosis, one for cognition) and a fingerprint; they set how strongly neighbouring networks fluctuate together, each
with a pattern of its own over the brain. Variances of the networks, mean images and head motion do not depend on them
unless an effect size says so.

effects    what is simulated: effect sizes, image levels, the dataset's plan
cohort     participants: labels, phenotypes, expressions
brain      what all participants share: mask, anatomy, network maps on a grid
runs       time courses, task blocks and head motion of one run
images     a run's volumes
dataset    the BIDS derivative folder
oracle     what an observer who knows all of this would reach
"""

from neurostorm_bids.simulate.cohort import Cohort, draw_cohort
from neurostorm_bids.simulate.dataset import read_simulation, write_dataset
from neurostorm_bids.simulate.effects import DEMO_EFFECTS, EffectSizes, Expression, Levels, Simulation
from neurostorm_bids.simulate.oracle import ceilings

__all__ = [
    "DEMO_EFFECTS",
    "Cohort",
    "EffectSizes",
    "Expression",
    "Levels",
    "Simulation",
    "ceilings",
    "draw_cohort",
    "read_simulation",
    "write_dataset",
]
