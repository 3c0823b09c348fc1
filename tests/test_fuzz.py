"""Readers against damaged files: what was found once, and that `.ci/campaigns fuzz` would see it again."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from campaigns import fuzz, fuzz_targets  # noqa: E402
from neurostorm_bids.errors import NeurostormError  # noqa: E402

TARGETS = {target.name: target for target in fuzz_targets.TARGETS}


def changed(raw: bytes, form: str, at: int, *values: float) -> bytes:
    content = bytearray(raw)
    struct.pack_into(f"<{form}", content, at, *values)
    return bytes(content)


def nifti(form: str, at: int, *values: float) -> bytes:
    return changed(fuzz_targets.nifti_bases()[0], form, at, *values)


def self_test(number: bytes) -> bytes:
    described = fuzz_targets.model_files()["model.json"]
    return described.replace(b'"self_test": null', b'"self_test": {"seed": 1, "embedding": [' + number + b"]}")


FOUND = [
    ("nifti", lambda: changed(nifti("h", 252, 1), "f", 76, 0.3)),  # a qform of neither handedness
    ("nifti", lambda: nifti("f", 108, float("nan"))),
    ("nifti", lambda: nifti("f", 108, float("inf"))),
    ("nifti", lambda: nifti("f", 108, -4000.0)),
    ("json", lambda: b'{"a": ' * 100_000),
    ("json", lambda: b'{"RepetitionTime": 1' + b"0" * 400 + b"}"),
    ("json", lambda: b'{"StartTime": 1' + b"0" * 6000 + b"}"),
    ("json", lambda: b'{"DatasetType": "derivative", "GeneratedBy": 5}'),
    ("filters", lambda: b"[" * 100_000),
    ("filters", lambda: b"a = " + b"[" * 5000),
    ("filters", lambda: b'{"bold": {"run": "' + b"7" * 5000 + b'"}}'),
    ("models", lambda: self_test(b"1" + b"0" * 400)),
    ("transforms", lambda: b"#Insight Transform File V1.0\nTransform: A_double_" + b"9" * 5000 + b"_3\n"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "content"), FOUND)
def test_what_was_found_stays_mended(tmp_path, reader, content):
    (tmp_path / "case").write_bytes(content())
    try:
        TARGETS[reader].read(tmp_path / "case")
    except NeurostormError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("reader", "contents"),
    [
        ("nifti", lambda: fuzz_targets.nifti_bases()[1:2]),
        ("checkpoints", lambda: [fuzz_targets.model_files()["zip.ckpt"]]),
        ("models", lambda: [fuzz_targets.model_files()[name] for name in ("model.json", "weights.safetensors")]),
        ("transforms", fuzz_targets.transform_bases),
    ],
)
def test_whole_files_are_read(tmp_path, reader, contents):
    for content in contents():
        (tmp_path / "case").write_bytes(content)
        try:
            TARGETS[reader].read(tmp_path / "case")
        except NeurostormError as error:  # a mask is no warp; as an image it is whole
            assert reader == "nifti" and str(error).startswith("TransformUnreadable")


@pytest.mark.parametrize("reader", TARGETS)
def test_drawn_cases_do_no_harm(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(fuzz, "BATCH", 15)
    tally = fuzz.Tally()
    fuzz._batch(TARGETS[reader], (), 1, tmp_path / "case", tmp_path / "copy", float("inf"), tally, None)
    assert tally.failures == {}
    assert tally.cases == 15


@pytest.mark.parametrize(("error", "told"), [(KeyError("x"), "KeyError at"), (MemoryError(), "MemoryError at")])
def test_what_escapes_a_reader_is_kept(tmp_path, error, told):
    def broken(_: Path) -> None:
        raise error

    tally, corpus = fuzz.Tally(), tmp_path / "corpus"
    fuzz._one(broken, tmp_path / "case", tmp_path / "copy", b"raw", tally, corpus, "nifti")
    ((text, raw),) = tally.failures.items()
    assert text.startswith(told)
    assert raw == b"raw"
    assert [path.read_bytes() for path in (corpus / "nifti").iterdir()] == [b"raw"]


def test_a_reader_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    def endless(_: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "CASE_S", 0.2)
    tally = fuzz.Tally()
    fuzz._one(endless, tmp_path / "case", tmp_path / "copy", b"", tally, None, "nifti")
    assert next(iter(tally.failures)).startswith("TooSlow")
