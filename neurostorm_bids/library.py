"""The library of compiled kernels (csrc), which is there when a C compiler was at hand at installation."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent  # setup.py puts the library into the package's own folder
PATTERN = "_kernels.*"


@cache
def kernel_library() -> ctypes.CDLL:
    """The library, loaded once.

    Raises
    ------
    ImportError
        It was not compiled.
    """
    paths = sorted(FOLDER.glob(PATTERN))
    if not paths:
        raise ImportError("the kernel was not compiled when neurostorm was installed: no C compiler was found")
    return ctypes.CDLL(str(paths[0]))
