"""The reference's Lightning checkpoints, translated: the only module that knows their keys.

``model.<key>`` becomes ``encoder.<key>``, ``output_head.<key>`` becomes ``head.<target>.<key>``. The file says neither
``pytorch-lightning_version`` nor a grid nor a scaler; what it does not say is stated by the caller, assumed and marked
so, or refused: window sizes change no shape, so a wrong guess would load without a word.
"""

from __future__ import annotations

import reprlib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor

from neurostorm_bids.errors import (
    ArchitectureContradicted,
    ArchitectureUnstated,
    TargetUnstated,
    UnsupportedCheckpoint,
)
from neurostorm_bids.model.archive import read_archive, tensors_of
from neurostorm_bids.model.config import EncoderConfig, InputSpec, Provenance, Target
from neurostorm_bids.model.description import (
    NORMALISATIONS,
    Entries,
    ModelDescription,
    architecture_from_json,
    architecture_to_json,
    check_description,
)
from neurostorm_bids.model.predict import with_scaler
from neurostorm_bids.space.grid import Grid

Orientation = Literal["LAS", "RAS"]

DECODER_PREFIXES = (
    *("mask_token", "window_mask_token", "atlas_mask_token", "first_patch_expanding."),
    *("layers_up.", "norm_up.", "decoder_pred."),
)
# the first three change no name and no shape of a weight; the others cannot be told from the shapes alone
_REQUIRED = (
    *("window_size", "first_window_size", "last_layer_full_MSA"),
    *("img_size", "patch_size", "embed_dim", "depths"),
)
_V1, _V2 = {"head.head.weight", "head.head.bias"}, {"head.hidden.weight", "head.hidden.bias"}
_EMB = {
    *("fc1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"),
}


@dataclass(frozen=True, kw_only=True)
class Statements:
    """What the user knows about a checkpoint that the file does not say.

    Parameters
    ----------
    architecture : mapping
        Entries of `EncoderConfig` that the hyper-parameters lack; one that contradicts them is refused.
    grid : Grid, optional
        The grid of the arrays it was trained on.
    orientation : {"LAS", "RAS"}, optional
        Of the 2 mm arrays it was trained on, where no grid is given.
    t_r_s : float, optional
        Seconds between frames of its clips.
    target : Target, optional
        What the head predicts, under which name, in which unit or with which classes.
    ignore : tuple of str
        Beginnings of keys to leave out, which are else refused as unexpected ("output_head." drops the head).
    name : str, optional
    """

    architecture: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    orientation: Orientation | None = None
    t_r_s: float | None = None
    target: Target | None = None
    ignore: tuple[str, ...] = ()
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A reference checkpoint in this program's terms.

    ``weights`` holds ``encoder.*`` and ``head.<target>.*``, ``decoder`` the weights of a masked autoencoder's decoder
    (reference names), ``unexpected`` keys that belong to neither; ``notes`` is the report for people.
    """

    path: Path
    description: ModelDescription
    weights: Mapping[str, Tensor]
    decoder: Mapping[str, Tensor]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]


def read_checkpoint(path: Path | str, stated: Statements | None = None) -> Checkpoint:
    """Read a reference checkpoint and say what in it was found, left out and assumed.

    Names and shapes are checked against the architecture by `neurostorm_bids.model.weights.check_weights`.

    Raises
    ------
    ModelFileUnreadable, ModelFileTooLarge, UnsafeCheckpoint
        From `read_archive`.
    ArchitectureUnstated, ArchitectureContradicted, TargetUnstated, UnsupportedCheckpoint, ModelFolderInvalid
    """
    path, stated = Path(path), stated or Statements()
    values = read_archive(path)
    parameters = _hyper_parameters(values, path)
    keys = _sorted_keys(_state_dict(values, path), stated.ignore)
    config = _architecture(parameters, keys.encoder, stated, path)
    targets = _targets(parameters, keys.head, stated, path)
    weights = {f"encoder.{key}": tensor for key, tensor in keys.encoder.items()}
    weights |= {f"head.{target.name}.{key}": tensor for target in targets for key, tensor in keys.head.items()}
    description = ModelDescription(
        name=stated.name or path.stem,
        config=config,
        input=_input(parameters, config, stated, path),
        targets=targets,
        source=path.name,
    )
    check_description(description, path)
    return Checkpoint(
        path=path,
        description=description,
        weights=weights,
        decoder=keys.decoder,
        unexpected=keys.unexpected,
        notes=_notes(values, keys, description),
    )


# --- keys -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Keys:
    encoder: dict[str, Tensor]
    head: dict[str, Tensor]
    decoder: dict[str, Tensor]
    buffers: tuple[str, ...]
    ignored: tuple[str, ...]
    unexpected: tuple[str, ...]


def _state_dict(values: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = values.get("state_dict", values)
    if not isinstance(state, dict) or not state:
        raise UnsupportedCheckpoint("has no state_dict", file=path, expected="a NeuroSTORM Lightning checkpoint")
    return tensors_of(state, path)


def _sorted_keys(state: Mapping[str, Tensor], ignore: tuple[str, ...]) -> _Keys:
    """Sort the keys into encoder, head, decoder, buffers and the rest.

    A file whose keys carry no ``model.`` at all is a bare state dict of the encoder or the autoencoder.
    """
    bare = not any(key.startswith(("model.", "output_head.")) for key in state)
    kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("encoder", "head", "decoder", "buffer", "other")}
    kept = {key: tensor for key, tensor in state.items() if not (ignore and key.startswith(ignore))}
    for key, tensor in kept.items():
        kind, short = _kind_of(key, bare)
        kinds[kind][short] = tensor
    ignored = tuple(sorted(set(state) - set(kept)))
    buffers, other = tuple(sorted(kinds["buffer"])), tuple(sorted(kinds["other"]))
    return _Keys(kinds["encoder"], kinds["head"], kinds["decoder"], buffers, ignored, other)


def _kind_of(key: str, bare: bool) -> tuple[str, str]:
    if key.startswith("output_head."):
        return "head", key.removeprefix("output_head.")
    if not (bare or key.startswith("model.")):
        return "other", key
    short = key.removeprefix("model.")
    if short == "atlas_map":  # a buffer of atlas masking; pretraining alone needs it
        return "buffer", short
    return ("decoder", short) if short.startswith(DECODER_PREFIXES) else ("encoder", short)


# --- hyper-parameters -------------------------------------------------------------------------------------------


def _hyper_parameters(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    found = values.get("hyper_parameters", {}) if "state_dict" in values else {}
    found = vars(found) if isinstance(found, Namespace) else found
    if not isinstance(found, dict):
        raise UnsupportedCheckpoint(
            f"its hyper_parameters are a {type(found).__name__}", file=path, expected="a dictionary"
        )
    if found.get("with_voxel_norm"):
        raise UnsupportedCheckpoint(
            "was trained with voxel-wise mean and SD beside the image (with_voxel_norm)",
            file=path,
            expected="one normalised image",
        )
    return {str(name): list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _architecture(
    parameters: Mapping[str, Any], encoder: Mapping[str, Tensor], stated: Statements, path: Path
) -> EncoderConfig:
    known = {name: parameters[name] for name in architecture_to_json(EncoderConfig()) if name in parameters}
    known["prompt_len"] = _prompt_length(parameters, encoder)
    for name, value in stated.architecture.items():
        wanted = list(value) if isinstance(value, tuple) else value
        if name in known and known[name] != wanted and isinstance(known[name], int | list):
            fault = f"its hyper-parameters say {name} {reprlib.repr(known[name])}, and {wanted} was stated"
            raise ArchitectureContradicted(fault, file=path, expected="the same", remedy="leave the statement out")
        known[name] = wanted
    missing = [name for name in _REQUIRED if name not in known]
    if missing:
        raise ArchitectureUnstated(
            f"does not say {', '.join(missing)}; no weight would show a wrong guess",
            file=path,
            expected="hyper_parameters with all of " + ", ".join(_REQUIRED),
            remedy="state them: neurostorm-models convert CHECKPOINT FOLDER " + " ".join(map(_option, missing)),
        )
    return architecture_from_json(Entries(architecture_to_json(EncoderConfig()) | known, "hyper_parameters", path))


def _option(name: str) -> str:
    value = {"last_layer_full_MSA": "true|false", "embed_dim": "N", "depths": "N N N N"}.get(name, "X Y Z T")
    return f"--{name.lower().replace('_', '-')} {value}"


def _prompt_length(parameters: Mapping[str, Any], encoder: Mapping[str, Tensor]) -> Any:
    """Prompts, if the file says it used them; a file that says neither shows it in its shapes.

    ``prompt_len`` alone proves nothing: it is 50 in every file, used or not.
    """
    if "use_prompt_tuning" in parameters:
        return parameters.get("prompt_len", 50) if parameters["use_prompt_tuning"] else 0
    prompts = [tensor for key, tensor in encoder.items() if key.endswith(".prompt") and tensor.ndim == 3]
    return int(prompts[0].shape[1]) if prompts else 0


def reference_grid(shape: tuple[int, int, int], orientation: Orientation = "LAS") -> Grid:
    """The grid on which the reference's crop and pad of FSL's MNI152 2 mm array (91 x 109 x 91) leaves a volume.

    An axis that is longer is cropped from ``(n - size) // 2`` on, a shorter one is padded by the larger half before.
    "LAS" is FSL's own array, for 96 x 96 x 96 `NEUROSTORM_2MM`; "RAS" the same template as fMRIPrep writes it.
    """
    full = np.array([91, 109, 91])
    first = np.array([(n - m) // 2 if n >= m else -((m - n + 1) // 2) for n, m in zip(full, shape, strict=True)])
    if orientation == "LAS":
        affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    else:
        affine = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    affine[:3, 3] += affine[:3, :3] @ first
    return Grid.of(shape, affine, "MNI152NLin6Asym")


def _input(parameters: Mapping[str, Any], config: EncoderConfig, stated: Statements, path: Path) -> InputSpec:
    assumed = {"sequence_length": config.img_size[3], "stride_within_seq": 1}
    entries = Entries({**assumed, **parameters}, "hyper_parameters", path)
    frames = entries.integer("sequence_length", 1, 1024)
    stride = entries.integer("stride_within_seq", 1, 1024)
    shape = cast(tuple[int, int, int], config.img_size[:3])
    grid = stated.grid or reference_grid(shape, stated.orientation or "LAS")
    known: dict[str, bool] = {
        "grid": stated.grid is not None or stated.orientation is not None,
        "t_r_s": stated.t_r_s is not None,
        "clip_frames": "sequence_length" in parameters,
    }
    provenance: dict[str, Provenance] = {name: "stated" if found else "assumed" for name, found in known.items()}
    return InputSpec(
        grid=grid,
        t_r_s=stated.t_r_s if stated.t_r_s is not None else 0.8 * stride,
        clip_frames=min(frames, config.img_size[3]),
        normalisation=NORMALISATIONS[0],
        provenance=provenance | {"normalisation": "assumed", "background": "assumed"},
    )


# --- head -------------------------------------------------------------------------------------------------------


def _targets(
    parameters: Mapping[str, Any], head: Mapping[str, Tensor], stated: Statements, path: Path
) -> tuple[Target, ...]:
    if not head:
        if stated.target is not None:
            raise UnsupportedCheckpoint(
                f"has no head, and the target {stated.target.name} was stated", file=path, expected="a fine-tuned file"
            )
        return ()
    if set(head) == _EMB:
        return (_as_stated(Target("identity", "retrieval", head="emb"), stated, path),)
    version = "v1" if set(head) == _V1 else "v2" if set(head) == _V1 | _V2 else None
    if version is None or head["head.head.bias"].ndim != 1:
        raise UnsupportedCheckpoint(
            f"has a head of an unknown kind ({', '.join(sorted(head)[:4])}, ...)",
            file=path,
            expected="a classification (v1, v2), regression or embedding head",
            remedy="leave it out with --ignore output_head. for embeddings only",
        )
    outputs = int(head["head.head.bias"].shape[0])
    task = _task(parameters, outputs, version, stated, path)
    name = _target_name(parameters)
    if task == "regression":
        scaling: Any = "minmax" if parameters.get("label_scaling_method") == "minmax" else "standard"
        return (_as_stated(Target(name, "regression", scaling=scaling), stated, path),)
    classes = tuple(f"class-{index}" for index in range(max(outputs, 2)))
    _check_class_count(parameters, classes, path)
    return (_as_stated(Target(name, "classification", head=version, classes=classes), stated, path),)


def _task(parameters: Mapping[str, Any], outputs: int, version: str, stated: Statements, path: Path) -> str:
    """Classification or regression: one output may be either, a logit of two classes or a scaled value."""
    said = parameters.get("downstream_task_type")
    if stated.target is not None:
        said = stated.target.kind
    elif said not in ("classification", "regression"):
        said = "classification" if outputs > 1 or version == "v2" else None
    if said is None:
        raise TargetUnstated(
            "has a head of one output and does not say whether that is a value or the logit of two classes",
            file=path,
            expected="downstream_task_type classification or regression",
            remedy="state it: --target NAME:regression:UNIT:MEAN,SD or --target NAME:classification:CLASS0,CLASS1",
        )
    if said == "regression" and (outputs > 1 or version == "v2"):
        raise UnsupportedCheckpoint(f"has a regression head {version} of {outputs} outputs", file=path, expected="one")
    return str(said)


def _target_name(parameters: Mapping[str, Any]) -> str:
    said = parameters.get("task_name")
    kept = "".join(c for c in said if c.isascii() and (c.isalnum() or c in "_-"))[:64] if isinstance(said, str) else ""
    return kept.lstrip("_-") or "target"


def _check_class_count(parameters: Mapping[str, Any], classes: tuple[str, ...], path: Path) -> None:
    said = parameters.get("num_classes")
    if isinstance(said, int) and said != len(classes):
        raise ArchitectureContradicted(
            f"its hyper-parameters say {said} classes and its head has {len(classes)}", file=path, expected="the same"
        )


def _as_stated(target: Target, stated: Statements, path: Path) -> Target:
    """The head's target with what the user stated: name, unit, scaler, class names."""
    said = stated.target
    if said is None:
        return target
    if said.kind != target.kind or (said.classes and len(said.classes) != len(target.classes)):
        raise ArchitectureContradicted(
            f"its head is a {target.kind} of {len(target.classes)} classes; stated was {said.kind} of "
            f"{len(said.classes)}",
            file=path,
            expected="the same",
        )
    named = replace(target, name=said.name, unit=said.unit, classes=said.classes or target.classes)
    return named if said.mean is None or said.std is None else with_scaler(named, said.mean, said.std)


# --- report -----------------------------------------------------------------------------------------------------


def _notes(values: Mapping[str, Any], keys: _Keys, description: ModelDescription) -> tuple[str, ...]:
    epoch = values.get("epoch")
    assumed = [name for name, provenance in description.input.provenance.items() if provenance == "assumed"]
    notes = {
        f"epoch {epoch}": isinstance(epoch, int),
        f"{len(keys.encoder)} encoder weights": True,
        f"{len(keys.decoder)} weights of the masked autoencoder's decoder, not needed for embeddings": keys.decoder,
        f"buffers left out: {', '.join(keys.buffers)}": keys.buffers,
        f"{len(keys.ignored)} keys left out as asked": keys.ignored,
        "no head: embeddings only": not description.targets,
        f"assumed, not stated: {', '.join(assumed)}": assumed,
    }
    return tuple(note for note, holds in notes.items() if holds)
