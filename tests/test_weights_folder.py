"""Model folders come back as they were written, and every way to spoil one is refused by name."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from neurostorm_bids.errors import (
    ModelError,
    ModelFileTooLarge,
    ModelFileUnreadable,
    ModelFolderEdited,
    ModelFolderExists,
    ModelFolderInvalid,
    ModelNotFound,
    OutputNotWritable,
    WeightsNotFinite,
)
from neurostorm_bids.model import folder as folder_module
from neurostorm_bids.model.config import EncoderConfig, InputSpec, Target
from neurostorm_bids.model.description import (
    Backbone,
    ModelDescription,
    SelfTest,
    description_from_json,
    description_to_json,
    model_label,
)
from neurostorm_bids.model.folder import (
    backbone_hash,
    model_hash,
    read_description,
    read_model_folder,
    write_model_folder,
)
from neurostorm_bids.space.grid import Grid

CONFIG = EncoderConfig(img_size=(12, 12, 12, 4), embed_dim=4, patch_size=(6, 6, 6, 1), depths=(1, 1))
BACKBONE = {"name": "b", "sha256": "a" * 64}
PINNED = {"weights": {}, "self_test": None, "sha256": ""}
PROVENANCE = {"grid": "stated", "t_r_s": "assumed", "clip_frames": "stated"}
GRID = Grid.of((12, 12, 12), np.diag([-4.0, 4, 4, 1]), "MNI152NLin6Asym")
AGE = Target("age", "regression", unit="years", mean=54.2, std=7.6)
SEX = Target("sex", "classification", head="v2", classes=("female", "male"), temperature=1.5)
DESCRIPTION = ModelDescription(
    name="my model 1",
    config=CONFIG,
    input=InputSpec(
        GRID, t_r_s=0.8, clip_frames=4, provenance={**PROVENANCE, "normalisation": "assumed", "background": "assumed"}
    ),
    targets=(AGE, SEX, Target("identity", "retrieval", head="emb")),
    training_distribution={"age": {"min": 40, "max": 70}},
    summary="A test model.",
    licence="CC0",
)
WEIGHTS = {
    "encoder.a": torch.arange(6.0).reshape(2, 3),
    "encoder.layers.0.prompt": torch.ones(1, 2, 3),
    "head.age.head.head.bias": torch.tensor([0.5]),
    "head.identity.bn1.num_batches_tracked": torch.tensor(3),
}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    write_model_folder(tmp_path / "m", DESCRIPTION, WEIGHTS, self_test=SelfTest(7, (0.25, -1.5)))
    return tmp_path / "m"


def edited(folder: Path, change) -> Path:
    values = json.loads((folder / "model.json").read_text())
    change(values)
    (folder / "model.json").write_text(json.dumps(values))
    return folder


def test_a_folder_comes_back_as_written(model_folder: Path):
    read = read_model_folder(model_folder)
    assert read.description == DESCRIPTION
    assert read.description.input.provenance == DESCRIPTION.input.provenance
    assert read.description.training_distribution == DESCRIPTION.training_distribution
    assert read.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(read.weights[name], tensor) for name, tensor in WEIGHTS.items())
    assert read.self_test == SelfTest(7, (0.25, -1.5))
    assert read.sha256 == model_hash(DESCRIPTION, WEIGHTS)
    assert read_description(model_folder) == DESCRIPTION
    assert {path.name for path in model_folder.iterdir()} == {
        *("model.json", "weights.safetensors", "MODEL_CARD.md", "training.json"),
    }


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        write_model_folder(tmp_path / name, DESCRIPTION, WEIGHTS, training={"seed": 1})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_half_precision_weights_are_read_as_float32(tmp_path: Path):
    write_model_folder(tmp_path / "m", replace(DESCRIPTION, targets=()), {"encoder.a": torch.tensor([0.5]).half()})
    assert read_model_folder(tmp_path / "m").weights["encoder.a"].dtype == torch.float32


def test_the_hash_covers_what_decides_an_output_and_nothing_else():
    own = model_hash(DESCRIPTION, WEIGHTS)
    assert own == model_hash(replace(DESCRIPTION, name="other", summary="", licence="MIT"), WEIGHTS)
    other_scaler = replace(DESCRIPTION, targets=(replace(AGE, mean=50.0),))
    other_input = replace(DESCRIPTION, input=replace(DESCRIPTION.input, t_r_s=0.72))
    other_weights = {**WEIGHTS, "encoder.a": WEIGHTS["encoder.a"] + 1e-7}
    hashes = [
        model_hash(other_scaler, WEIGHTS),
        model_hash(other_input, WEIGHTS),
        model_hash(DESCRIPTION, other_weights),
    ]
    assert len({own, *hashes}) == 4


def test_a_backbone_is_the_encoder_and_its_input_whatever_the_heads_prompts_and_provenance():
    own = backbone_hash(CONFIG, DESCRIPTION.input, WEIGHTS)
    bare = {"encoder.a": WEIGHTS["encoder.a"]}
    assert own == backbone_hash(replace(CONFIG, prompt_len=2), replace(DESCRIPTION.input, provenance={}), bare)
    assert own != backbone_hash(CONFIG, DESCRIPTION.input, {"encoder.a": WEIGHTS["encoder.a"] + 1e-6})
    assert own != backbone_hash(CONFIG, replace(DESCRIPTION.input, t_r_s=2.0), bare)
    assert own != backbone_hash(replace(CONFIG, window_size=(2, 2, 2, 2)), DESCRIPTION.input, bare)


def test_labels_are_letters_and_digits():
    assert model_label("my model-0.5_b") == "mymodel05b"
    with pytest.raises(ModelFolderInvalid, match="no letter or digit"):
        model_label("../_")


# --- spoiled folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["targets"][0].update(mean=50.0),
        lambda values: values["input"]["t_r_s"].update(value=2.0),
        lambda values: values["architecture"].update(window_size=[2, 2, 2, 2]),
        lambda values: values["input"]["grid"].update(provenance="assumed"),
        lambda values: values.update(trained=False, targets=[]),
    ],
)
def test_an_edited_description_is_refused(model_folder: Path, change):
    with pytest.raises(ModelFolderEdited, match=r"model\.json: its hash is .*--target-scaler"):
        read_model_folder(edited(model_folder, change))


def test_renaming_a_model_is_no_edit(model_folder: Path):
    read = read_model_folder(edited(model_folder, lambda values: values.update(name="other", licence="MIT")))
    assert read.description.name == "other"


def test_edited_weights_are_refused(model_folder: Path):
    path = model_folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFolderEdited, match=r"weights\.safetensors: its hash is .*copy the folder again"):
        read_model_folder(model_folder)


@pytest.mark.parametrize("name", ["../x/weights.safetensors", "/etc/passwd", "weights2.safetensors", "a/b"])
def test_paths_in_model_json_lead_nowhere(model_folder: Path, name: str):
    with pytest.raises(ModelFolderInvalid, match=r"weights\.file is .*expected weights\.safetensors"):
        read_model_folder(edited(model_folder, lambda values: values["weights"].update(file=name)))


def test_truncated_and_missing_weights(model_folder: Path):
    path = model_folder / "weights.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(ModelFileUnreadable, match=rf"holds {len(data) - 10} bytes. expected {len(data)}"):
        read_model_folder(model_folder)
    path.unlink()
    with pytest.raises(ModelFileUnreadable, match=r"weights are missing.*whole folder"):
        read_model_folder(model_folder)
    path.symlink_to("../.git/annex/objects/x")
    with pytest.raises(ModelFileUnreadable, match="datalad get"):
        read_model_folder(model_folder)


def test_no_folder_or_no_description(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"no model\.json in it.*neurostorm-models convert"):
        read_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "not valid JSON"),
        (b"[1, 2", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "an entry is there twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": 1e999}', "1e999 is not a number"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_broken_json(model_folder: Path, content: bytes, fault: str):
    (model_folder / "model.json").write_bytes(content)
    with pytest.raises(ModelFileUnreadable, match=rf"model\.json: .*{fault}"):
        read_model_folder(model_folder)


def test_a_description_of_absurd_length_is_not_parsed(model_folder: Path):
    (model_folder / "model.json").write_bytes(b" " * 4_000_001)
    with pytest.raises(ModelFileTooLarge, match="at most 4000000 bytes"):
        read_model_folder(model_folder)


def changed(*path_and_value: Any):
    *path, value = path_and_value

    def change(values: dict[str, Any]) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (changed("format", "x"), "format is x. expected one of neurostorm-model"),
        (changed("format_version", 2), "format version 2. expected 1 or older"),
        (changed("extra", 1), "unknown entries extra"),
        (lambda values: values.pop("targets"), "the entry targets is missing"),
        (changed("name", "../.."), "no letter or digit"),
        (changed("name", "a\u0007"), "name is a.*printable text"),
        (changed("name", 3), "name is 3. expected printable text"),
        (changed("trained", 1), "trained is 1. expected true or false"),
        (changed("architecture", []), "architecture is not a JSON object"),
        (changed("architecture", "embed_dim", 10**9), "architecture.embed_dim is 1000000000. expected a whole"),
        (changed("architecture", "embed_dim", True), "architecture.embed_dim is true"),
        (changed("architecture", "depths", [2] * 9), "architecture.depths is .*a list of 1 to 8 entries"),
        (changed("architecture", "depths", [10**9]), "architecture.depths is 1000000000"),
        (changed("architecture", "window_size", [4, 4, 4]), r"window_size is \[4, 4, 4\]. expected a list of 4"),
        (changed("architecture", "c_multiplier", 0), "c_multiplier is 0"),
        (changed("architecture", "mlp_ratio", 1e9), "mlp_ratio is 1000000000.0. expected a number from"),
        (changed("architecture", "last_layer_full_MSA", "True"), "last_layer_full_MSA is True. expected true or"),
        (changed("architecture", "img_size", [13, 12, 12, 4]), "expected whole patches"),
        (changed("input", "t_r_s", "value", 0), "input.t_r_s.value is 0. expected a number from 0.01 to 60"),
        (changed("input", "t_r_s", "provenance", "sure"), "provenance is sure. expected one of stated, assumed"),
        (changed("input", "normalisation", "value", "x"), "normalisation.value is x. expected one of run-zscore"),
        (changed("input", "clip_frames", "value", 5), "clips have 5 frames. expected at most the encoder's 4"),
        (changed("input", "grid", "value", "shape", [13, 12, 12]), "the grid is .* and the encoder's image"),
        (changed("input", "grid", "value", "affine", [[0] * 4] * 4), "maps no volume"),
        (changed("input", "grid", "value", "affine", [[1] * 4] * 3), "a list of 4 entries"),
        (changed("input", "grid", "value", "template", "../x"), "template is ../x. expected the pattern"),
        (changed("targets", 0, "name", "a/b"), r"targets\[0\].name is a/b. expected the pattern"),
        (changed("targets", 0, "name", "a.b"), r"targets\[0\].name is a.b"),
        (changed("targets", 0, "kind", "x"), r"targets\[0\].kind is x. expected one of regression"),
        (changed("targets", 0, "head", "v2"), r"targets\[0\].head is v2. expected one of v1"),
        (changed("targets", 0, "std", None), r"targets\[0\] has half a scaler"),
        (changed("targets", 0, "std", -1), r"targets\[0\].std is -1"),
        (changed("targets", 0, "classes", ["a", "b"]), "is a regression with 2 classes"),
        (changed("targets", 1, "classes", ["a"]), "is a classification with 1 classes"),
        (changed("targets", 1, "classes", ["a", "a"]), "expected different texts"),
        (changed("targets", 1, "mean", 1.0), "has half a scaler"),
        (lambda values: values["targets"][1].update(mean=1.0, std=1.0), "is a classification with a scaler"),
        (changed("targets", 1, "name", "AGE"), "two targets of one name"),
        (changed("targets", 1, "calibration", "temperature", 0), "calibration.temperature is 0"),
        (changed("trained", False), "an untrained model has targets"),
        (
            lambda values: values.update(backbone={"name": "b", "sha256": "a" * 64}, targets=[]),
            "a pack without targets",
        ),
        (changed("backbone", {"name": "b", "sha256": "x"}), "backbone.sha256 is x"),
        (changed("training_distribution", 3), "training_distribution is not a JSON object"),
        (changed("weights", "bytes", -1), "weights.bytes is -1"),
        (changed("self_test", "embedding", ["a"]), "self_test.embedding is not a list of numbers"),
    ],
)
def test_impossible_entries_are_named(model_folder: Path, change, fault: str):
    with pytest.raises(ModelFolderInvalid, match=fault) as caught:
        read_model_folder(edited(model_folder, change))
    if "no letter" not in fault:
        assert str(model_folder) in str(caught.value)


# --- safetensors ------------------------------------------------------------------------------------------------


def with_weights_file(folder: Path, data: bytes) -> Path:
    """The folder with another weights file, its size and hash made to fit: only the content is wrong."""
    (folder / "weights.safetensors").write_bytes(data)
    sha256 = folder_module.file_hash(folder / "weights.safetensors")
    return edited(folder, lambda values: values["weights"].update(bytes=len(data), sha256=sha256))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}" * 100,
        struct.pack("<Q", 2**40) + b"{}" * 100,
        struct.pack("<Q", 2) + b"[]" + b"\0" * 10,
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        b"\x10\0\0\0\0\0\0\0{'not json': 1}.",
        struct.pack("<Q", 67) + b'{"encoder.a":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}  ',
        struct.pack("<Q", 79) + b'{"encoder.a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}} ',
    ],
    ids=["2^63 header", "2^40 header", "list", "nested", "quotes", "beyond the end", "shape overflow"],
)
def test_header_bombs_and_lies(model_folder: Path, data: bytes):
    with pytest.raises(ModelFileUnreadable, match=r"weights\.safetensors: (declares a header|not a whole safetensors)"):
        read_model_folder(with_weights_file(model_folder, data))


def test_weights_of_another_type_and_not_finite(model_folder: Path, tmp_path: Path):
    save_file({"encoder.a": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "x")
    with pytest.raises(ModelFileUnreadable, match=r"encoder\.a is torch\.uint8. expected float weights"):
        read_model_folder(with_weights_file(model_folder, (tmp_path / "x").read_bytes()))
    save_file({"encoder.a": torch.tensor([1.0, float("inf")])}, tmp_path / "x")
    with pytest.raises(WeightsNotFinite, match=r"in 1 of 1 weights, first in encoder\.a.*training diverged"):
        read_model_folder(with_weights_file(model_folder, (tmp_path / "x").read_bytes()))


def test_weights_beyond_the_limit(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder_module, "MAX_WEIGHTS_BYTES", 2**30)
    path = model_folder / "weights.safetensors"
    with path.open("r+b") as stream:
        stream.truncate(2**31)  # sparse
    with pytest.raises(ModelFileTooLarge, match=f"{2**31} bytes. expected at most {2**30}"):
        folder_module.header_checked(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_damage_of_a_folder_escapes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("fuzz") / "m"
    write_model_folder(folder, DESCRIPTION, WEIGHTS)
    path = folder / data.draw(st.sampled_from(["model.json", "weights.safetensors"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        read = read_model_folder(folder)
    except ModelError as error:
        assert error.exit_code in (66, 74)
    else:  # only the prose, the name or the self-test can have changed
        assert read.sha256 == model_hash(DESCRIPTION, WEIGHTS)


# --- writing ----------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_kept_unless_told_otherwise(model_folder: Path):
    with pytest.raises(ModelFolderExists, match="exists already"):
        write_model_folder(model_folder, DESCRIPTION, WEIGHTS)
    write_model_folder(model_folder, replace(DESCRIPTION, name="second"), WEIGHTS, overwrite=True)
    assert read_description(model_folder).name == "second"
    assert [path.name for path in model_folder.parent.iterdir()] == ["m"]


def test_a_failed_write_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "_put_in_place", full)
    with pytest.raises(OutputNotWritable, match="No space left"):
        write_model_folder(tmp_path / "m", DESCRIPTION, WEIGHTS)
    assert not (tmp_path / "m").exists()


def test_remains_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not(tmp_path: Path):
    partial = folder_module._partial_folder(tmp_path / "m")
    dead = partial.with_name(partial.name.replace(str(os.getpid()), str(2**22 + 1)))
    alive = partial.with_name(partial.name.replace(str(os.getpid()), str(os.getppid())))
    for path in (dead, alive):
        path.mkdir()
        (path / "weights.safetensors").write_bytes(b"half")
    write_model_folder(tmp_path / "m", DESCRIPTION, WEIGHTS)
    assert {path.name for path in tmp_path.iterdir()} == {"m", alive.name}


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path):
    with pytest.raises(ModelFolderInvalid, match="temperature"):
        write_model_folder(tmp_path / "m", replace(DESCRIPTION, targets=(replace(SEX, temperature=0.0),)), WEIGHTS)
    with pytest.raises(WeightsNotFinite):
        write_model_folder(tmp_path / "m", DESCRIPTION, {"encoder.a": torch.tensor([float("nan")])})
    pack = replace(DESCRIPTION, backbone=Backbone("b", "a" * 64))
    with pytest.raises(ModelFolderInvalid, match="a pack with weights of its backbone"):
        write_model_folder(tmp_path / "m", pack, WEIGHTS)
    assert not any(path.name == "m" for path in tmp_path.iterdir())


def test_the_card_says_what_is_assumed_and_what_is_untrained(model_folder: Path, tmp_path: Path):
    card = (model_folder / "MODEL_CARD.md").read_text()
    assert "Assumed, not stated by the model's authors:** t_r_s, normalisation, background" in card
    assert "regression in years (offset 54.2, scale 7.6)" in card and "classification: female, male" in card
    write_model_folder(tmp_path / "u", replace(DESCRIPTION, targets=(), trained=False), WEIGHTS)
    assert "**Untrained.**" in (tmp_path / "u" / "MODEL_CARD.md").read_text()


@given(
    st.builds(
        Target,
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,20}", fullmatch=True),
        kind=st.just("regression"),
        unit=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        mean=st.floats(-1e6, 1e6),
        std=st.floats(1e-6, 1e6),
        scaling=st.sampled_from(["standard", "minmax"]),
    )
)
def test_any_regression_target_survives_the_file(target: Target):
    description = replace(DESCRIPTION, targets=(target,))
    assert description_from_json(json.loads(json.dumps(description_to_json(description) | PINNED))) == description
