"""The model folder: ``model.json``, ``weights.safetensors``, ``MODEL_CARD.md``, ``training.json``.

Read with suspicion (sizes, names and hashes are checked before a tensor is built), written whole or not at all.
Weights are named ``encoder.<parameter>`` and ``head.<target>.<parameter>``; a pack holds the encoder's prompts only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from neurostorm_bids.errors import (
    ModelFileTooLarge,
    ModelFileUnreadable,
    ModelFolderEdited,
    ModelFolderExists,
    ModelFolderInvalid,
    ModelNotFound,
    OutputNotWritable,
    WeightsNotFinite,
)
from neurostorm_bids.model.card import model_card
from neurostorm_bids.model.config import EncoderConfig, InputSpec
from neurostorm_bids.model.description import (
    WEIGHTS_FILE,
    Entries,
    ModelDescription,
    SelfTest,
    architecture_to_json,
    check_description,
    computation_to_json,
    description_from_json,
    description_to_json,
    input_to_json,
    read_json,
    self_test_from_json,
)

MAX_WEIGHTS_BYTES = 8 * 2**30
MAX_HEADER_BYTES = 16 * 2**20
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder as read: the description, and the weights by their full names.

    ``sha256`` identifies the computation (weights, architecture, input, targets); ``weights_sha256`` the weights file.
    """

    path: Path
    description: ModelDescription
    weights: Mapping[str, Tensor]
    sha256: str
    weights_sha256: str
    self_test: SelfTest | None


# --- hashes -----------------------------------------------------------------------------------------------------


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_hash(description: ModelDescription, weights: Mapping[str, Tensor]) -> str:
    """Hash of all that decides an output: weights, architecture, input and targets; not the name or the prose."""
    return _json_hash({**computation_to_json(description), "weights": tensor_digest(weights)})


def backbone_hash(config: EncoderConfig, spec: InputSpec, weights: Mapping[str, Tensor]) -> str:
    """Hash by which a pack names its backbone: the encoder without prompts, and the input it sees.

    Heads, targets and provenance do not count: a checkpoint and the folder converted from it are one backbone.
    """
    encoder = {name: tensor for name, tensor in weights.items() if is_backbone_weight(name)}
    input_values = {name: field["value"] for name, field in input_to_json(spec).items()}
    architecture = architecture_to_json(replace(config, prompt_len=0))
    return _json_hash({"architecture": architecture, "input": input_values, "weights": tensor_digest(encoder)})


def is_backbone_weight(name: str) -> bool:
    """Whether a weight belongs to the encoder proper, not to its prompts or a head."""
    return name.startswith("encoder.") and not name.endswith(".prompt")


def weights_of(encoder: nn.Module, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights of a whole model by the names of a folder; ``heads`` by target."""
    named = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for target, head in heads.items():
        named |= {f"head.{target}.{name}": tensor for name, tensor in head.state_dict().items()}
    return named


def pack_weights_of(encoder: nn.Module, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights of a pack: those of `weights_of` without the backbone's."""
    return {name: tensor for name, tensor in weights_of(encoder, heads).items() if not is_backbone_weight(name)}


def _json_hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- in ---------------------------------------------------------------------------------------------------------


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a ``model.json``."""
    return (path / "model.json").is_file()


def read_description(folder: Path) -> ModelDescription:
    """The description alone, without opening the weights (and so without checking them)."""
    return description_from_json(_read_model_json(folder), folder / "model.json")


def read_model_folder(folder: Path | str) -> ModelFolder:
    """Read and check a model folder.

    Raises
    ------
    ModelNotFound, ModelFileUnreadable, ModelFileTooLarge, ModelFolderInvalid, ModelFolderEdited, WeightsNotFinite
        Each naming the file, the fault and the remedy.
    """
    folder = Path(folder)
    values = _read_model_json(folder)
    entries = Entries(values, "", folder / "model.json")
    description = description_from_json(values, folder / "model.json")
    weights_path, recorded = _weights_entry(entries, folder)
    header_checked(weights_path)
    weights_sha256 = file_hash(weights_path)
    if weights_sha256 != recorded:
        raise _edited(weights_path, recorded, weights_sha256)
    weights = read_safetensors(weights_path)
    sha256 = model_hash(description, weights)
    if sha256 != entries.text("sha256"):
        raise _edited(folder / "model.json", entries.text("sha256"), sha256)
    return ModelFolder(folder, description, weights, sha256, weights_sha256, self_test_from_json(entries))


def _read_model_json(folder: Path) -> Any:
    if not is_model_folder(folder):
        raise ModelNotFound("no model.json in it", file=folder, expected="a model folder", remedy=_CONVERT)
    return read_json(folder / "model.json")


_CONVERT = "make one with: neurostorm-models convert CHECKPOINT FOLDER"


def _weights_entry(entries: Entries, folder: Path) -> tuple[Path, str]:
    weights = entries.entries("weights")
    weights.only("file", "sha256", "bytes")
    if weights.text("file") != WEIGHTS_FILE:  # a path could lead anywhere; the name is fixed
        raise weights.fault(f"weights.file is {weights.text('file')!r}", f"{WEIGHTS_FILE}, beside model.json")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        fetch = "not fetched: run `datalad get`" if path.is_symlink() else "copy the whole folder"
        raise ModelFileUnreadable("the weights are missing", file=path, remedy=fetch)
    size, recorded = path.stat().st_size, weights.integer("bytes", 8, MAX_WEIGHTS_BYTES)
    if size != recorded:
        raise ModelFileUnreadable(
            f"holds {size} bytes", file=path, expected=f"{recorded} (model.json)", remedy="copy the folder again"
        )
    return path, weights.text("sha256")


def _edited(file: Path, recorded: str, found: str) -> ModelFolderEdited:
    return ModelFolderEdited(
        f"its hash is {found[:12]}, and {recorded[:12]} was written",
        file=file,
        expected="a folder as neurostorm wrote it",
        remedy="copy the folder again; to state a scaler use --target-scaler, to change anything else convert again",
    )


def header_checked(path: Path) -> None:
    """Refuse a safetensors file whose declared header cannot be true, before a parser sees it."""
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ModelFileTooLarge(f"{size} bytes", file=path, expected=f"at most {MAX_WEIGHTS_BYTES}")
    with path.open("rb") as stream:
        start = stream.read(8)
    if len(start) < 8:
        raise ModelFileUnreadable(f"only {size} bytes", file=path, expected="a safetensors file")
    (header,) = struct.unpack("<Q", start)
    if header > min(MAX_HEADER_BYTES, size - 8):
        raise ModelFileUnreadable(
            f"declares a header of {header} bytes in a file of {size}",
            file=path,
            expected=f"a safetensors header of at most {MAX_HEADER_BYTES} bytes",
            remedy="the file is truncated or not safetensors: copy it again",
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floats as float32, refused where not finite.

    Copied out of the mapped file: it may go away, and results differ in the last bit with the alignment in memory.
    """
    header_checked(path)
    try:
        with safe_open(path, "pt") as stream:
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileUnreadable(
            f"not a whole safetensors file ({str(error)[:100]})", file=path, remedy="copy it again"
        ) from error
    return checked_tensors(tensors, path)


def checked_tensors(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Floats as float32 on the CPU; types that no model has, and NaN or infinity, refused."""
    wrong = [name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES or tensor.layout != torch.strided]
    if wrong:
        raise ModelFileUnreadable(f"{wrong[0]} is {tensors[wrong[0]].dtype}", file=file, expected="float weights")
    cast = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    broken = [name for name, tensor in cast.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise WeightsNotFinite(
            f"NaN or infinite values in {len(broken)} of {len(cast)} weights, first in {broken[0]}",
            file=file,
            expected="finite numbers",
            remedy="training diverged or the file is damaged: use an earlier checkpoint or copy it again",
        )
    return cast


# --- out --------------------------------------------------------------------------------------------------------


def write_model_folder(
    folder: Path | str,
    description: ModelDescription,
    weights: Mapping[str, Tensor],
    *,
    self_test: SelfTest | None = None,
    training: Mapping[str, Any] | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write a model folder or a pack: beside its place first, then renamed, so that no half folder is ever seen.

    Parameters
    ----------
    folder : path
        The folder to make; its parent is made if need be.
    description : ModelDescription
    weights : mapping
        ``encoder.*`` and ``head.<target>.*``; of a pack only prompts and heads.
    self_test : SelfTest, optional
        Made by ``self_test_of`` (model.weights) for ``neurostorm-models verify``.
    training : mapping, optional
        ``training.json``: data, splits, seeds, versions, metrics.
    card : str, optional
        ``MODEL_CARD.md``; by default one is made of the description.

    Returns
    -------
    str
        The model's hash.

    Raises
    ------
    ModelFolderInvalid, WeightsNotFinite, ModelFolderExists, OutputNotWritable
    """
    folder = Path(folder)
    check_description(description, folder)
    if description.is_pack and any(is_backbone_weight(name) for name in weights):
        raise ModelFolderInvalid("a pack with weights of its backbone", file=folder, expected="prompts and heads only")
    if folder.exists() and not overwrite:
        raise ModelFolderExists("exists already", file=folder, remedy="name another folder or remove this one")
    tensors = {name: t.detach().clone().contiguous() for name, t in checked_tensors(weights, folder).items()}
    try:
        partial = _partial_folder(folder)
        (partial / WEIGHTS_FILE).write_bytes(save(tensors))  # save_file would let the owner alone read it
        sha256 = _write_texts(partial, description, tensors, self_test, training, card)
        _put_in_place(partial, folder)
    except OSError as error:
        raise OutputNotWritable(
            f"cannot be written ({error.strerror})",
            file=folder,
            remedy="check permissions, free space or quota, then run again",
        ) from error
    return sha256


def _write_texts(partial: Path, description: ModelDescription, tensors, self_test, training, card) -> str:
    weights = partial / WEIGHTS_FILE
    values = description_to_json(description) | {
        "weights": {"file": WEIGHTS_FILE, "sha256": file_hash(weights), "bytes": weights.stat().st_size},
        "self_test": None if self_test is None else asdict(self_test),
        "sha256": model_hash(description, tensors),
    }
    reread = json.loads(json.dumps(values, allow_nan=False))
    description_from_json(reread, partial / "model.json")  # what could not be read must not be written
    _write_json(partial / "model.json", values)
    _write_json(partial / "training.json", training or {})
    (partial / "MODEL_CARD.md").write_text(card or model_card(description), encoding="utf-8")
    return values["sha256"]


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def _partial_folder(folder: Path) -> Path:
    """A fresh folder beside ``folder``; those that a killed process of this machine left are removed."""
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.{machine}-*.partial"):
        process = left.name.removeprefix(f".{folder.name}.{machine}-").split("-")[0].split(".")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{machine}-{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def _put_in_place(partial: Path, folder: Path) -> None:
    for path in [*partial.iterdir(), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    old = partial.with_name(partial.name.replace(".partial", "-old.partial"))
    if folder.exists():
        folder.rename(old)  # a folder that is not empty cannot be renamed over
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
