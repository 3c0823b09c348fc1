"""Foreign checkpoints are read as data, or refused with the file, the fault and the remedy; nothing in them runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurostorm_bids.errors import ModelError, ModelFileTooLarge, ModelFileUnreadable, UnsafeCheckpoint
from neurostorm_bids.model import archive
from neurostorm_bids.model.archive import read_archive, tensors_of


class Malicious:
    """Unpickled freely, creates the file it names."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class AttributeDict(dict):
    """Stands for Lightning's dictionary of hyper-parameters."""


AttributeDict.__module__, AttributeDict.__qualname__ = "pytorch_lightning.utilities.parsing", "AttributeDict"


def saved(path: Path, values: object) -> Path:
    torch.save(values, path)
    return path


def rewritten(path: Path, change) -> Path:
    """The archive with each member passed through ``change(name, data) -> data``."""
    with zipfile.ZipFile(path) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members:
            new.writestr(name, change(name, data))
    return path


def test_plain_values_come_back(tmp_path: Path):
    tensor = torch.arange(6.0).reshape(2, 3)
    values = {"state_dict": {"model.a": tensor}, "hyper_parameters": {"depths": [2, 2]}, "epoch": 3}
    read = read_archive(saved(tmp_path / "a.ckpt", values))
    assert read["epoch"] == 3 and read["hyper_parameters"] == {"depths": [2, 2]}
    assert torch.equal(read["state_dict"]["model.a"], tensor)


def test_a_malicious_pickle_runs_nothing(tmp_path: Path):
    marker = tmp_path / "pwned"
    path = saved(tmp_path / "bad.ckpt", {"state_dict": {}, "callbacks": Malicious(marker)})
    with pytest.raises(UnsafeCheckpoint, match=r"\.system\); nothing in it was executed.*if you trust"):
        read_archive(path)
    assert not marker.exists()


def test_a_malicious_pickle_of_another_protocol_runs_nothing(tmp_path: Path):
    path = tmp_path / "bad.ckpt"
    torch.save({"callbacks": Malicious(tmp_path / "pwned")}, path, pickle_protocol=4)
    with pytest.raises(ModelFileUnreadable, match="not read without running it"):
        read_archive(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("payload", [b"cbuiltins\neval\n(V1+1\ntR.", b"cos\nsystem\n(Vtrue\ntR.", b"\x80\x02}q\x00."])
def test_a_bare_pickle_is_not_even_opened(tmp_path: Path, payload: bytes):
    (tmp_path / "bare.ckpt").write_bytes(payload)
    with pytest.raises(ModelFileUnreadable, match=r"not a PyTorch checkpoint|bare pickle"):
        read_archive(tmp_path / "bare.ckpt")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\nlist\nX\x05\x00\x00\x00clearttR.",
        b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02ctorch.serialization\nload\nX\x01\x00\x00\x00a\x85R.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\x00\x00\x00O\x85RX\x01\x00\x00\x00a\x86R.",
        b"\x80\x02cargparse\nNamespace\nX\x01\x00\x00\x00a\x93R.",
    ],
)
def test_crafted_pickles_in_a_valid_archive_are_refused(tmp_path: Path, payload: bytes):
    path = rewritten(
        saved(tmp_path / "a.ckpt", {"a": 1}), lambda name, data: payload if name.endswith("data.pkl") else data
    )
    with pytest.raises((UnsafeCheckpoint, ModelFileUnreadable)):
        read_archive(path)


def test_harmless_types_of_lightning_checkpoints_are_read(tmp_path: Path):
    schedule = torch.optim.lr_scheduler.OneCycleLR
    values = {
        "state_dict": {},
        "hyper_parameters": argparse.Namespace(depths=[2, 2], root=Path("/data/x")),
        "callbacks": {"score": np.float64(0.25), "count": np.int64(3)},
        "lr_schedulers": [{"kind": schedule}],
    }
    read = read_archive(saved(tmp_path / "a.ckpt", values))
    assert read["hyper_parameters"] == argparse.Namespace(depths=[2, 2], root="/data/x")
    assert read["callbacks"] == {"score": 0.25, "count": 3}
    assert read["lr_schedulers"][0]["kind"] is not schedule  # a stand-in, not the class


def test_objects_of_other_libraries_become_stand_ins(tmp_path: Path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    read = read_archive(saved(tmp_path / "a.ckpt", {"optimizer": optimizer, "epoch": 3}))
    assert read["epoch"] == 3
    assert type(read["optimizer"]).__name__ == "SGD" and not isinstance(read["optimizer"], torch.optim.Optimizer)


def test_numpy_scalars_that_are_not_numbers_are_refused(tmp_path: Path):
    with pytest.raises(UnsafeCheckpoint, match="a NumPy scalar that is not a number"):
        read_archive(saved(tmp_path / "a.ckpt", {"when": np.datetime64("2020-01-01")}))


def test_lightning_dictionaries_are_read_without_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys
    import types

    fake = types.ModuleType("pytorch_lightning.utilities.parsing")
    fake.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.utilities"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, fake.__name__, fake)
        saved(tmp_path / "a.ckpt", {"hyper_parameters": AttributeDict(depths=[2])})
    assert read_archive(tmp_path / "a.ckpt")["hyper_parameters"] == {"depths": [2]}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files_say_so(tmp_path: Path, share: float):
    path = saved(tmp_path / "a.ckpt", {"state_dict": {"model.a": torch.zeros(1000)}})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ModelFileUnreadable, match=r"a\.ckpt: is (truncated or damaged|empty).*copy or fetch"):
        read_archive(path)


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path):
    path = saved(tmp_path / "a.ckpt", {"state_dict": {"model.a": torch.full((1000,), 1.5)}})
    data = bytearray(path.read_bytes())
    position = data.index(np.full(100, 1.5, np.float32).tobytes()) + 50
    data[position] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFileUnreadable, match="damaged"):
        read_archive(path)


def test_compressed_archives_are_refused(tmp_path: Path):
    path = saved(tmp_path / "a.ckpt", {"state_dict": {"model.a": torch.zeros(100_000)}})
    with zipfile.ZipFile(path) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, data in members:
            bomb.writestr(name, data)
    with pytest.raises(ModelFileUnreadable, match="compressed archive"):
        read_archive(path)


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / "a.ckpt", {"state_dict": {"model.a": torch.zeros(100)}})
    with monkeypatch.context() as patch:
        patch.setattr(archive, "MAX_CHECKPOINT_BYTES", 100)
        with pytest.raises(ModelFileTooLarge, match="at most 100 bytes"):
            read_archive(path)
    monkeypatch.setattr(archive, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(ModelFileTooLarge, match="of them pickle"):
        read_archive(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x80\x02.", b"\x1f\x8b\x08\x00"])
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ModelFileUnreadable, match=r"x\.ckpt: .*expected a whole PyTorch checkpoint"):
        read_archive(tmp_path / "x.ckpt")


def test_an_archive_of_another_kind_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as other:
        other.writestr("word/document.xml", "<x/>")
    with pytest.raises(ModelFileUnreadable, match=r"0 data\.pkl"):
        read_archive(tmp_path / "x.ckpt")


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path: Path):
    with pytest.raises(ModelFileUnreadable, match="holds a list"):
        read_archive(saved(tmp_path / "a.ckpt", [1, 2]))


def test_views_larger_than_their_values_are_refused(tmp_path: Path):
    bomb = torch.zeros(1).expand(10**6, 10**6)
    values = read_archive(saved(tmp_path / "a.ckpt", {"model.a": bomb}))
    with pytest.raises(ModelFileUnreadable, match="without the values that its shape declares"):
        tensors_of(values, tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [3, "text", None, [torch.zeros(1)]])
def test_state_dicts_hold_tensors_alone(tmp_path: Path, value: object):
    with pytest.raises(ModelFileUnreadable, match="where a tensor belongs"):
        tensors_of({"model.a": value}, tmp_path / "a.ckpt")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_escapes_the_errors_of_this_program(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Any bytes changed anywhere: an error of ours, or the values as they were."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(8)}, "hyper_parameters": {"x": [1, 2]}}, buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "a.ckpt"
    path.write_bytes(bytes(content))
    try:
        read = read_archive(path)
        tensors_of(read.get("state_dict", {}), path)
    except ModelError as error:
        assert str(path) in str(error)
        assert "weights_only" not in str(error)  # torch's advice to load the file unsafely


@settings(max_examples=150, deadline=None)
@given(payload=st.binary(max_size=60))
def test_no_pickle_escapes_the_errors_of_this_program(tmp_path_factory: pytest.TempPathFactory, payload: bytes):
    path = rewritten(
        saved(tmp_path_factory.mktemp("fuzz") / "a.ckpt", {"a": 1}),
        lambda name, data: b"\x80\x02" + payload if name.endswith("data.pkl") else data,
    )
    try:
        read_archive(path)
    except ModelError as error:
        assert str(path) in str(error) and "weights_only" not in str(error)


def test_the_malicious_class_would_have_run(tmp_path: Path):
    """The test above means something: a free unpickling does create the file."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()
