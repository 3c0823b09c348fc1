"""Defects of models, packs, checkpoints, and of the files that options name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.bad_tree import Case
from campaigns.defect import Defect, End
from campaigns.scenarios import write_tiny_model

AGAIN = r"(?i)(copy|fetch|write|make|convert)[^.]*( again|with|folder)|convert"
MODEL_JSON, WEIGHTS = r"{}/tiny/model\.json", r"{}/tiny/weights\.safetensors"
CKPT = "{}/given.ckpt"


def refused(name: str, plant: Callable[[Case], object], fault: str, **more: Any) -> Defect:
    """A model that cannot be used: nothing is computed with any."""
    settings: dict[str, Any] = {"file": MODEL_JSON, "remedy": AGAIN, "end": End.STOP, "code": 66, **more}
    return Defect(name, plant, fault=fault, **settings)


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[Case], None]:
    """Another model.json."""

    def plant(case: Case) -> None:
        content = json.loads((case.model / "model.json").read_text())
        change(content)
        (case.model / "model.json").write_text(json.dumps(content))

    return plant


def text(content: str | bytes) -> Callable[[Case], object]:
    """A model.json of these bytes."""
    return lambda case: (case.model / "model.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def weights(change: Callable[[bytes], bytes], pinned: bool = False) -> Callable[[Case], None]:
    """Other bytes of weights; pinned: with the hash and the size that model.json then needs."""

    def plant(case: Case) -> None:
        import hashlib

        path = case.model / "weights.safetensors"
        raw = change(path.read_bytes())
        path.write_bytes(raw)
        if pinned:
            entry = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
            described(lambda content: content["weights"].update(entry))(case)

    return plant


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Weights whose header says something else."""

    def changed(raw: bytes) -> bytes:
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        packed = json.dumps(header).encode()
        return struct.pack("<Q", len(packed)) + packed + raw[8 + length :]

    return changed


def not_a_number(raw: bytes) -> bytes:
    return raw[:-4] + struct.pack("<f", float("nan"))


def beyond(header: dict[str, Any]) -> None:
    next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = [2**40, 2**20]


def renamed_weight(header: dict[str, Any]) -> None:
    name = next(name for name in header if name != "__metadata__")
    header["encoder.nothing"] = header.pop(name)


FOLDERS = (
    refused(
        "a model that does not exist",
        lambda case: None,
        "does not exist",
        file="nowhere",
        remedy="neurostorm-models list|give",
        words=("--model", "{}/nowhere"),
    ),
    refused(
        "a name that no model has",
        lambda case: None,
        "no model .nonsense",
        file="nonsense",
        remedy="neurostorm-models list",
        words=("--model", "nonsense"),
    ),
    refused(
        "a model folder that is empty",
        lambda case: [path.unlink() for path in case.model.iterdir()],
        "a folder without model.json",
        file="{}/tiny",
        remedy="neurostorm-models list",
    ),
    refused("a model.json that is no JSON", text("{"), "not valid JSON", code=74),
    refused(
        "a model.json with a byte order mark",
        lambda case: text(b"\xef\xbb\xbf" + (case.model / "model.json").read_bytes())(case),
        "not valid JSON",
        code=74,
    ),
    refused("a model.json nested beyond reason", text("[" * 100_000), "not valid JSON", code=74),
    refused(
        "a model.json that names an entry twice",
        lambda case: text((case.model / "model.json").read_text().replace("{", '{"name": "x", ', 1))(case),
        "twice",
        code=74,
    ),
    refused(
        "a model.json with NaN",
        lambda case: text((case.model / "model.json").read_text().replace("0.8", "NaN", 1))(case),
        "NaN is not a number",
        code=74,
    ),
    refused(
        "a model.json of 5 MB",
        lambda case: text((case.model / "model.json").read_text() + " " * 5_000_000)(case),
        "too large",
    ),
    refused("a model of another format", described(lambda c: c.update(format="other")), "format is other"),
    refused("a model of a later version", described(lambda c: c.update(format_version=99)), "format version 99"),
    refused(
        "an entry that this version does not know", described(lambda c: c.update(stdev=3)), "unknown entries stdev"
    ),
    refused("an entry that is missing", described(lambda c: c.pop("input")), "input is missing"),
    refused(
        "a grid of another shape",
        described(lambda c: c["input"]["grid"]["value"].update(shape=[12, 12, 13])),
        "the grid is",
    ),
    refused(
        "a grid whose affine maps no volume",
        described(lambda c: c["input"]["grid"]["value"].update(affine=[[0.0] * 4] * 3 + [[0, 0, 0, 1]])),
        "maps no volume",
    ),
    refused(
        "a repetition time of a minute and more",
        described(lambda c: c["input"]["t_r_s"].update(value=1e6)),
        "is 1000000",
    ),
    refused(
        "an encoder far larger than its weights",
        described(lambda c: c["architecture"].update(embed_dim=2000)),
        "is|holds",
        remedy="(?i)again|convert|expected",
    ),
    refused(
        "targets of a model that nobody trained",
        described(
            lambda c: c.update(
                trained=False,
                targets=[
                    {
                        "name": "age",
                        "kind": "regression",
                        "head": "v1",
                        "unit": "years",
                        "classes": [],
                        "mean": 1.0,
                        "std": 1.0,
                        "scaling": "standard",
                        "calibration": {"temperature": 1.0},
                    }
                ],
            )
        ),
        "untrained model has targets",
    ),
    refused(
        "a target with half a scaler",
        described(
            lambda c: c.update(
                targets=[
                    {
                        "name": "age",
                        "kind": "regression",
                        "head": "v1",
                        "unit": "years",
                        "classes": [],
                        "mean": 1.0,
                        "std": None,
                        "scaling": "standard",
                        "calibration": {"temperature": 1.0},
                    }
                ]
            )
        ),
        "half a scaler",
    ),
    refused(
        "a model whose description was edited (hash)",
        described(lambda c: c["input"]["t_r_s"].update(value=0.9)),
        "its hash is",
    ),
    refused(
        "weights under a name that leads elsewhere",
        described(lambda c: c["weights"].update(file="../../etc/passwd")),
        "weights.file is",
    ),
    refused(
        "weights that are missing",
        lambda case: (case.model / "weights.safetensors").unlink(),
        "weights are missing",
        file=WEIGHTS,
        code=74,
    ),
    refused("weights cut short", weights(lambda raw: raw[:-100]), "holds .* bytes", file=WEIGHTS, code=74),
    refused(
        "weights with a byte changed (hash)",
        weights(lambda raw: raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]),
        "its hash is",
        file=WEIGHTS,
    ),
    refused(
        "weights whose header declares more than there is",
        weights(lambda raw: struct.pack("<Q", 2**50) + raw[8:]),
        "declares a header",
        file=WEIGHTS,
        code=74,
    ),
    refused(
        "weights whose shapes are beyond any memory",
        weights(with_header(beyond), pinned=True),
        "not a whole safetensors",
        file=WEIGHTS,
        code=74,
    ),
    refused("weights with NaN", weights(not_a_number, pinned=True), "NaN or infinite", file=WEIGHTS),
    refused("weights of other names (hash)", weights(with_header(renamed_weight), pinned=True), "its hash is"),
)


# --- packs and pairs ------------------------------------------------------------------------------------------------


def other_backbone(case: Case) -> None:
    """A pack for a model with other weights than the one that is given."""
    import torch

    from neurostorm_bids.model.config import Target
    from neurostorm_bids.model.description import Backbone
    from neurostorm_bids.model.folder import read_model_folder, write_model_folder
    from neurostorm_bids.model.heads import head_for

    model = read_model_folder(case.model).description
    target = Target("age", "regression", unit="years", mean=40.0, std=10.0)
    head = head_for(target, 16)
    torch.nn.init.zeros_(next(head.parameters()))
    named = {f"head.age.{name}": tensor for name, tensor in head.state_dict().items()}
    description = type(model)(
        name="pack", config=model.config, input=model.input, targets=(target,), backbone=Backbone("another", "0" * 64)
    )
    write_model_folder(case.folder / "pack", description, named)


def second(case: Case) -> None:
    write_tiny_model(case.folder / "more")


PACKS = (
    refused(
        "a pack for another backbone",
        other_backbone,
        "belongs to the backbone another",
        file="{}/pack",
        remedy="give --model another",
        words=("--packs", "{}/pack"),
    ),
    refused(
        "a pack given as a model",
        other_backbone,
        "is a pack",
        file="{}/pack",
        remedy="give it with --packs",
        words=("--model", "{}/pack"),
    ),
    refused(
        "a model given as a pack",
        second,
        "is a whole model",
        file="{}/more/tiny",
        remedy="give it with --model",
        words=("--packs", "{}/more/tiny"),
    ),
    refused(
        "two models of one name",
        second,
        "give the same file names",
        file="tiny",
        remedy="rename one",
        code=2,
        words=("--model", "{}/tiny", "{}/more/tiny"),
    ),
    refused(
        "a scaler for a target that no model has",
        lambda case: None,
        "no model predicts it",
        file="",
        remedy="expected",
        code=2,
        words=("--target-scaler", "age=40,10"),
    ),
    refused(
        "a device that is not there",
        lambda case: None,
        "GPUs that PyTorch can use",
        file="",
        remedy="--device cpu",
        code=2,
        words=("--device", "63"),
    ),
)


# --- checkpoints ----------------------------------------------------------------------------------------------------

PARAMETERS = {
    "img_size": [12, 12, 12, 20], "patch_size": [4, 4, 4, 1], "embed_dim": 8, "depths": [1, 1],
    "window_size": [4, 4, 4, 4], "first_window_size": [4, 4, 4, 4], "last_layer_full_MSA": False,
}  # fmt: skip


def checkpoint(
    change: Callable[[dict[str, Any]], object] = lambda content: None, after: Callable[[bytes], bytes] | None = None
) -> Callable[[Case], None]:
    """A reference checkpoint, spoilt before it is written or after."""

    def plant(case: Case) -> None:
        import torch

        from neurostorm_bids.model import Encoder, EncoderConfig

        config = EncoderConfig(img_size=(12, 12, 12, 20), embed_dim=8, patch_size=(4, 4, 4, 1), depths=(1, 1))
        state = {f"model.{name}": tensor for name, tensor in Encoder(config).state_dict().items()}
        content: dict[str, Any] = {"state_dict": state, "hyper_parameters": dict(PARAMETERS), "epoch": 1}
        change(content)
        path = Path(case.words(CKPT))
        torch.save(content, path)
        if after is not None:
            path.write_bytes(after(path.read_bytes()))

    return plant


class Malice:
    """What a checkpoint must not bring about."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch hacked",)


def spoil(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    """One tensor is another."""

    def changed(content: dict[str, Any]) -> None:
        content["state_dict"][key] = change(content["state_dict"][key])

    return changed


def given(name: str, plant: Callable[[Case], object], fault: str, **more: Any) -> Defect:
    """A checkpoint that cannot be used."""
    return refused(
        name,
        plant,
        fault,
        file=CKPT.replace(".", r"\."),
        words=("--model", CKPT),
        **{"remedy": "(?i)again|ask|expected|state|is it a", **more},
    )


def raw(content: bytes) -> Callable[[Case], object]:
    """A file of these bytes under a checkpoint's name."""
    return lambda case: Path(case.words(CKPT)).write_bytes(content)


NORM = "model.layers.0.blocks.0.norm1.weight"
CHECKPOINTS = (
    given(
        "a checkpoint cut short", checkpoint(after=lambda raw: raw[: len(raw) // 2]), "truncated or damaged", code=74
    ),
    given(
        "a checkpoint with a damaged middle",
        checkpoint(after=lambda raw: raw[: len(raw) // 2] + bytes(64) + raw[len(raw) // 2 + 64 :]),
        "checksum|damaged",
        code=74,
    ),
    given("a checkpoint of 0 bytes", raw(b""), "is empty", code=74),
    given("a text under a checkpoint's name", raw(b"version https://git-lfs"), "not a PyTorch checkpoint", code=74),
    given("a bare pickle", raw(b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR."), "bare pickle", code=74),
    given(
        "a checkpoint that would run a program",
        checkpoint(lambda c: c.update(extra=Malice())),
        "not data.*nothing in it was",
    ),
    given("a checkpoint with NaN", checkpoint(spoil(NORM, lambda t: t * float("nan"))), "NaN or infinite"),
    given("a checkpoint of another architecture", checkpoint(spoil(NORM, lambda t: t.repeat(2))), "of another shape"),
    given("a checkpoint with a weight too few", checkpoint(lambda c: c["state_dict"].pop(NORM)), "1 weights missing"),
    given(
        "a checkpoint with a weight too many",
        checkpoint(lambda c: c["state_dict"].update({"model.extra": c["state_dict"][NORM]})),
        "1 weights unexpected",
    ),
    given("a checkpoint without its hyper-parameters", checkpoint(lambda c: c.pop("hyper_parameters")), "does not say"),
    given(
        "a checkpoint whose windows are not stated",
        checkpoint(lambda c: c["hyper_parameters"].pop("window_size")),
        "does not say window_size",
        remedy="neurostorm-models convert",
    ),
    given(
        "hyper-parameters beyond reason",
        checkpoint(lambda c: c["hyper_parameters"].update(depths=[10**6])),
        "depths is",
    ),
    given("a checkpoint without weights", checkpoint(lambda c: c.update(state_dict={})), "no state_dict"),
    given("numbers where tensors belong", checkpoint(spoil(NORM, lambda t: 3)), "where a tensor belongs", code=74),
    given(
        "a tensor of a terabyte in a small file",
        checkpoint(spoil(NORM, lambda t: t[:1].expand(2**38))),
        "without the values",
        code=74,
    ),
)


# --- files that options name ----------------------------------------------------------------------------------------


def option(name: str, flag: str, content: str | bytes | None, fault: str, **more: Any) -> Defect:
    """A file of an option that cannot be used."""

    def plant(case: Case) -> None:
        if content is not None:
            (case.folder / "given.txt").write_bytes(content if isinstance(content, bytes) else content.encode())

    settings: dict[str, Any] = {
        "file": r"{}/given\.txt",
        "remedy": "(?i)mend|see|state|give|check|name",
        "code": 2,
        **more,
    }
    return Defect(name, plant, fault=fault, end=End.STOP, words=(flag, "{}/given.txt"), **settings)


FILTER, CONFIG, PLUGIN = "--bids-filter-file", "--config-file", "--use-plugin"
JSON = "cannot be read as JSON"
OPTIONS = (
    option("a filter file that is not there", FILTER, None, JSON),
    option("a filter file that is no JSON", FILTER, '{"bold": ', JSON),
    option("a filter file in Latin-1", FILTER, '{"bold": {"task": "é"}}'.encode("latin-1"), JSON),
    option("a filter file nested beyond reason", FILTER, "[" * 100_000, JSON),
    option("a filter file that is a list", FILTER, "[]", "not a table of queries"),
    option(
        "a filter for an entity that does not exist",
        FILTER,
        '{"bold": {"tsak": "rest"}}',
        "'tsak', which is no BIDS entity",
    ),
    option("a filter for a table", FILTER, '{"bold": {"task": {"a": 1}}}', "asks for task"),
    option(
        "a filter that selects nothing",
        FILTER,
        '{"bold": {"task": "none"}}',
        "no run that --bids-filter-file",
        file="{}/fmriprep",
        code=18,
    ),
    option("a configuration that is not there", CONFIG, None, "cannot be read as TOML"),
    option("a configuration that is no TOML", CONFIG, "a = [", "cannot be read as TOML"),
    option("a configuration in UTF-16", CONFIG, "offline = true".encode("utf-16"), "cannot be read as TOML"),
    option("a configuration with an unknown setting", CONFIG, "modell = 3", "'modell' is no setting"),
    option(
        "a configuration with a word for a number",
        CONFIG,
        'clip_stride = "many"',
        "'many' is not a number",
        remedy="usage: neurostorm",
    ),
    option("a configuration nested beyond reason", CONFIG, "a = " + "[" * 5000, "cannot be read as TOML"),
    option("a plugin file that is not there", PLUGIN, None, "cannot be read"),
    option("a plugin file that is no YAML", PLUGIN, "plugin: [", "(?i)cannot be read|no YAML"),
    option(
        "a plugin file that would run a program",
        PLUGIN,
        "plugin: !!python/object/apply:os.system ['touch hacked']",
        "(?i)cannot be read|no YAML",
    ),
    option("a plugin that does not exist", PLUGIN, "plugin: Nonsense", "(?i)nonsense"),
    option("a plugin file that is a list", PLUGIN, "- plugin", "(?i)names no plugin|table"),
    option("a plugin file nested beyond reason", PLUGIN, "[" * 20_000, "(?i)cannot be read|no YAML"),
)


DEFECTS = (*FOLDERS, *PACKS, *CHECKPOINTS, *OPTIONS)
