"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden tensors and real images beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("NEUROSTORM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"golden data and real images are not at {folder} (set NEUROSTORM_SHARED)")
    return folder
