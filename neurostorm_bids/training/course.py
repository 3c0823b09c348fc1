"""A training from its first step to its last: Lightning's trainer with our batches, points of resume and reports."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader

from neurostorm_bids.errors import OutOfMemory, UsageError
from neurostorm_bids.model.device import computing_in
from neurostorm_bids.model.encoder import Backbone
from neurostorm_bids.training.checkpoints import AtomicCheckpoints, BestWeights, ResumePoints, resume_point
from neurostorm_bids.training.data import ClipDataset, Cursor, KeyedBatches, collate, evaluation_loader, training_loader
from neurostorm_bids.training.modules import Learner
from neurostorm_bids.training.processes import started_by_torchrun
from neurostorm_bids.training.schedule import LIGHTNING_PRECISION, Course

FIRST_STEPS = 10  # the remaining time is told after them


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    ``best_epoch`` counts from 1; without validation it is the last one and ``validation_loss`` None.
    """

    best_epoch: int
    n_epochs: int
    n_steps: int
    validation_loss: float | None
    seconds: float
    is_first_process: bool


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a training keeps its state and its logs, and whether it goes on from what lies there."""

    state: Path
    logs: Path
    identity: str
    resume: bool = False


class Clips(L.LightningDataModule):
    """Loaders of one training; the share of a process is known when it has begun."""

    def __init__(
        self,
        train: ClipDataset,
        validation: ClipDataset | None,
        course: Course,
        cursor: Cursor,
        order: Callable[[int], Any] | None = None,
    ) -> None:
        super().__init__()
        self.train, self.validation, self.course, self.cursor, self.order = train, validation, course, cursor, order

    def train_dataloader(self) -> DataLoader:
        """Batches by key."""
        trainer = self.trainer
        assert trainer is not None, "Lightning sets it"
        batches = KeyedBatches(
            len(self.train),
            self.course.batch_size,
            self.course.seed,
            epoch=lambda: trainer.current_epoch,
            rank=trainer.global_rank,
            world=trainer.world_size,
            order=self.order,
            cursor=self.cursor,
        )
        return training_loader(self.train, batches, self.course.workers)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Every validation sample once."""
        if self.validation is None:
            return []
        trainer = self.trainer
        assert trainer is not None, "Lightning sets it"
        return evaluation_loader(
            self.validation, self.course.batch_size, self.course.workers, trainer.global_rank, trainer.world_size
        )


def train(
    module: Learner,
    train_data: ClipDataset,
    validation: ClipDataset | None,
    course: Course,
    place: Place,
    order: Callable[[int], Any] | None = None,
) -> Outcome:
    """Train a module; in the end it holds the best weights.

    Raises
    ------
    TrainingDiverged
        A loss that is not finite.
    OutOfMemory
        With the batch size that fits.
    ResumeImpossible
        ``place.resume``, and what lies there is of another training.
    UsageError
        More processes than validation clips.
    """
    started = time.monotonic()
    for chatty in ("lightning.pytorch", "lightning.fabric"):  # of all they say, advertisements included
        logging.getLogger(chatty).setLevel(logging.ERROR)
    cursor, best = Cursor(), BestWeights()
    points = ResumePoints(place.state, course.checkpoint_every, cursor, place.identity)
    found = resume_point(place.state, place.identity) if place.resume else None
    trainer = _trainer(course, place, [best, points, *_reports(course, validation is not None)], found is not None)
    _require_work_for_all(validation, trainer.world_size)
    for part in module.modules():
        if isinstance(part, Backbone):
            part.checkpoint_blocks(course.checkpoint_blocks)
    module.n_steps = _steps(len(train_data), course, trainer.world_size)
    data = Clips(train_data, validation, course, cursor, order)
    products = computing_in("tf32" if course.precision == "tf32" else "32", trainer.strategy.root_device)
    with warnings.catch_warnings(), products, _disk_faults_told_once():
        beside_the_point = "does not have many workers|not resumable|eval mode|isinstance|`srun` command|sync_dist"
        warnings.filterwarnings("ignore", message=f".*({beside_the_point}).*")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=found, weights_only=True)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            raise _advised(error, module, train_data, course) from error
    best.restore(module)
    n_epochs = trainer.current_epoch
    validated = best.epoch >= 0
    return Outcome(
        best_epoch=best.epoch + 1 if validated else n_epochs,
        n_epochs=n_epochs,
        n_steps=trainer.global_step,
        validation_loss=best.loss if validated else None,
        seconds=time.monotonic() - started,
        is_first_process=trainer.is_global_zero,
    )


@contextmanager
def _disk_faults_told_once() -> Iterator[None]:
    """Loggers write in threads and hand a fault of the disk on to this one: the thread need not print it as well."""
    before = threading.excepthook
    threading.excepthook = lambda fault: None if issubclass(fault.exc_type, OSError) else before(fault)
    try:
        yield
    finally:
        threading.excepthook = before


def _require_work_for_all(validation: ClipDataset | None, n_processes: int) -> None:
    """Processes judge every epoch together: one without a validation clip would leave the others waiting."""
    if validation is None or len(validation) >= n_processes:
        return
    raise UsageError(
        f"{len(validation)} validation clips for {n_processes} processes",
        expected="at least one for each",
        remedy="Start fewer processes, or give more participants or a larger share to validation",
    )


def _steps(n_samples: int, course: Course, world: int) -> int:
    batches = -(-n_samples // (course.batch_size * world))
    return course.epochs * -(-batches // course.accumulate)


def _trainer(course: Course, place: Place, callbacks: list[Callback], resumed: bool) -> L.Trainer:
    devices, nodes = started_by_torchrun() or (course.devices or 1, course.num_nodes)
    with warnings.catch_warnings():
        # that srun is installed here says nothing of how this was meant to be started
        warnings.filterwarnings("ignore", message=".*`srun` command is available")
        return L.Trainer(
            accelerator=_accelerator(course.device),
            devices=[int(course.device)] if course.device.isdigit() and devices == 1 else devices,
            num_nodes=nodes,
            strategy="ddp" if devices * nodes > 1 else "auto",
            precision=LIGHTNING_PRECISION[course.precision],
            max_epochs=course.epochs,
            accumulate_grad_batches=course.accumulate,
            gradient_clip_val=course.gradient_clip,
            callbacks=callbacks,
            logger=_loggers(place, resumed),
            plugins=[AtomicCheckpoints()],
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=not course.quiet and sys.stderr.isatty(),
        )


def device_of(course: Course) -> torch.device:
    """Where what comes after training is computed."""
    if _accelerator(course.device) == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(course.device) if course.device.isdigit() else 0)


def _accelerator(device: str) -> str:
    if device == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return "cpu" if device == "cpu" else "gpu"


def _loggers(place: Place, resumed: bool) -> list[Logger]:
    """CSV always, TensorBoard where it is installed; a training that goes on has a table of its own."""
    version = f"resumed-{time.strftime('%Y%m%d-%H%M%S')}" if resumed else "training"
    loggers: list[Logger] = [CSVLogger(place.logs.parent, name=place.logs.name, version=version)]
    with suppress(ModuleNotFoundError):
        loggers.append(TensorBoardLogger(place.logs.parent, name=place.logs.name, version=version))
    return loggers


def _reports(course: Course, validates: bool) -> list[Callback]:
    callbacks: list[Callback] = [] if course.quiet else [Remaining()]
    if not course.quiet and sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(leave=False))
    if course.patience is not None and validates:
        callbacks.append(EarlyStopping("validation_loss", patience=course.patience, check_finite=False))
    return callbacks


class Remaining(Callback):
    """A line after the first steps, with the time that is left, and one after each epoch."""

    def __init__(self) -> None:
        self._started, self._first = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        self._started, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the remaining time once."""
        if trainer.global_step == self._first + FIRST_STEPS:
            self._say(f"{self._rate(trainer):.2f} s a step{self._left(trainer, pl_module)}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the losses of an epoch."""
        losses = ", ".join(
            f"{name.replace('_', ' ')} {float(trainer.callback_metrics[name]):.4g}"
            for name in ("loss", "validation_loss")
            if name in trainer.callback_metrics
        )
        self._say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {losses}{self._left(trainer, pl_module)}")

    def _rate(self, trainer: L.Trainer) -> float:
        return (time.monotonic() - self._started) / max(1, trainer.global_step - self._first)

    def _left(self, trainer: L.Trainer, module: L.LightningModule) -> str:
        seconds = self._rate(trainer) * (int(getattr(module, "n_steps", 0)) - trainer.global_step)
        if seconds <= 0:
            return ""
        return f"; about {seconds:.0f} s left" if seconds < 90 else f"; about {seconds / 60:.0f} min left"

    @rank_zero_only
    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


# --- out of memory ----------------------------------------------------------------------------------------------


def _advised(error: BaseException, module: Learner, data: ClipDataset, course: Course) -> BaseException:
    """What to tell of an error of torch: where memory ran out, the batch size that fits; else the error itself."""
    if not is_out_of_memory(error):
        return error
    return OutOfMemory(
        f"a batch of {course.batch_size} does not fit in memory",
        remedy=advice(fitting_batch_size(partial(_attempt, module, data), course.batch_size), course.batch_size),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the machine itself."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in text


def fitting_batch_size(attempt: Callable[[int], None], failed: int) -> int:
    """The largest of failed / 2, failed / 4, ... that ``attempt`` manages; 0 if none."""
    size = failed // 2
    while size:
        try:
            attempt(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size
    return 0


def advice(fits: int, failed: int) -> str:
    """What to do about a batch that does not fit."""
    if fits:
        return f"A batch of {fits} fits: state --batch-size {fits} --accumulate {failed // fits} for the same step"
    return "Not even one clip fits: use --gradient-checkpointing, --precision bf16, or a machine with more memory"


def _attempt(module: Learner, data: ClipDataset, size: int) -> None:
    """Forward and backward of one batch."""
    batch = collate([data[(0, index)] for index in range(size)])
    moved = {name: value.to(module.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    module.zero_grad(set_to_none=True)
    if module.device.type == "cuda":
        torch.cuda.empty_cache()
    module.loss_of(moved)[0].backward()
    module.zero_grad(set_to_none=True)
