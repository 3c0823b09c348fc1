"""A loaded model: clips in, embeddings and predictions out.

A `Model` has a branch for itself and one for every pack. A branch is an encoder with the heads that read it; the
encoder of a pack with prompts shares its backbone's tensors and needs a forward pass of its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from neurostorm_bids.errors import ClipsInvalid, ModelUntrained, PackMismatch, SelfTestFailed
from neurostorm_bids.model.blank import BlankWeights
from neurostorm_bids.model.config import EncoderConfig, InputSpec, Target
from neurostorm_bids.model.description import Backbone, ModelDescription, SelfTest, model_label
from neurostorm_bids.model.device import Precision, computing_in
from neurostorm_bids.model.encoder import Encoder, check_clips, stage_channels
from neurostorm_bids.model.folder import backbone_hash, weights_of
from neurostorm_bids.model.heads import head_for, pool
from neurostorm_bids.model.predict import Prediction, predict, with_scaler
from neurostorm_bids.model.scan import resolve_backend
from neurostorm_bids.space.grid import Grid

SELF_TEST_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Branch:
    """An encoder with the heads that read it: the model's own, or its backbone with a pack's prompts and heads."""

    description: ModelDescription
    sha256: str
    encoder: Encoder
    heads: Mapping[str, nn.Module]
    self_test: SelfTest | None

    @classmethod
    def build(
        cls,
        description: ModelDescription,
        weights: Mapping[str, Tensor],
        sha256: str,
        self_test: SelfTest | None,
        encoder: Encoder | None = None,
    ) -> Branch:
        """Modules with the given weights, or with an encoder that is there already; tensors are shared."""
        channels = n_features(description.config)
        with BlankWeights():
            built = encoder or _with_weights(Encoder(description.config), "encoder.", weights)
            heads = {
                target.name: _with_weights(head_for(target, channels), f"head.{target.name}.", weights)
                for target in description.targets
            }
        return cls(description, sha256, built, heads, self_test)


def _with_weights(module: nn.Module, prefix: str, weights: Mapping[str, Tensor]):
    state = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


class Model:
    """Weights, architecture, input and targets, ready to embed and to predict.

    Attributes
    ----------
    backend : str
        The scan that computes it, never "auto".
    batch_size : int
        Clips in one forward pass.
    precision : {"32", "tf32", "bf16", "16"}
        Of matrix products; sums, scan states and everything outside the encoder are float32.
    notes : tuple of str
        What reading a checkpoint found, left out and assumed.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        device: torch.device,
        *,
        backend: str = "auto",
        batch_size: int = 1,
        precision: Precision = "32",
        notes: tuple[str, ...] = (),
    ) -> None:
        self._branches, self._device = tuple(branches), device
        self.backend = resolve_backend(backend, device)
        self.batch_size, self.precision, self.notes = batch_size, precision, notes
        self._scalers: dict[str, tuple[float, float]] = {}
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise PackMismatch(f"two packs predict one target ({', '.join(names)})", expected="different targets")
        for branch in branches:
            branch.encoder.use_backend(self.backend)
            for module in (branch.encoder, *branch.heads.values()):
                module.to(device)

    # what it is

    @property
    def description(self) -> ModelDescription:
        """The description of the model itself, without its packs."""
        return self._branches[0].description

    @property
    def name(self) -> str:
        """The name as people write it."""
        return self.description.name

    @property
    def label(self) -> str:
        """Letters and digits of the name, for file names."""
        return model_label(self.name)

    @property
    def hash(self) -> str:
        """SHA-256 of all that decides an output: weights, architecture, input, targets, packs, stated scalers."""
        parts = self.parts
        if len(parts) == 1 and not self._scalers:
            return parts[0][1]
        return hashlib.sha256(json.dumps([parts, sorted(self._scalers.items())]).encode()).hexdigest()

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Name and hash of the model and of each pack."""
        return tuple((branch.description.name, branch.sha256) for branch in self._branches)

    @property
    def config(self) -> EncoderConfig:
        """The encoder's architecture."""
        return self.description.config

    @property
    def input(self) -> InputSpec:
        """The input it was trained on."""
        return self.description.input

    @property
    def grid(self) -> Grid:
        """The voxel grid of its input."""
        return self.input.grid

    @property
    def targets(self) -> tuple[Target, ...]:
        """Targets of the model and of its packs, with the scalers stated."""
        return tuple(target for branch in self._branches for target in branch.description.targets)

    def description_of(self, target: str) -> ModelDescription:
        """The description, of the model itself or of a pack, that a target belongs to."""
        found = (branch.description for branch in self._branches)
        return next(d for d in found if any(one.name == target for one in d.targets))

    @property
    def trained(self) -> bool:
        """False: a random start; embeddings mean nothing."""
        return self.description.trained

    @property
    def device(self) -> str:
        """Device of its weights."""
        return str(self._device)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the model itself."""
        return self._branches[0].encoder

    def branch_of(self, target: str) -> Branch:
        """The encoder and heads, of the model itself or of a pack, that predict a target.

        Raises
        ------
        KeyError
            It predicts no such target.
        """
        for branch in self._branches:
            if target in branch.heads:
                return branch
        raise KeyError(target)

    @property
    def backbone(self) -> Backbone:
        """How a pack trained on this model names it."""
        weights = weights_of(self.encoder, {})
        return Backbone(self.name, backbone_hash(self.config, self.input, weights))

    @property
    def n_features(self) -> int:
        """Length of an embedding."""
        return n_features(self.config)

    def with_scalers(self, scalers: Mapping[str, tuple[float, float]]) -> Model:
        """This model with the scalers of its regression targets stated; scalers of other targets are not for it.

        Raises
        ------
        TargetScalerInvalid
        """
        own = {target.name: scalers[target.name] for target in self.targets if target.name in scalers}
        stated = copy.copy(self)
        stated._branches = tuple(_scaled(branch, own) for branch in self._branches)
        stated._scalers = {**self._scalers, **{name: (float(a), float(b)) for name, (a, b) in own.items()}}
        return stated

    # what it computes

    def embed(self, clips: Tensor | np.ndarray) -> Tensor:
        """Embeddings: the encoder's features averaged over space and time.

        Parameters
        ----------
        clips : (n, channels, X, Y, Z, T)
            Normalised clips on the model's grid; T at most the model's.

        Returns
        -------
        Tensor
            (n, C) float32 on the CPU.

        Raises
        ------
        ClipsInvalid
            Another shape, NaN or infinity.
        """
        return self._embed(self.encoder, clips)

    def predict(self, clips: Tensor | np.ndarray) -> dict[str, Prediction]:
        """Predictions of every target, a row per clip.

        Raises
        ------
        ModelUntrained
            The model is a random start.
        ClipsInvalid
        """
        if not self.trained and not self.targets:  # a pack over a random start is trained itself
            raise ModelUntrained(f"{self.name} is untrained: it gives embeddings only", remedy="use embed")
        return self.embed_and_predict(clips)[1]

    def embed_and_predict(self, clips: Tensor | np.ndarray) -> tuple[Tensor, dict[str, Prediction]]:
        """Embeddings and predictions with as few forward passes as there are different prompts.

        Without targets the predictions are empty. See `predict.joined` for putting batches together.
        """
        embedding = self.embed(clips)
        predictions: dict[str, Prediction] = {}
        for branch in self._branches:
            shared = branch.encoder is self.encoder or not branch.heads
            features = embedding if shared else self._embed(branch.encoder, clips)
            predictions |= self._predict(branch, features)
        return embedding, predictions

    def predict_from_embedding(self, features: Tensor | np.ndarray) -> dict[str, Prediction]:
        """Predictions from `embed`'s output.

        Parameters
        ----------
        features : (n, C)

        Raises
        ------
        PackMismatch
            A pack has prompts: its heads read features of a forward pass of its own, not these.
        ClipsInvalid
            Another shape.
        """
        prompted = [b for b in self._branches if b.encoder is not self.encoder and b.heads]
        if prompted:
            names = ", ".join(target.name for branch in prompted for target in branch.description.targets)
            raise PackMismatch(f"the heads of {names} read prompted features", remedy="use embed_and_predict")
        features = torch.tensor(np.asarray(features, dtype=np.float32))
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise ClipsInvalid(f"features of shape {tuple(features.shape)}", expected=f"(n, {self.n_features})")
        predictions: dict[str, Prediction] = {}
        for branch in self._branches:
            predictions |= self._predict(branch, features)
        return predictions

    def self_test(self) -> tuple[float | None, ...]:
        """Recompute the recorded embedding of each branch; None where none is recorded.

        Returns
        -------
        tuple of float or None
            Largest difference relative to the largest value, of the model and of each pack.

        Raises
        ------
        SelfTestFailed
            A difference above `SELF_TEST_TOLERANCE`.
        """
        return tuple(self._self_test(branch) for branch in self._branches)

    def _self_test(self, branch: Branch) -> float | None:
        if branch.self_test is None:
            return None
        recorded = np.array(branch.self_test.embedding)
        found = self._embed(branch.encoder, self_test_clip(self.config, branch.self_test.seed))[0].numpy()
        difference = np.inf
        if found.shape == recorded.shape:
            difference = float(np.abs(found - recorded).max() / max(np.abs(recorded).max(), 1e-30))
        if not difference <= SELF_TEST_TOLERANCE:
            raise SelfTestFailed(
                f"{branch.description.name}: its test embedding is off by {difference:.1e} of its largest value",
                expected=f"at most {SELF_TEST_TOLERANCE:g}",
                remedy="try --device cpu; if it stays, this machine does not compute the model: please report it",
            )
        return difference

    @torch.no_grad()
    def _embed(self, encoder: Encoder, clips: Tensor | np.ndarray) -> Tensor:
        clips = self._checked(clips)
        chunks = [chunk for chunk in clips.split(self.batch_size) if len(chunk)]
        with computing_in(self.precision, self._device):
            rows = [pool(encoder(chunk.to(self._device))).float().cpu() for chunk in chunks]
        features = torch.cat(rows) if rows else torch.zeros(0, self.n_features)  # (n, C)
        if not features.isfinite().all():
            cause = "the clips hold NaN or infinity" if not clips.isfinite().all() else "the model overflows"
            raise ClipsInvalid(f"the embedding is not finite: {cause}", expected="normalised clips")
        return features

    @torch.no_grad()
    def _predict(self, branch: Branch, features: Tensor) -> dict[str, Prediction]:
        on_device = features.to(self._device)
        return {
            target.name: predict(target, branch.heads[target.name](on_device)) for target in branch.description.targets
        }

    def _checked(self, clips: Tensor | np.ndarray) -> Tensor:
        if not isinstance(clips, Tensor):
            clips = torch.from_numpy(np.require(clips, np.float32, ["C", "W"]))
        check_clips(clips, self.config)
        return clips.float()


def n_features(config: EncoderConfig) -> int:
    """Length of an embedding: the channels of the last stage."""
    return stage_channels(config, len(config.depths) - 1)


def _scaled(branch: Branch, scalers: Mapping[str, tuple[float, float]]) -> Branch:
    targets = tuple(
        with_scaler(target, *scalers[target.name]) if target.name in scalers else target
        for target in branch.description.targets
    )
    return replace(branch, description=replace(branch.description, targets=targets))


def self_test_clip(config: EncoderConfig, seed: int) -> np.ndarray:
    """The input of a self-test: standard normal, the same on every machine.  # (1, channels, X, Y, Z, T)"""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.standard_normal((1, config.in_chans, *config.img_size), dtype=np.float32)


@torch.no_grad()
def self_test_of(encoder: Encoder, seed: int = 0) -> SelfTest:
    """The embedding to record with an encoder, computed where the encoder is."""
    device = next(encoder.parameters()).device
    clip = torch.from_numpy(self_test_clip(encoder.config, seed)).to(device)
    was_training = encoder.training
    embedding = pool(encoder.eval()(clip))[0].float().cpu()  # (C,)
    encoder.train(was_training)
    return SelfTest(seed, tuple(float(x) for x in embedding))
