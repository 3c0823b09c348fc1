"""Lightning modules: masked autoencoding, contrastive pretraining, and fine-tuning with a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurostorm_bids.errors import TrainingDiverged
from neurostorm_bids.model.config import EncoderConfig, Target
from neurostorm_bids.model.contrastive import instance_loss, local_local_loss
from neurostorm_bids.model.encoder import Encoder, initialise, patches_of, stage_channels
from neurostorm_bids.model.heads import EMBEDDING, pool
from neurostorm_bids.model.mae import MaskedAutoencoder, Reconstruction
from neurostorm_bids.model.masks import Masking
from neurostorm_bids.model.strd import RedundancyDropout
from neurostorm_bids.model.windows import Size
from neurostorm_bids.training.processes import collected, gathered, summed, world_size
from neurostorm_bids.training.schedule import Course, optimiser

Batch = dict[str, Any]
SHOWN = 8


class Learner(L.LightningModule):
    """What all trainings share: optimiser, schedule, a loss that must be finite, and what is logged.

    ``n_steps`` is set before training begins; the schedule needs it.
    """

    def __init__(self, course: Course) -> None:
        super().__init__()
        self.course, self.n_steps = course, 1

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and half a cosine, step by step."""
        adamw, schedule = optimiser(self, self.course, self.n_steps)
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is minimised on this process, and the loss of the whole batch, which is logged."""
        raise NotImplementedError

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """One batch.

        Raises
        ------
        TrainingDiverged
            The loss is NaN or infinite.
        """
        loss, shown = self.loss_of(batch)
        require_finite(shown, batch, self.current_epoch, self.global_step)
        self.log("loss", shown.detach(), prog_bar=True, batch_size=len(batch["index"]))
        return loss


def require_finite(loss: Tensor, batch: Batch, epoch: int, step: int) -> None:
    """Refuse a loss that is not finite, naming the files of the batch and those whose clips are to blame.

    Raises
    ------
    TrainingDiverged
    """
    if bool(torch.isfinite(loss)):
        return
    finite = torch.isfinite(batch["clips"]).flatten(1).all(1).tolist()
    broken = [name for name, good in zip(batch["files"], finite, strict=True) if not good]
    cause = f"NaN or infinite values in {_some(broken)}" if broken else "every clip of the batch is finite"
    when = f"in epoch {epoch + 1}, step {step + 1}"
    raise TrainingDiverged(
        f"the loss is {float(loss)} {when} ({cause}); the batch: {_some(batch['files'])}",
        expected="a finite loss",
        remedy="Look at these runs" if broken else "Lower --learning-rate or --gradient-clip, or use --precision 32",
    )


def _some(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- pretraining ------------------------------------------------------------------------------------------------


class MaskedPretraining(Learner):
    """The masked autoencoder; its loss is the mean over hidden patches of the whole batch."""

    def __init__(
        self,
        config: EncoderConfig,
        course: Course,
        masking: Masking,
        *,
        strd: RedundancyDropout | None = None,
        atlas: np.ndarray | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(course)
        generator = torch.Generator().manual_seed(course.seed)
        self.autoencoder = MaskedAutoencoder(
            config, masking, atlas=atlas, backend=backend, strd=strd, generator=generator
        )
        _freeze_unused_tokens(self.autoencoder)
        self.tracks_datasets, self.dataset_losses = False, dict[str, float]()
        self._by_dataset: list[dict[str, tuple[float, float]]] = []
        self._hidden: list[float] = []  # patches hidden by the whole batch over those of a process, since the last step
        self._sums: list[Tensor] = []

    @property
    def encoder_state(self) -> dict[str, Tensor]:
        """The weights of the encoder alone."""
        return self.autoencoder.encoder_state()

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Squared error over hidden patches, for now by the number of all patches; the loss by that of hidden ones.

        How many patches a step hides is known when its last batch is, and then the gradient is set right: a step means
        the same however it is shared out among processes and accumulated batches.
        """
        found = self.autoencoder(batch["clips"], batch["keys"])
        n_hidden = summed(found.n_hidden)
        if self.tracks_datasets:
            self._by_dataset.append(_error_by_dataset(found, batch, self.autoencoder.config.patch_size))
        self._hidden.append(float(n_hidden / found.hidden.numel()))
        return found.error_sum / found.hidden.numel(), summed(found.error_sum) / n_hidden

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """From the mean over all patches, processes and batches to the mean over the hidden ones of all of them."""
        # processes and accumulated batches average their gradients: times their numbers, over all hidden patches
        factor = world_size() * self.course.accumulate / sum(self._hidden)
        self._hidden.clear()
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad.mul_(factor)

    def on_train_epoch_end(self) -> None:
        """Keep the mean loss of each dataset's clips: the next epoch may be drawn by them."""
        found = collected(self._by_dataset)
        names = sorted({name for part in found for name in part})
        sums = {name: np.sum([part[name] for part in found if name in part], axis=0) for name in names}
        self.dataset_losses = {name: float(error / max(1.0, n_hidden)) for name, (error, n_hidden) in sums.items()}
        self._by_dataset = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Losses by dataset are part of the state."""
        checkpoint["dataset_losses"] = self.dataset_losses, collected(self._by_dataset)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Losses by dataset are part of the state."""
        self.dataset_losses, parts = checkpoint["dataset_losses"]
        self._by_dataset = parts if self.global_rank == 0 else []

    def validation_step(self, batch: Batch, number: int) -> None:
        """Add up error and hidden patches of a batch."""
        found = self.autoencoder(batch["clips"], batch["keys"])
        self._sums.append(torch.stack([found.error_sum.double(), found.n_hidden.double()]))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all hidden patches."""
        nothing = torch.zeros(2, dtype=torch.float64, device=self.device)
        error, n_hidden = summed(torch.stack([nothing, *self._sums]).sum(0))
        self._sums.clear()
        self.log("validation_loss", (error / n_hidden).float(), prog_bar=True)


@torch.no_grad()
def _error_by_dataset(found: Reconstruction, batch: Batch, patch: Size) -> dict[str, tuple[float, float]]:
    """Error and number of hidden patches of each dataset's clips."""
    names = np.array(batch["datasets"])
    patches = patches_of(batch["clips"], patch)
    error = ((found.patches - patches).square().mean(-1) * found.hidden).flatten(1).sum(1).cpu().numpy()  # (n,)
    hidden = found.hidden.flatten(1).sum(1).cpu().numpy()
    return {str(name): (float(error[names == name].sum()), float(hidden[names == name].sum())) for name in set(names)}


def _freeze_unused_tokens(model: MaskedAutoencoder) -> None:
    """Only the token of this kind of mask is trained: processes that share a batch wait for every gradient."""
    masking = model.masking
    used = "mask_token"
    if masking.spatial == "atlas":
        used = "atlas_mask_token"
    elif (masking.spatial, masking.temporal) == ("window", "random"):
        used = "window_mask_token"
    for name in ("mask_token", "window_mask_token", "atlas_mask_token"):
        getattr(model, name).requires_grad_(name == used)


class ContrastivePretraining(Learner):
    """Contrast over two clips of each person.

    Clips that come in two augmented views each are contrasted by instance (people) and local-local (times of a run), in
    equal parts; clips as they are, by instance alone.
    """

    def __init__(
        self,
        config: EncoderConfig,
        course: Course,
        *,
        strd: RedundancyDropout | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(course)
        generator = torch.Generator().manual_seed(course.seed)
        self.encoder = Encoder(config, backend=backend, strd=strd, generator=generator)
        c = stage_channels(config, len(config.depths) - 1)
        # embeddings of fresh weights hardly differ: normalised over the batch they can be told apart from the start
        self.projection = nn.Sequential(nn.Linear(c, c), nn.BatchNorm1d(c), nn.ReLU(), nn.Linear(c, EMBEDDING))
        for layer in self.projection:
            if isinstance(layer, nn.Linear):
                initialise(layer, generator)
        self._losses: list[float] = []

    @property
    def encoder_state(self) -> dict[str, Tensor]:
        """The weights of the encoder alone."""
        return self.encoder.state_dict()

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the whole batch: every process projects all clips, which normalises over all of them."""
        embeddings = gathered(pool(self.encoder(batch["clips"], batch["keys"])))  # (n views, c)
        loss = contrast(self.projection(embeddings), batch["views"])
        return loss, loss

    def validation_step(self, batch: Batch, number: int) -> None:
        """The same loss, over the people of a batch; one who is alone in it tells nothing."""
        if len(batch["index"]) > 1:
            vectors = self.projection(pool(self.encoder(batch["clips"], batch["keys"])))
            self._losses.append(float(contrast(vectors, batch["views"])))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over batches."""
        losses = collected(self._losses)
        self._losses = []
        self.log("validation_loss", float(np.mean(losses)) if losses else float("inf"), prog_bar=True)


def contrast(vectors: Tensor, n_views: int) -> Tensor:
    """Instance loss over pairs of clips; where each clip comes twice, the mean of it and the local-local loss.

    Parameters
    ----------
    vectors : Tensor
        (people views, size): clip 1, clip 2 of each person, then the same again where clips come twice.
    n_views : int
        2 or 4.
    """
    views = vectors.unflatten(0, (-1, n_views // 2, 2))  # (people, round, clip, size)
    instance = instance_loss(views[:, 0, 0], views[:, 0, 1])
    return instance if n_views == 2 else (instance + local_local_loss(views[:, 0], views[:, 1])) / 2


# --- fine-tuning ------------------------------------------------------------------------------------------------


class Finetuning(Learner):
    """An encoder and the head of one target; ``method`` says what of the encoder is trained."""

    class_weights: Tensor

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        target: Target,
        course: Course,
        *,
        method: str,
        class_weights: np.ndarray | None = None,
    ) -> None:
        super().__init__(course)
        self.encoder, self.head, self.target, self.method = encoder, head, target, method
        weights = np.ones(max(1, len(target.classes))) if class_weights is None else class_weights
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        for name, weight in encoder.named_parameters():
            weight.requires_grad_(method == "full" or name.endswith(".prompt"))
        self._outputs: list[tuple[int, float, np.ndarray]] = []

    def train(self, mode: bool = True) -> Finetuning:
        """A frozen encoder stays as it is in use: in eval mode."""
        super().train(mode)
        self.encoder.train(mode and self.method == "full")
        return self

    def outputs_of(self, batch: Batch) -> Tensor:
        """What the head makes of each clip.  # (n views, outputs)"""
        return self.head(pool(self.encoder(batch["clips"], batch["keys"])))

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the whole batch: heads are small, so every process computes them for all clips."""
        features = gathered(pool(self.encoder(batch["clips"], batch["keys"])))
        loss = target_loss(self.target, self.head(features), gathered(batch["labels"]), self.class_weights)
        return loss, loss

    def validation_step(self, batch: Batch, number: int) -> None:
        """Keep the outputs of a batch."""
        outputs = self.outputs_of(batch).float().cpu().numpy()
        self._outputs += list(zip(batch["index"].tolist(), batch["labels"].tolist(), outputs, strict=True))

    def on_validation_epoch_end(self) -> None:
        """Log the loss over all clips."""
        found = sorted(collected(self._outputs), key=lambda row: row[0])
        self._outputs = []
        outputs = torch.from_numpy(np.stack([row[2] for row in found]))
        labels = torch.tensor([row[1] for row in found])
        loss = evaluation_loss(self.target, outputs, labels, self.class_weights.cpu())
        self.log("validation_loss", loss, prog_bar=True)


def target_loss(target: Target, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The loss of a batch of clips; class weights are those of all training data, so that no batch decides them.

    Parameters
    ----------
    target : Target
    outputs : Tensor
        (n, outputs); of a retrieval (2 n, size), pairs next to each other.
    labels : Tensor
        (n,): standardised values, or numbers of classes.
    weights : Tensor
        (classes,).
    """
    outputs = outputs.float()
    if target.kind == "regression":
        return F.mse_loss(outputs[:, 0], labels)
    if target.kind == "retrieval":
        pairs = outputs.unflatten(0, (-1, 2))  # (n, 2, size)
        return instance_loss(pairs[:, 0], pairs[:, 1])
    return (_class_losses(outputs, labels) * weights[labels.long()]).mean()


def _class_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each clip.  # (n, outputs), (n,) -> (n,)"""
    if outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], labels, reduction="none")
    return F.cross_entropy(outputs, labels.long(), reduction="none")


def evaluation_loss(target: Target, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """`target_loss` of many clips, as validation takes it: of a retrieval, the labels are numbers of people.

    People are told apart by their first and their second half of clips, each averaged.
    """
    if target.kind != "retrieval":
        return target_loss(target, outputs, labels, weights)
    people = [outputs[labels == person] for person in labels.unique()]
    halves = [(rows[: len(rows) // 2].mean(0), rows[len(rows) // 2 :].mean(0)) for rows in people if len(rows) > 1]
    if len(halves) < 2:
        return torch.tensor(float("inf"))
    return instance_loss(torch.stack([first for first, _ in halves]), torch.stack([second for _, second in halves]))
