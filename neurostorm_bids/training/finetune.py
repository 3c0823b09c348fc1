"""Fine-tuning: one target over a backbone, by prompts, by a linear probe, or whole; tested once, at the very end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from neurostorm_bids.clips import Timing
from neurostorm_bids.errors import BackboneChanged, TrainingError
from neurostorm_bids.model.config import EncoderConfig, Target
from neurostorm_bids.model.encoder import Encoder, stage_channels
from neurostorm_bids.model.folder import tensor_digest
from neurostorm_bids.model.heads import head_for, pool
from neurostorm_bids.training.course import Outcome, Place, device_of, train
from neurostorm_bids.training.data import (
    Augment,
    ClipDataset,
    ClipSamples,
    PairSamples,
    RunRecord,
    Samples,
    Stretch,
    evaluation_loader,
    whole_run_stretches,
)
from neurostorm_bids.training.linear import Embedded, fit_probe
from neurostorm_bids.training.modules import Finetuning
from neurostorm_bids.training.schedule import Course
from neurostorm_bids.training.scores import ClipOutput, Unit
from neurostorm_bids.training.splits import Split, require_disjoint
from neurostorm_bids.training.targets import Label, Labels, class_weights, event_starts, fitted

Method = Literal["prompt", "linear", "full"]
PROMPT_SD = 0.02
HEAD = 1  # stream of the fresh weights of a head; prompts have the next


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """What is tuned.

    Parameters
    ----------
    method : {"prompt", "linear", "full"}
    config : EncoderConfig
        Of the backbone, without prompts.
    backbone : mapping
        Weights of the backbone by an encoder's names.
    prompt_length : int
    augment : callable, optional
    backend : str
    embeddings : dict
        Embeddings of clips under the backbone by file and first frame, filled by linear probes; folds and targets over
        one backbone share them.
    """

    method: Method
    config: EncoderConfig
    backbone: Mapping[str, Tensor]
    prompt_length: int = 50
    augment: Augment | None = None
    backend: str = "auto"
    embeddings: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run that was trained on: mean embedding of its clips (d,), and what the store notes of it."""

    participant: str
    embedding: np.ndarray
    notes: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Tuned:
    """What came of it; ``test`` holds outputs for clips of test participants, computed after training had ended.

    ``validation`` holds those of validation participants. ``trained_on`` describes the training runs under the model
    that embeds at the participant level: the backbone of a pack, the whole model itself.
    """

    encoder: Encoder
    head: nn.Module
    target: Target
    outcome: Outcome
    test: tuple[ClipOutput, ...]
    n_trained: int
    n_weights: int
    validation: tuple[ClipOutput, ...] = ()
    trained_on: tuple[TrainedRun, ...] = ()


def tune(
    plan: Tuning, runs: Mapping[int, RunRecord], labels: Labels, split: Split, course: Course, place: Place
) -> Tuned:
    """Train on one split and test.

    Parameters
    ----------
    plan : Tuning
    runs : mapping
        Stored runs by the numbers that the labels use; a run that could not be stored is left out.
    labels : Labels
    split : Split
    course, place

    Raises
    ------
    SplitsOverlap
        A participant on two sides.
    BackboneChanged
        A frozen backbone is not what it was.
    TrainingError
        And its kinds, see `course.train`.
    """
    require_disjoint(split)
    target = fitted(labels, split.train)
    stretches = _Stretches(runs, replace(labels, target=target), plan.config.img_size[3])
    encoder = build_encoder(plan, course.seed)
    before = backbone_digest(encoder)
    if plan.method == "linear":
        head, outcome = _probe(plan, encoder, target, stretches, labels, split, course)
    else:
        head, outcome = _train(plan, encoder, target, stretches, labels, split, course, place)
    if plan.method != "full" and backbone_digest(encoder) != before:
        raise BackboneChanged("the frozen backbone changed in training", remedy="Please report it; nothing was written")
    device = device_of(course)
    encoder.to(device).eval(), head.to(device).eval()
    test = outputs_on_test(plan, encoder, head, stretches, split.test, course)
    held_out = _outputs_on(plan, encoder, head, stretches, split.validation, course)
    trained_on = _trained_on(plan, encoder, stretches, split.train, course)
    encoder.to("cpu"), head.to("cpu")
    prompts = sum(w.numel() for name, w in encoder.named_parameters() if plan.method == "full" or _is_prompt(name))
    n_head = sum(weight.numel() for weight in head.parameters())
    n_encoder = sum(weight.numel() for weight in encoder.parameters())
    return Tuned(encoder, head, target, outcome, test, prompts + n_head, n_encoder + n_head, held_out, trained_on)


def _is_prompt(name: str) -> bool:
    return name.endswith(".prompt")


def build_encoder(plan: Tuning, seed: int) -> Encoder:
    """The backbone, behind fresh prompts where they are what is tuned."""
    config = replace(plan.config, prompt_len=plan.prompt_length if plan.method == "prompt" else 0)
    encoder = Encoder(config, backend=plan.backend)
    generator = torch.Generator().manual_seed(seed + HEAD + 1)
    state = {name: weight.clone() for name, weight in plan.backbone.items() if not _is_prompt(name)}
    for name, weight in encoder.state_dict().items():
        if _is_prompt(name):
            state[name] = PROMPT_SD * torch.randn(weight.shape, generator=generator)
    encoder.load_state_dict(state, strict=True)
    return encoder


def backbone_digest(encoder: Encoder) -> str:
    """Hash of the encoder's weights without its prompts."""
    return tensor_digest({name: weight for name, weight in encoder.state_dict().items() if not _is_prompt(name)})


# --- samples ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stretches:
    """Labelled stretches of runs, with labels as numbers."""

    runs: Mapping[int, RunRecord]
    labels: Labels
    clip_frames: int

    def of(self, participants: Iterable[str], *, fixed: bool) -> list[tuple[Stretch, Label]]:
        """Stretches of some participants; ``fixed`` ones begin where the last one ended."""
        found: list[tuple[Stretch, Label]] = []
        numbers = {name: number for number, name in enumerate(self.labels.participants)}
        for run, labels in self._by_run(participants).items():
            record = self.runs[run]
            if labels[0].end_s is not None:
                found += self._of_events(record, labels)
            elif record.stored.n_frames >= self.clip_frames:
                value = self._number(labels[0], numbers)
                parts = whole_run_stretches(record, self.clip_frames, value, fixed=fixed)
                found += [(stretch, labels[0]) for stretch in parts]
        return found

    def people(self, participants: Iterable[str]) -> list[list[RunRecord]]:
        """Runs of each of some participants."""
        people: dict[str, list[RunRecord]] = {}
        for run in self._by_run(participants):
            people.setdefault(self.runs[run].participant, []).append(self.runs[run])
        return list(people.values())

    def _by_run(self, participants: Iterable[str]) -> dict[int, list[Label]]:
        by_run: dict[int, list[Label]] = {}
        for label in self.labels.of_participants(participants):
            if label.run in self.runs:
                by_run.setdefault(label.run, []).append(label)
        return by_run

    def _of_events(self, record: RunRecord, labels: Sequence[Label]) -> list[tuple[Stretch, Label]]:
        info = record.stored.info
        timing = Timing(info.n_frames, info.step_s, target_t_r_s=info.step_s, start_time_s=info.onset_s)
        placed = event_starts(labels, timing, self.clip_frames)
        starts = [(label, record.starts(self.clip_frames, first, first)) for label, first in placed]
        return [(Stretch(record, start, self._number(label, {})), label) for label, start in starts if len(start)]

    def _number(self, label: Label, people: Mapping[str, int]) -> float:
        target = self.labels.target
        if target.kind == "regression":
            assert target.mean is not None and target.std is not None, "the scaler was fitted"
            return (float(label.value) - target.mean) / target.std
        if target.kind == "retrieval":
            return float(people[label.participant])
        return float(self.labels.index(label.value))


def unit_of(labels: Labels) -> Unit:
    """What is judged: clips where stretches are labelled, runs where those of a person differ, else people."""
    if any(label.end_s is not None for label in labels.labels):
        return "clip"
    return "run" if labels.target.kind == "retrieval" or labels.strata() is None else "participant"


def _require(found: Sized, role: str) -> None:
    if not len(found):
        raise TrainingError(
            f"no clip of the {role} participants has a label",
            expected="runs as long as a clip, and events as long as half of one",
            remedy="Check the runs that were rejected, and --target",
        )


# --- the three ways ---------------------------------------------------------------------------------------------


def _train(
    plan: Tuning,
    encoder: Encoder,
    target: Target,
    stretches: _Stretches,
    labels: Labels,
    split: Split,
    course: Course,
    place: Place,
) -> tuple[nn.Module, Outcome]:
    weights = class_weights(labels, split.train) if target.kind == "classification" else None
    head = _first_head(plan, encoder, target, stretches, weights, split, course)
    module = Finetuning(encoder, head, target, course, method=plan.method, class_weights=weights)
    frames = plan.config.img_size[3]
    training = ClipDataset(_training_samples(target, stretches, split, course), frames, plan.augment)
    held_out = [stretch for stretch, _ in stretches.of(split.validation, fixed=True)]
    validation = ClipDataset(ClipSamples(held_out, course.seed), frames) if held_out else None
    outcome = train(module, training, validation, course, place)
    return head, outcome


def _first_head(
    plan: Tuning,
    encoder: Encoder,
    target: Target,
    stretches: _Stretches,
    weights: np.ndarray | None,
    split: Split,
    course: Course,
) -> nn.Module:
    """The head that training begins with: behind prompts the linear probe, since a fresh one takes most of a training
    to get there (Kumar et al. 2022, arXiv 2202.10054).
    """
    if plan.method != "prompt":
        channels = stage_channels(encoder.config, len(encoder.config.depths) - 1)
        return head_for(target, channels, torch.Generator().manual_seed(course.seed + HEAD))
    encoder.to(device_of(course)).eval()
    data = []
    for participants in (split.train, split.validation):
        found = [stretch for stretch, _ in stretches.of(participants, fixed=True)]
        rows = _outputs(lambda clips: pool(encoder(clips)), found, stretches, course)
        data.append(_as_embedded(rows, found))
    _require(data[0].features, "training")
    return fit_probe(target, data[0], data[1] if len(data[1].labels) else None, weights)[0]


def _training_samples(target: Target, stretches: _Stretches, split: Split, course: Course) -> Samples:
    if target.kind == "retrieval":
        people = stretches.people(split.train)
        _require(people, "training")
        return PairSamples(people, stretches.clip_frames, course.seed)
    found = [stretch for stretch, _ in stretches.of(split.train, fixed=False)]
    _require(found, "training")
    return ClipSamples(found, course.seed)


def _probe(
    plan: Tuning,
    encoder: Encoder,
    target: Target,
    stretches: _Stretches,
    labels: Labels,
    split: Split,
    course: Course,
) -> tuple[nn.Module, Outcome]:
    import time

    started = time.monotonic()
    weights = class_weights(labels, split.train) if target.kind == "classification" else None
    train_data = _embedded(plan, encoder, stretches, split.train, course)
    _require(train_data.features, "training")
    validation = _embedded(plan, encoder, stretches, split.validation, course)
    head, _, loss = fit_probe(target, train_data, validation if len(validation.labels) else None, weights)
    return head, Outcome(1, 1, 1, loss, time.monotonic() - started, True)


def _embedded(
    plan: Tuning, encoder: Encoder, stretches: _Stretches, participants: Iterable[str], course: Course
) -> Embedded:
    found = [stretch for stretch, _ in stretches.of(participants, fixed=True)]
    features = _embeddings(plan, encoder.to(device_of(course)).eval(), found, stretches, course)
    return _as_embedded(features, found)


def _as_embedded(features: np.ndarray, found: Sequence[Stretch]) -> Embedded:
    labels, people = ([stretch.label for stretch in found], [stretch.run.participant for stretch in found])
    return Embedded(features, np.array(labels), np.array(people))


def _embeddings(
    plan: Tuning, encoder: Encoder, found: Sequence[Stretch], stretches: _Stretches, course: Course
) -> np.ndarray:
    """Embeddings of clips, each computed once for all folds and targets.  # (n, c)"""
    places = [(str(stretch.run.stored.path), stretch.first) for stretch in found]
    new = [number for number, place in enumerate(places) if place not in plan.embeddings]
    rows = _outputs(lambda clips: pool(encoder(clips)), [found[number] for number in new], stretches, course)
    plan.embeddings.update((places[number], row) for number, row in zip(new, rows, strict=True))
    if not places:
        return np.zeros((0, 0), np.float32)
    return np.stack([plan.embeddings[place] for place in places])


# --- the test ---------------------------------------------------------------------------------------------------


def outputs_on_test(
    plan: Tuning,
    encoder: Encoder,
    head: nn.Module,
    stretches: _Stretches,
    participants: Iterable[str],
    course: Course,
) -> tuple[ClipOutput, ...]:
    """What the head makes of every clip of some participants, who must have clips."""
    found = _outputs_on(plan, encoder, head, stretches, participants, course)
    _require(found, "test")
    return found


def _outputs_on(
    plan: Tuning,
    encoder: Encoder,
    head: nn.Module,
    stretches: _Stretches,
    participants: Iterable[str],
    course: Course,
) -> tuple[ClipOutput, ...]:
    found = stretches.of(participants, fixed=True)
    if not found:
        return ()
    only = [stretch for stretch, _ in found]
    if plan.method == "linear":
        features = torch.from_numpy(_embeddings(plan, encoder, only, stretches, course)).to(device_of(course))
        with torch.no_grad():
            rows = head(features).float().cpu().numpy()
    else:
        rows = _outputs(lambda clips: head(pool(encoder(clips))), only, stretches, course)
    return tuple(
        ClipOutput(label.participant, stretch.run.name, stretch.first, label.value, row)
        for (stretch, label), row in zip(found, rows, strict=True)
    )


def _trained_on(
    plan: Tuning, encoder: Encoder, stretches: _Stretches, participants: Iterable[str], course: Course
) -> tuple[TrainedRun, ...]:
    """Mean embeddings of the training runs, whole as the participant level embeds them."""
    runs = [run for people in stretches.people(participants) for run in people]
    parts = [list(whole_run_stretches(run, stretches.clip_frames, fixed=True)) for run in runs]
    only = [stretch for part in parts for stretch in part]
    if plan.method == "full":
        rows = _outputs(lambda clips: pool(encoder(clips)), only, stretches, course)
    else:
        plain = encoder if plan.method == "linear" else build_encoder(replace(plan, method="linear"), course.seed)
        rows = _embeddings(plan, plain.to(device_of(course)).eval(), only, stretches, course)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return tuple(
        TrainedRun(run.participant, of_run.mean(axis=0), run.stored.info.notes)
        for run, of_run in zip(runs, np.split(rows, ends), strict=True)
        if len(of_run)
    )


@torch.no_grad()
def _outputs(
    compute: Callable[[Tensor], Tensor], found: Sequence[Stretch], stretches: _Stretches, course: Course
) -> np.ndarray:
    """Rows of outputs, one a stretch, in order.  # (n, outputs)"""
    if not found:
        return np.zeros((0, 0), np.float32)
    data = ClipDataset(ClipSamples(found, course.seed), stretches.clip_frames)
    batches = evaluation_loader(data, course.batch_size, course.workers)
    device = device_of(course)
    return np.concatenate([compute(batch["clips"].to(device)).float().cpu().numpy() for batch in batches])
