"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from neurostorm_bids.errors import NeurostormError, NoUsableRun, ValidatorMissing

# Triton reads this when it is first imported, by whatever test that is; without a GPU it can only interpret its kernels
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# no test fails because a machine is slow
settings.register_profile("neurostorm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("neurostorm")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden tensors and real images beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("NEUROSTORM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"golden data and real images are not at {folder} (set NEUROSTORM_SHARED)")
    return folder


REFUSING = tuple(f"neurostorm_bids.{name}" for name in ("space", "inputs", "clips", "outputs", "training.splits"))
READING_SPACE = ("fnirt", "header", "itk", "masks", "nifti", "series", "transforms")
READING_INPUTS = ("folders", "hcp", "motion", "participants", "presence", "queries", "sidecars", "tables", "ukb")
READING = tuple(
    f"neurostorm_bids.{part}.{name}"
    for part, names in (("space", READING_SPACE), ("inputs", READING_INPUTS))
    for name in names
)
COMPLETE_OTHERWISE = (NoUsableRun, ValidatorMissing)  # all runs' faults, each with its remedy; a program, not a file


@pytest.fixture(autouse=True)
def _every_refusal_is_complete(monkeypatch) -> Iterator[None]:
    """Whatever a test is about: what these parts refuse is told with what to do; what is read, with its file."""
    made: list[tuple[str, NeurostormError]] = []
    begin = NeurostormError.__init__

    def noting(self: NeurostormError, *arguments, **named) -> None:
        begin(self, *arguments, **named)
        made.append((sys._getframe(1).f_globals["__name__"], self))

    monkeypatch.setattr(NeurostormError, "__init__", noting)
    yield
    with_file = {error.fault for _, error in made if error.file is not None}  # a caller may have added it
    for module, error in made:
        if module.startswith(REFUSING) and not isinstance(error, COMPLETE_OTHERWISE):
            assert error.fault and error.remedy, f"no remedy: {error}"
            assert error.fault in with_file or not module.startswith(READING), f"no file: {error}"
