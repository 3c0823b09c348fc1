"""What ``model.json`` says: name, architecture, input, targets; checked field by field.

The file comes from strangers. Every number has a range, every word a pattern, and an entry that this version does
not know is refused, so that a misspelt ``std`` cannot turn a prediction into another one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from neurostorm_bids.errors import ModelFileTooLarge, ModelFileUnreadable, ModelFolderInvalid
from neurostorm_bids.model.config import Background, EncoderConfig, InputSpec, Provenance, Target, TargetKind
from neurostorm_bids.space.grid import Grid

FORMAT = "neurostorm-model"
FORMAT_VERSION = 1
WEIGHTS_FILE = "weights.safetensors"
MAX_JSON_BYTES = 4_000_000
MAX_CHANNELS = 4096
LARGEST_FEATURE = 1e30
NORMALISATIONS = ("run-zscore",)
BACKGROUNDS: tuple[Background, ...] = ("minimum", "zero")
INPUT_FIELDS = ("grid", "t_r_s", "clip_frames", "normalisation", "background")
HEADS: dict[str, tuple[str, ...]] = {"regression": ("v1",), "classification": ("v1", "v2"), "retrieval": ("emb",)}

_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}")
_TEMPLATE = re.compile(r"[A-Za-z0-9]{1,64}(\+[A-Za-z0-9]{1,16})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Backbone:
    """The model that a pack belongs to: its name (for people) and the hash of its encoder and input."""

    name: str
    sha256: str


@dataclass(frozen=True)
class SelfTest:
    """Embedding (one clip, reference scan, float32) of the input that ``seed`` makes: see ``Model.self_test``."""

    seed: int
    embedding: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model without its weights.

    Parameters
    ----------
    name : str
        The name as people write it; `model_label` makes the part of a file name of it.
    config, input, targets
        Architecture, trained-on input and what is predicted. A pack's ``config`` is its backbone's, with its own
        ``prompt_len``.
    trained : bool
        False: the weights are those of a random start, embeddings mean nothing and there are no targets.
    backbone : Backbone, optional
        Set for a pack, a folder that holds only prompts, heads and targets.
    training_distribution : mapping, optional
        What the training data were (ages, sites, ...), for flagging runs unlike them.
    summary, source, licence : str
        For the model card and the sidecars.
    """

    name: str
    config: EncoderConfig
    input: InputSpec
    targets: tuple[Target, ...] = ()
    trained: bool = True
    backbone: Backbone | None = None
    training_distribution: Mapping[str, Any] | None = None
    summary: str = ""
    source: str = ""
    licence: str = ""

    @property
    def is_pack(self) -> bool:
        """Whether this is a pack: prompts and heads without a backbone."""
        return self.backbone is not None


def model_label(name: str) -> str:
    """Letters and digits of a model's name, as the ``desc-`` entity takes it.

    >>> model_label("neurostorm-mae-0.5")
    'neurostormmae05'
    """
    label = "".join(character for character in name if character.isascii() and character.isalnum())
    if not label:
        raise ModelFolderInvalid(f"the model name {name!r} has no letter or digit", remedy="give it a name with --name")
    return label


def provenance_of(spec: InputSpec, field: str) -> Provenance:
    """Whether a field of the input was stated or assumed; what nobody stated is assumed."""
    return spec.provenance.get(field, "assumed")


# --- out --------------------------------------------------------------------------------------------------------


def description_to_json(description: ModelDescription) -> dict[str, Any]:
    """The entries of ``model.json`` that describe the model (not those that pin its files)."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": description.name,
        "summary": description.summary,
        "source": description.source,
        "licence": description.licence,
        **computation_to_json(description),
    }


def computation_to_json(description: ModelDescription) -> dict[str, Any]:
    """The entries that change a number in the output; the model's hash is made of these and the weights."""
    return {
        "trained": description.trained,
        "architecture": architecture_to_json(description.config),
        "input": input_to_json(description.input),
        "targets": [_target_to_json(target) for target in description.targets],
        "backbone": None if description.backbone is None else asdict(description.backbone),
        "training_distribution": description.training_distribution,
    }


def architecture_to_json(config: EncoderConfig) -> dict[str, Any]:
    """An encoder's configuration with lists for tuples; numbers as JSON reads them back, so that hashes agree."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return values | {"mlp_ratio": float(config.mlp_ratio)}


def input_to_json(spec: InputSpec) -> dict[str, Any]:
    """The input, each field with its provenance."""
    values = {field: getattr(spec, field) for field in INPUT_FIELDS}
    values["t_r_s"] = float(spec.t_r_s)
    values["grid"] = {
        "shape": list(spec.grid.shape),
        "affine": [list(row) for row in spec.grid.affine],
        "template": spec.grid.template,
    }
    return {field: {"value": values[field], "provenance": provenance_of(spec, field)} for field in INPUT_FIELDS}


def _target_to_json(target: Target) -> dict[str, Any]:
    entries: dict[str, Any] = asdict(target) | {"classes": list(target.classes)}
    entries |= {name: float(entries[name]) for name in ("mean", "std") if entries[name] is not None}
    entries["calibration"] = {"temperature": float(entries.pop("temperature"))}
    half_width, n = entries.pop("half_width"), entries.pop("n_calibrated")
    # only where they say something: models that nobody calibrated keep their hashes
    entries["calibration"] |= {} if half_width is None else {"half_width": float(half_width)}
    entries["calibration"] |= {"participants": n} if n else {}
    return entries


# --- in ---------------------------------------------------------------------------------------------------------


class Entries:
    """Entries of one JSON object, read by kind; every fault names the file and the entry."""

    def __init__(self, values: Any, where: str, file: Path | None) -> None:
        self.where, self.file = where, file
        if not isinstance(values, dict):
            raise self.fault(f"{where or 'the whole file'} is not a JSON object")
        self.values: dict[str, Any] = values

    def fault(self, what: str, expected: str | None = None) -> ModelFolderInvalid:
        """The error to raise for an impossible entry."""
        folder = self.file is not None and self.file.name == "model.json"
        remedy = "write the folder again with neurostorm-models convert" if folder else None
        return ModelFolderInvalid(what, file=self.file, expected=expected, remedy=remedy)

    def only(self, *known: str) -> None:
        """Refuse entries that this version does not know."""
        unknown = sorted(set(self.values) - set(known))
        if unknown:
            raise self.fault(f"unknown entries {self._path(', '.join(unknown))}", "none but " + ", ".join(known))

    def get(self, key: str) -> Any:
        """An entry that must be there."""
        if key not in self.values:
            raise self.fault(f"the entry {self._path(key)} is missing")
        return self.values[key]

    def entries(self, key: str) -> Entries:
        """An object within this one."""
        return Entries(self.get(key), self._path(key), self.file)

    def text(self, key: str, *, longest: int = 2000) -> str:
        """A string without control characters (newlines aside)."""
        value = self.get(key)
        if not isinstance(value, str) or len(value) > longest or not value.replace("\n", " ").isprintable():
            raise self.fault(f"{self._path(key)} is {_short(value)}", f"printable text of at most {longest} characters")
        return value

    def match(self, key: str, pattern: re.Pattern[str]) -> str:
        """A string of one pattern."""
        value = self.text(key)
        if not pattern.fullmatch(value):
            raise self.fault(f"{self._path(key)} is {_short(value)}", f"the pattern {pattern.pattern}")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of several words."""
        value = self.get(key)
        if value not in choices:
            raise self.fault(f"{self._path(key)} is {_short(value)}", "one of " + ", ".join(choices))
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fault(f"{self._path(key)} is {_short(value)}", "true or false")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number in a range."""
        return self._number(self.get(key), self._path(key), low, high)

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number in a range."""
        return self._integer(self.get(key), self._path(key), low, high)

    def integers(self, key: str, counts: range, low: int, high: int) -> tuple[int, ...]:
        """A list of whole numbers."""
        return tuple(self._integer(n, self._path(key), low, high) for n in self._list(self.get(key), key, counts))

    def matrix(self, key: str) -> list[list[float]]:
        """A 4 x 4 matrix."""
        rows = self._list(self.get(key), key, range(4, 5))
        return [
            [self._number(x, self._path(key), -1e4, 1e4) for x in self._list(row, key, range(4, 5))] for row in rows
        ]

    def texts(self, key: str, longest: int = 64) -> tuple[str, ...]:
        """A list of different printable strings."""
        values = self._list(self.get(key), key, range(0, 10_001))
        good = all(isinstance(v, str) and 0 < len(v) <= longest and v.isprintable() for v in values)
        if not good or len(set(values)) < len(values):
            raise self.fault(f"{self._path(key)} is {_short(values)}", f"different texts of up to {longest} characters")
        return tuple(values)

    def objects(self, key: str, most: int) -> list[Entries]:
        """A list of objects."""
        values = self._list(self.get(key), key, range(0, most + 1))
        return [Entries(value, f"{self._path(key)}[{i}]", self.file) for i, value in enumerate(values)]

    def _list(self, value: Any, key: str, counts: range) -> list[Any]:
        if not isinstance(value, list) or len(value) not in counts:
            raise self.fault(f"{self._path(key)} is {_short(value)}", f"a list of {_extent(counts)} entries")
        return value

    def _integer(self, value: Any, path: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fault(f"{path} is {_short(value)}", f"a whole number from {low} to {high}")
        return value

    def _number(self, value: Any, path: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.fault(f"{path} is {_short(value)}", f"a number from {low:g} to {high:g}")
        return float(value)

    def _path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key


def read_json(file: Path, *, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """A JSON file of limited size, without the two traps of the format: duplicate keys and NaN."""
    try:
        if file.stat().st_size > most_bytes:
            raise ModelFileTooLarge(
                "too large for a description",
                file=file,
                expected=f"at most {most_bytes} bytes",
                remedy="copy or write the model folder again",
            )
        return json.loads(
            file.read_text(encoding="utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        fault = f"not valid JSON ({type(error).__name__}: {_short(str(error), 120)})"
        raise ModelFileUnreadable(fault, file=file, remedy="copy or write the model folder again") from error
    except OSError as error:
        raise ModelFileUnreadable(f"cannot be read ({error.strerror})", file=file) from error


def description_from_json(values: Any, file: Path | None = None) -> ModelDescription:
    """A model's description from ``model.json``.

    Raises
    ------
    ModelFolderInvalid
        For a missing, unknown or impossible entry, named with the file.
    """
    entries = Entries(values, "", file)
    entries.choice("format", (FORMAT,))
    if entries.integer("format_version", 1, 10**6) > FORMAT_VERSION:
        raise entries.fault(f"format version {values['format_version']}", f"{FORMAT_VERSION} or older")
    entries.only(*_TOP_LEVEL)
    config = architecture_from_json(entries.entries("architecture"))
    description = ModelDescription(
        name=entries.text("name", longest=100),
        config=config,
        input=_input_from_json(entries.entries("input")),
        targets=tuple(_target_from_json(target) for target in entries.objects("targets", 1000)),
        trained=entries.flag("trained"),
        backbone=None if entries.get("backbone") is None else _backbone_from_json(entries.entries("backbone")),
        training_distribution=_distribution(entries),
        summary=entries.text("summary"),
        source=entries.text("source"),
        licence=entries.text("licence"),
    )
    check_description(description, file)
    return description


_TOP_LEVEL = (
    *("format", "format_version", "name", "summary", "source", "licence", "trained", "architecture", "input"),
    *("targets", "backbone", "training_distribution", "weights", "self_test", "sha256"),
)


def check_description(description: ModelDescription, file: Path | None = None) -> None:
    """Refuse what no single entry shows: a grid of another shape, targets twice, heads that nobody trained."""
    entries = Entries({}, "", file)
    config, spec = description.config, description.input
    model_label(description.name)
    if spec.grid.shape != config.img_size[:3]:
        raise entries.fault(f"the grid is {spec.grid.shape} and the encoder's image {config.img_size[:3]}", "the same")
    if spec.clip_frames > config.img_size[3]:
        raise entries.fault(f"clips have {spec.clip_frames} frames", f"at most the encoder's {config.img_size[3]}")
    names = [target.name for target in description.targets]
    if len({name.lower() for name in names}) < len(names):
        raise entries.fault(f"two targets of one name in {names}", "different names")
    if names and not description.trained:
        raise entries.fault("an untrained model has targets", "trained: true, or no targets")
    if description.is_pack and not names:
        raise entries.fault("a pack without targets", "at least one target")


def architecture_from_json(entries: Entries) -> EncoderConfig:
    """An encoder's configuration, each size in a range that a computer survives."""
    entries.only(*(field.name for field in fields(EncoderConfig)))
    config = EncoderConfig(
        img_size=cast(Any, entries.integers("img_size", range(4, 5), 1, 1024)),
        in_chans=entries.integer("in_chans", 1, 256),
        embed_dim=entries.integer("embed_dim", 1, 4096),
        patch_size=cast(Any, entries.integers("patch_size", range(4, 5), 1, 256)),
        depths=entries.integers("depths", range(1, 9), 1, 64),
        c_multiplier=entries.integer("c_multiplier", 1, 8),
        window_size=cast(Any, entries.integers("window_size", range(4, 5), 1, 1024)),
        first_window_size=cast(Any, entries.integers("first_window_size", range(4, 5), 1, 1024)),
        last_layer_full_MSA=entries.flag("last_layer_full_MSA"),
        prompt_len=entries.integer("prompt_len", 0, 10_000),
        d_state=entries.integer("d_state", 1, 1024),
        d_conv=entries.integer("d_conv", 1, 64),
        expand=entries.integer("expand", 1, 16),
        mlp_ratio=entries.number("mlp_ratio", 0.125, 16),
        wrap=entries.flag("wrap"),
    )
    if config.embed_dim * config.c_multiplier ** (len(config.depths) - 1) > MAX_CHANNELS:
        fault = f"{len(config.depths)} stages from {config.embed_dim} channels"
        raise entries.fault(fault, f"at most {MAX_CHANNELS} channels in the last")
    if any(size % patch for size, patch in zip(config.img_size, config.patch_size, strict=True)):
        raise entries.fault(f"img_size {config.img_size} with patches {config.patch_size}", "whole patches")
    return config


def _input_from_json(entries: Entries) -> InputSpec:
    entries.only(*INPUT_FIELDS)
    read = {field: entries.entries(field) for field in INPUT_FIELDS}
    for field in read.values():
        field.only("value", "provenance")
    return InputSpec(
        grid=_grid_from_json(read["grid"].entries("value")),
        t_r_s=read["t_r_s"].number("value", 0.01, 60),
        clip_frames=read["clip_frames"].integer("value", 1, 1024),
        normalisation=read["normalisation"].choice("value", NORMALISATIONS),
        background=cast(Background, read["background"].choice("value", BACKGROUNDS)),
        provenance={
            name: cast(Provenance, field.choice("provenance", ("stated", "assumed"))) for name, field in read.items()
        },
    )


def _grid_from_json(entries: Entries) -> Grid:
    entries.only("shape", "affine", "template")
    grid = Grid.of(
        entries.integers("shape", range(3, 4), 1, 1024), entries.matrix("affine"), entries.match("template", _TEMPLATE)
    )
    if grid.affine[3] != (0, 0, 0, 1) or abs(np.linalg.det(grid.matrix)) < 1e-6:
        raise entries.fault(f"{entries.where}.affine maps no volume", "an invertible matrix with last row 0 0 0 1")
    return grid


def _target_from_json(entries: Entries) -> Target:
    entries.only(*("name", "kind", "head", "unit", "classes", "mean", "std", "scaling", "calibration"))
    kind = entries.choice("kind", tuple(HEADS))
    calibration = entries.entries("calibration")
    calibration.only("temperature", "half_width", "participants")
    target = Target(
        name=entries.match("name", _TARGET_NAME),
        kind=cast(TargetKind, kind),
        head=entries.choice("head", HEADS[kind]),
        unit=None if entries.get("unit") is None else entries.text("unit", longest=64),
        classes=entries.texts("classes"),
        mean=None if entries.get("mean") is None else entries.number("mean", -1e12, 1e12),
        std=None if entries.get("std") is None else entries.number("std", 1e-12, 1e12),
        scaling=cast(Any, entries.choice("scaling", ("standard", "minmax"))),
        temperature=calibration.number("temperature", 1e-3, 1e3),
        half_width=calibration.number("half_width", 0, 1e12) if "half_width" in calibration.values else None,
        n_calibrated=calibration.integer("participants", 1, 10**9) if "participants" in calibration.values else 0,
    )
    _check_target(entries, target)
    return target


def _check_target(entries: Entries, target: Target) -> None:
    if (target.mean is None) != (target.std is None):
        raise entries.fault(f"{entries.where} has half a scaler", "mean and std, or neither (null)")
    if target.kind != "regression" and target.mean is not None:
        raise entries.fault(f"{entries.where} is a {target.kind} with a scaler", "a scaler for a regression only")
    if target.half_width is not None and target.mean is None:
        raise entries.fault(
            f"{entries.where} has the width of an interval and no scaler", "half_width with mean and std"
        )
    if (target.kind == "classification") != bool(target.classes) or len(target.classes) == 1:
        raise entries.fault(
            f"{entries.where} is a {target.kind} with {len(target.classes)} classes",
            "two or more classes for a classification, none otherwise",
        )


def _backbone_from_json(entries: Entries) -> Backbone:
    entries.only("name", "sha256")
    return Backbone(entries.text("name", longest=100), entries.match("sha256", _SHA256))


def _distribution(entries: Entries) -> Mapping[str, Any] | None:
    value = entries.get("training_distribution")
    return None if value is None else entries.entries("training_distribution").values


def self_test_from_json(entries: Entries) -> SelfTest | None:
    """The recorded embedding, or None where the folder has none."""
    if entries.get("self_test") is None:
        return None
    test = entries.entries("self_test")
    test.only("seed", "embedding")
    values = test.get("embedding")
    good = isinstance(values, list) and 0 < len(values) <= 65_536
    if not good or not all(type(x) in (int, float) and abs(x) <= LARGEST_FEATURE for x in values):
        raise test.fault("self_test.embedding is not a list of numbers", f"finite ones, at most {LARGEST_FEATURE:g}")
    return SelfTest(test.integer("seed", 0, 2**32 - 1), tuple(float(x) for x in values))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an entry is there twice")
    return values


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    number = float(text)  # "1e999" is valid JSON and infinite
    return number if math.isfinite(number) else _refuse_constant(text)


def _short(value: Any, longest: int = 80) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _extent(counts: range) -> str:
    return str(counts.start) if len(counts) == 1 else f"{counts.start} to {counts.stop - 1}"
