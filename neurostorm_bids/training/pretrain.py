"""Pretraining without labels: who is held out, what is made of the runs, and the encoder that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from neurostorm_bids.errors import TrainingError
from neurostorm_bids.model.config import EncoderConfig
from neurostorm_bids.model.draws import keyed_generator
from neurostorm_bids.model.encoder import Backbone, Encoder, stage_grids
from neurostorm_bids.model.masks import Masking
from neurostorm_bids.model.strd import RedundancyDropout
from neurostorm_bids.training.course import Outcome, Place, train
from neurostorm_bids.training.data import (
    Augment,
    ClipDataset,
    ClipSamples,
    PairSamples,
    RunRecord,
    Samples,
    whole_run_stretches,
)
from neurostorm_bids.training.modules import ContrastivePretraining, Learner, MaskedPretraining
from neurostorm_bids.training.sampling import LossOrder, PersonOrder
from neurostorm_bids.training.schedule import Course

HELD_OUT = 18  # purpose of the draw of validation people
Person = tuple[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretraining:
    """What is pretrained.

    Parameters
    ----------
    config : EncoderConfig
    objective : {"mae", "contrastive"}
    masking : Masking
    strd : RedundancyDropout, optional
    atlas : ndarray, optional
        (x, y, z) regions of patches, for atlas masks.
    start : mapping, optional
        Weights of an encoder to start from.
    augment : callable, optional
    sampling : {"uniform", "loss"}
        People of all datasets alike, or datasets by their loss of the last epoch.
    """

    config: EncoderConfig
    objective: Literal["mae", "contrastive"] = "mae"
    masking: Masking = field(default_factory=Masking)
    strd: RedundancyDropout | None = None
    atlas: np.ndarray | None = None
    start: Mapping[str, Tensor] | None = None
    augment: Augment | None = None
    sampling: Literal["uniform", "loss"] = "uniform"
    backend: str = "auto"


def pretrain(
    plan: Pretraining, runs: Sequence[RunRecord], held_out: Sequence[Person], course: Course, place: Place
) -> tuple[Encoder, Outcome]:
    """Train; returns the encoder with the best weights, on the CPU.

    Raises
    ------
    TrainingError
        And its kinds, see `course.train`.
    """
    if plan.objective == "mae":
        _require_masks(plan)
    module = _module(plan, course)
    people = set(held_out)
    trained = [run for run in runs if run.person not in people]
    validated = [run for run in runs if run.person in people]
    samples = _samples(plan, trained, course.seed)
    training = ClipDataset(samples, plan.config.img_size[3], plan.augment)
    validation = None
    if validated:
        # the same clips and masks after every epoch
        validation = ClipDataset(_samples(plan, validated, course.seed, fixed=True), plan.config.img_size[3])
    outcome = train(module, training, validation, course, place, _order(plan, samples, module, course.seed))
    encoder = Encoder(plan.config)
    encoder.load_state_dict({name: weight.detach().cpu() for name, weight in module.encoder_state.items()})
    return encoder.eval(), outcome


def _require_masks(plan: Pretraining) -> None:
    """Refuse a mask that hides nothing on this model's grid, before anything is read."""
    grid = (*stage_grids(plan.config)[0], plan.config.img_size[3] // plan.config.patch_size[3])
    try:
        plan.masking.draw(1, grid, plan.config.window_size, plan.atlas, [(0,)])
    except ValueError as error:
        raise TrainingError(str(error), remedy="Choose another --mask-ratio, or another mask") from error


def _order(plan: Pretraining, samples: Samples, module: Learner, seed: int) -> Callable[[int], np.ndarray] | None:
    """Whose samples an epoch holds; where a person is a sample, everybody comes once."""
    if not isinstance(samples, ClipSamples) or not isinstance(module, MaskedPretraining):
        return None
    people = [stretch.run.person for stretch in samples.stretches]
    if plan.sampling == "uniform":
        return PersonOrder(people, seed)
    module.tracks_datasets = True
    return LossOrder(people, seed, lambda: module.dataset_losses)


def _module(plan: Pretraining, course: Course) -> MaskedPretraining | ContrastivePretraining:
    module: MaskedPretraining | ContrastivePretraining
    if plan.objective == "contrastive":
        module = ContrastivePretraining(plan.config, course, strd=plan.strd, backend=plan.backend)
        encoder: Backbone = module.encoder
    else:
        module = MaskedPretraining(
            plan.config,
            course,
            plan.masking,
            strd=plan.strd,
            atlas=plan.atlas,
            backend=plan.backend,
        )
        encoder = module.autoencoder
    if plan.start is not None:
        encoder.load_state_dict(dict(plan.start), strict=False)  # a decoder, if there is one, is fresh
    return module


def _samples(plan: Pretraining, runs: Sequence[RunRecord], seed: int, *, fixed: bool = False) -> Samples:
    frames = plan.config.img_size[3]
    if plan.objective == "mae":
        stretches = [part for run in runs for part in whole_run_stretches(run, frames, fixed=fixed)]
        return ClipSamples(stretches, seed)
    people: dict[Person, list[RunRecord]] = {}
    for run in runs:
        people.setdefault(run.person, []).append(run)
    if len(people) < 2 and not fixed:
        raise TrainingError("one participant to train on", expected="two or more to tell apart")
    return PairSamples(list(people.values()), frames, seed, augmented_twice=plan.augment is not None)


def held_out_people(runs: Sequence[RunRecord], share: float, seed: int) -> tuple[Person, ...]:
    """People whose reconstruction decides which weights are kept: a share of each dataset, one at least; or nobody."""
    chosen: list[Person] = []
    for dataset in sorted({run.dataset for run in runs}):
        people = sorted({run.person for run in runs if run.dataset == dataset})
        n = min(len(people) - 1, max(1, round(share * len(people)))) if share > 0 else 0
        order = keyed_generator((seed,), HELD_OUT).permutation(len(people))
        chosen += [people[number] for number in order[:n]]
    return tuple(sorted(chosen))
