"""From a path or name to a `Model`: read, checked against its architecture, with packs and scalers.

A wrong file, a wrong key or a wrong shape is an error that names it; there is no way from here to random weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from neurostorm_bids.errors import (
    DeviceUnavailable,
    ModelFolderInvalid,
    PackMismatch,
    TargetScalerInvalid,
    WeightsMismatch,
)
from neurostorm_bids.model.blank import BlankWeights
from neurostorm_bids.model.card import model_card
from neurostorm_bids.model.checkpoint import Statements, read_checkpoint
from neurostorm_bids.model.config import EncoderConfig
from neurostorm_bids.model.description import ModelDescription, SelfTest
from neurostorm_bids.model.device import Precision, gpu_of_worker
from neurostorm_bids.model.encoder import Encoder, stage_channels, stage_grids
from neurostorm_bids.model.folder import (
    backbone_hash,
    checked_tensors,
    is_backbone_weight,
    is_model_folder,
    model_hash,
    read_model_folder,
    write_model_folder,
)
from neurostorm_bids.model.heads import head_for
from neurostorm_bids.model.inference import Branch, Model, n_features, self_test_of
from neurostorm_bids.model.registry import ModelSource, find_model

log = logging.getLogger(__name__)

SMALL_ENCODER = 20_000_000  # numbers; an encoder of this size may be built to name the keys that are wrong
BATCH_SIZE = {"cpu": 1, "cuda": 8}


# --- loading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """A model as read from a folder or checkpoint, its weights checked against its architecture."""

    description: ModelDescription
    weights: Mapping[str, Tensor]
    sha256: str
    self_test: SelfTest | None
    notes: tuple[str, ...]


def read_parts(found: ModelSource, stated: Statements | None = None) -> Parts:
    """Read a model folder or a reference checkpoint.

    Raises
    ------
    ModelError
        The errors of `read_model_folder` and `read_checkpoint`, and `WeightsMismatch`.
    """
    if is_model_folder(found.path):
        if stated is not None:
            raise ModelFolderInvalid("a model folder states its own input", file=found.path, expected="no statements")
        folder = read_model_folder(found.path)
        check_weights(folder.description, folder.weights, found.path)
        return Parts(folder.description, folder.weights, folder.sha256, folder.self_test, ())
    named = replace(stated or Statements(), name=(stated.name if stated else None) or found.name)
    checkpoint = read_checkpoint(found.path, named)
    check_weights(checkpoint.description, checkpoint.weights, found.path, checkpoint.unexpected)
    weights = checked_tensors(checkpoint.weights, found.path)
    owned = {name: tensor.clone() for name, tensor in weights.items()}  # not a view of a file that may go away
    return Parts(checkpoint.description, owned, model_hash(checkpoint.description, owned), None, checkpoint.notes)


def check_weights(
    description: ModelDescription, weights: Mapping[str, Tensor], file: Path, unexpected: Sequence[str] = ()
) -> None:
    """Compare names and shapes with those of the architecture, all of them, before anything is loaded.

    Raises
    ------
    WeightsMismatch
        Naming how many and which weights are missing, unexpected or of another shape.
    """
    if not description.is_pack:  # a pack's backbone is there already and was compared with it
        _check_size(description.config, weights, file)
    needed = expected_shapes(description)
    faults = {
        "missing": sorted(set(needed) - set(weights)),
        "unexpected": [*sorted(set(weights) - set(needed)), *unexpected],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {needed[name]}"
            for name in sorted(set(needed) & set(weights))
            if tuple(weights[name].shape) != needed[name]
        ],
    }
    if any(faults.values()):
        raise WeightsMismatch(
            "; ".join(f"{len(names)} weights {kind} ({_some(names)})" for kind, names in faults.items() if names),
            file=file,
            expected=f"the {len(needed)} weights of its architecture",
            remedy="is it a NeuroSTORM checkpoint, with the architecture that it states?",
        )


def _check_size(config: EncoderConfig, weights: Mapping[str, Tensor], file: Path) -> None:
    """Refuse an architecture far larger than its file, before modules of whatever size it states are built."""
    least, held = least_weights(config), sum(tensor.numel() for tensor in weights.values())
    if least > max(4 * held, SMALL_ENCODER):
        expected = f"the {least} or more of the architecture that it states"
        raise WeightsMismatch(f"holds {held} numbers", file=file, expected=expected)


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def least_weights(config: EncoderConfig) -> int:
    """Numbers that an encoder has at the very least: those of its largest matrices and position embeddings."""
    total = prod(config.patch_size) * config.in_chans * config.embed_dim
    for stage, grid in enumerate(stage_grids(config)):
        c = stage_channels(config, stage)
        block = (3 * config.expand + 2 * int(config.mlp_ratio)) * c**2 + config.expand * c * config.d_state
        total += config.depths[stage] * block + c * prod(grid)
    return total


def expected_shapes(description: ModelDescription) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a description needs; of a pack, its prompts and heads only."""
    config = description.config
    with BlankWeights():
        heads = {target.name: head_for(target, n_features(config)) for target in description.targets}
        shapes = _prompt_shapes(config) if description.is_pack else _shapes("encoder.", Encoder(config))
    for target, head in heads.items():
        shapes |= _shapes(f"head.{target}.", head)
    return shapes


def _shapes(prefix: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _prompt_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    return {
        f"encoder.layers.{stage}.blocks.{block}.prompt": (1, config.prompt_len, stage_channels(config, stage))
        for stage, depth in enumerate(config.depths)
        for block in range(depth if config.prompt_len else 0)
    }


def load_model(
    source: str | Path,
    *,
    device: str = "auto",
    target_scaler: Mapping[str, tuple[float, float]] | None = None,
    backend: str = "auto",
    packs: Iterable[str | Path] = (),
    stated: Statements | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    batch_size: int | None = None,
    precision: Precision = "32",
) -> Model:
    """Load a model folder, a reference checkpoint or a registered model.

    Parameters
    ----------
    source : str or path
        A model folder, a reference ``.ckpt``, or a name of ``neurostorm-models list``.
    device : str
        "auto" (a GPU if there is one), "cpu", "cuda" or the number of a GPU. With several GPUs and no number, the
        workers of a pool take turns.
    target_scaler : mapping, optional
        ``{"age": (54.2, 7.6)}``: mean and SD of the training target, where the model does not hold them.
    backend : str
        Scan backend, as `neurostorm_bids.model.scan` names them.
    packs : iterable of str or path
        Packs over this backbone.
    stated : Statements, optional
        What is known of a checkpoint beyond its file.
    offline : bool
        Never download.
    batch_size : int, optional
        Clips in one forward pass.
    precision : {"32", "tf32", "bf16", "16"}
        Of matrix products on a GPU.

    Raises
    ------
    ModelError
        Not found, unreadable, edited, of another architecture, with NaN; see `neurostorm_bids.errors`.
    TargetScalerInvalid, DeviceUnavailable
    """
    torch_device = _device(device)
    if torch_device.type == "cpu" and precision != "32":
        raise DeviceUnavailable(
            f"--precision {precision} is for GPUs, and this model would be computed on a CPU",
            remedy="leave it out; --scan-backend cpu-bfloat16 multiplies in bfloat16 on CPUs that can",
        )
    found = find_model(source, offline=offline, cache_dir=cache_dir)
    if found.entry is not None and not found.entry.verified and not is_model_folder(found.path):
        log.warning("%s: unverified, nobody has loaded this file with this program yet", found.name)
    parts = read_parts(found, stated)
    if parts.description.backbone is not None:
        name = parts.description.backbone.name
        raise PackMismatch("is a pack", file=found.path, remedy=f"give it with --packs, and --model {name}")
    own = _own_branch(parts)
    branches = [own, *(_pack_branch(parts, own, pack, offline, cache_dir) for pack in packs)]
    size = batch_size or BATCH_SIZE[torch_device.type]
    model = Model(branches, torch_device, backend=backend, batch_size=size, precision=precision, notes=parts.notes)
    check_scalers([model], target_scaler or {})
    return model.with_scalers(target_scaler or {})


def _device(text: str) -> torch.device:
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    n_gpus = torch.cuda.device_count()
    number = int(text.removeprefix("cuda:")) if text.removeprefix("cuda:").isdigit() else gpu_of_worker(max(n_gpus, 1))
    if text == "cpu":
        return torch.device("cpu")
    if text != "cuda" and not text.removeprefix("cuda:").isdigit():
        raise DeviceUnavailable(f"--device {text!r}", expected="auto, cpu, cuda or the number of a GPU")
    if number >= n_gpus:
        raise DeviceUnavailable(
            f"--device {text}: this machine has {n_gpus} GPUs that PyTorch can use",
            remedy="use --device cpu",
        )
    return torch.device("cuda", number)


def check_scalers(models: Sequence[Model], scalers: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a scaler for a target that none of the models predicts.

    Raises
    ------
    TargetScalerInvalid
    """
    known = sorted({target.name for model in models for target in model.targets})
    unknown = sorted(set(scalers) - set(known))
    if unknown:
        expected = "one of " + ", ".join(known) if known else "no scaler: the model has no target"
        raise TargetScalerInvalid(f"no target {', '.join(unknown)}", expected=expected)


# --- branches ---------------------------------------------------------------------------------------------------


def _own_branch(parts: Parts) -> Branch:
    return Branch.build(parts.description, parts.weights, parts.sha256, parts.self_test)


def _pack_branch(backbone: Parts, own: Branch, source: str | Path, offline: bool, cache_dir: Path | None) -> Branch:
    """The backbone with a pack's prompts and heads; without prompts on either side the very same encoder."""
    found = find_model(source, offline=offline, cache_dir=cache_dir)
    pack = read_parts(found)
    _check_backbone(backbone, pack, found.path)
    same = not pack.description.config.prompt_len and not backbone.description.config.prompt_len
    weights = {name: tensor for name, tensor in backbone.weights.items() if is_backbone_weight(name)}
    return Branch.build(
        pack.description,
        {**weights, **pack.weights},
        pack.sha256,
        pack.self_test,
        encoder=own.encoder if same else None,
    )


def _check_backbone(backbone: Parts, pack: Parts, file: Path) -> None:
    named = pack.description.backbone
    if named is None:
        raise PackMismatch("is a whole model, not a pack", file=file, remedy="give it with --model")
    description = backbone.description
    own = backbone_hash(description.config, description.input, backbone.weights)
    plain = replace(pack.description.config, prompt_len=0)
    if named.sha256 != own or plain != replace(description.config, prompt_len=0):
        raise PackMismatch(
            f"belongs to the backbone {named.name} ({named.sha256[:12]})",
            file=file,
            expected=f"{description.name} ({own[:12]})",
            remedy=f"give --model {named.name}, or a pack trained on {description.name}",
        )


# --- neurostorm-models ------------------------------------------------------------------------------------------


def convert_checkpoint(
    checkpoint: Path, folder: Path, stated: Statements | None = None, licence: str = ""
) -> tuple[str, ...]:
    """Write a model folder from a reference checkpoint; returns what was found, left out and assumed."""
    found = find_model(Path(checkpoint))
    if is_model_folder(found.path):
        raise ModelFolderInvalid("is a model folder already", file=found.path, expected="a checkpoint")
    parts = read_parts(found, stated)
    description = replace(parts.description, licence=licence, summary=f"Converted from {found.path.name}.")
    branch = Branch.build(description, parts.weights, parts.sha256, None)
    write_model_folder(
        folder,
        description,
        parts.weights,
        self_test=self_test_of(branch.encoder),
        training={"converted_from": found.path.name, "notes": list(parts.notes)},
    )
    return parts.notes


def verify_model(source: str | Path, *, device: str = "cpu", backbone: str | None = None) -> str:
    """Check a model folder's hashes and recompute its recorded embedding; of a pack, over ``backbone``.

    Returns
    -------
    str
        What was checked.

    Raises
    ------
    ModelError
        The first thing that is wrong.
    """
    found = find_model(source, offline=True)
    pack = is_model_folder(found.path) and read_parts(found).description.is_pack
    if pack and backbone is None:
        return "hashes match; name its --backbone to recompute the embedding"
    model = load_model(backbone if pack and backbone else source, packs=[source] if pack else [], device=device)
    differences = [difference for difference in model.self_test() if difference is not None]
    if not differences:
        return (
            "weights and architecture match; no test embedding is recorded, so that nothing shows whether this machine "
            "computes it right: neurostorm-models convert, and training, make folders that have one"
        )
    return f"hashes match, embedding within {max(differences):.1e} of the recorded one"


def card_of(source: str | Path, *, offline: bool = False) -> str:
    """The model card of a folder, or one made of a checkpoint."""
    found = find_model(source, offline=offline)
    card = found.path / "MODEL_CARD.md"
    return card.read_text(encoding="utf-8") if card.is_file() else model_card(read_parts(found).description)
