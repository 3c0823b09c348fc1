"""What survives an interruption: points of resume, written whole or not at all, and the best weights so far."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from neurostorm_bids.errors import ResumeImpossible
from neurostorm_bids.replacing import write_failed
from neurostorm_bids.training.data import Cursor

LAST = "last.ckpt"


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their place, flushes them to disk and renames them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises
        ------
        OutputWriteFailed
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for abandoned in path.parent.glob(f".{path.name}.*.tmp"):
                abandoned.unlink(missing_ok=True)  # of a killed process: one training alone writes here
            with partial.open("xb") as handle:
                torch.save(checkpoint, handle)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)
        except OSError as error:
            raise write_failed(error, path) from error
        except RuntimeError as error:  # torch, where the file took less than it was given
            if not isinstance(error.__context__, OSError):
                raise
            raise write_failed(error.__context__, path) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


class ResumePoints(Callback):
    """Saves the state of a training every so many steps, always within an epoch and after a whole step.

    All random draws are keyed, so an epoch and a batch number say everything that weights, optimiser and schedule do
    not. Where a training was killed does not matter: it goes on from the last point and takes the same steps again.

    Parameters
    ----------
    folder : Path
    every : int
        Steps.
    cursor : Cursor
        Set when a state is loaded; the batches look at it.
    identity : str
        What is trained on what, hashed; another training is not gone on with.
    """

    def __init__(self, folder: Path, every: int, cursor: Cursor, identity: str) -> None:
        self.path, self.every, self.cursor, self.identity = folder / LAST, every, cursor, identity
        self._place = Cursor()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time to."""
        n_done, accumulated = batch_idx + 1, trainer.accumulate_grad_batches
        first_step = n_done == accumulated  # holds what validation found at the end of the last epoch
        due = n_done % accumulated == 0 and (first_step or trainer.global_step % self.every == 0)
        if due and n_done < trainer.num_training_batches:
            self._place = Cursor(trainer.current_epoch, n_done)
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands."""
        return {"epoch": self._place.epoch, "batch": self._place.batch, "identity": self.identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.cursor.epoch, self.cursor.batch = state_dict["epoch"], state_dict["batch"]


def resume_point(folder: Path, identity: str) -> Path | None:
    """The point that a training can go on from, if there is one.

    Raises
    ------
    ResumeImpossible
        It is damaged, or of another training.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # data alone: nothing in it runs
        found = next(state for name, state in content["callbacks"].items() if name.startswith(ResumePoints.__name__))
    except (OSError, RuntimeError, EOFError, LookupError, UnpicklingError, StopIteration) as error:
        raise ResumeImpossible(
            f"cannot be read ({error})", file=path, remedy="Leave out --resume to train from the start"
        ) from error
    if found["identity"] != identity:
        raise ResumeImpossible(
            "belongs to a training with other data, settings or version",
            file=path,
            expected="the same command as before, with --resume",
            remedy="Repeat that command, or leave out --resume to train from the start",
        )
    return path


class BestWeights(Callback):
    """Keeps the trained weights of the epoch with the lowest validation loss; they are part of a point of resume."""

    def __init__(self) -> None:
        self.loss, self.epoch = float("inf"), -1
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare, and keep."""
        if trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.loss:
            self.loss, self.epoch, self.weights = loss, trainer.current_epoch, trained_state(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"loss": self.loss, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best so far."""
        self.loss, self.epoch, self.weights = state_dict["loss"], state_dict["epoch"], state_dict["weights"]

    def restore(self, module: nn.Module) -> None:
        """Put the best weights in place; where nothing was validated the last ones stay."""
        if self.weights:
            module.load_state_dict(self.weights, strict=False)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that training changes: trained parameters, and buffers such as running means."""
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    state: Mapping[str, Tensor] = module.state_dict()
    return {name: state[name].detach().cpu().clone() for name in state if name in trained or name not in frozen}
