"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Triton reads this when it is first imported, by whatever test that is; without a GPU it can only interpret its kernels
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden tensors and real images beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("NEUROSTORM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"golden data and real images are not at {folder} (set NEUROSTORM_SHARED)")
    return folder
