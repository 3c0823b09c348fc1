"""Reading a foreign PyTorch checkpoint as data: nothing in it is imported, called or executed.

``torch.load(weights_only=True)`` does the unpickling. What it refuses is mapped here, by name, to inert stand-ins for
a short list of harmless types that Lightning checkpoints hold (``argparse.Namespace``, paths, NumPy scalars, states of
callbacks and schedules); every other name is an error. Before that, the zip archive is checked by its own directory:
whole, uncompressed, within limits, checksums right.
"""

from __future__ import annotations

import argparse
import logging
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurostorm_bids.errors import ModelFileTooLarge, ModelFileUnreadable, UnsafeCheckpoint

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 8 * 2**30
MAX_PICKLE_BYTES = 64 * 2**20
MAX_ARCHIVE_MEMBERS = 200_000
# what an interpreter of pickles, written in Python, may stumble over in a malformed one
_MALFORMED = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError),
    *(RuntimeError, TypeError, ValueError, struct.error),
)
_COPY_AGAIN = "copy or fetch the file again"


class _Inert:
    """Stands for an object of another library: takes any state and does nothing with it; one subclass a name."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class _Dtype:
    """Stands for ``numpy.dtype``: keeps the code of the type alone."""

    def __init__(self, code: str = "", *_flags: Any) -> None:
        self.code = code

    def __setstate__(self, _state: Any) -> None:
        pass


def _numpy_scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    if not (isinstance(dtype, _Dtype) and isinstance(data, bytes) and re.fullmatch(r"[fiub][1248]", dtype.code)):
        raise UnpicklingError("a NumPy scalar that is not a number")
    return np.frombuffer(data, dtype.code)[0].item()


def _path(*parts: str) -> str:
    return str(PurePosixPath(*(str(part) for part in parts)))


def _empty_dict(*_factory: Any) -> dict[Any, Any]:
    return {}


_STAND_INS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "collections.defaultdict": _empty_dict,
    "builtins.list": list,
    "builtins.dict": dict,
    "builtins.int": int,
    "builtins.float": float,
    **{
        f"{module}.{name}": _path
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    **{
        f"{module}.AttributeDict": dict
        for module in (
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
        )
    },
}
_INERT_PREFIXES = ("torch.optim.", "pytorch_lightning.", "lightning.", "lightning_fabric.", "torchmetrics.")


def read_archive(path: Path) -> dict[str, Any]:
    """The dictionary that a PyTorch checkpoint holds.

    Parameters
    ----------
    path : path
        A ``.ckpt``/``.pth`` as PyTorch 1.6 and later write it. Tensors stay memory-mapped.

    Raises
    ------
    ModelFileUnreadable
        Truncated, corrupt, or no PyTorch checkpoint.
    ModelFileTooLarge
        A file, a member or a pickle beyond the limits.
    UnsafeCheckpoint
        It names a function or class that is not data. Nothing was executed.
    """
    _check_zip(path)
    foreign = _foreign_names(path)
    refused = sorted(name for name in foreign if not _is_harmless(name))
    if refused:
        raise _unsafe(path, ", ".join(refused[:5]))
    stand_ins: list[Any] = [(_stand_in(name), name) for name in foreign]
    try:
        with torch.serialization.safe_globals(stand_ins):
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise _refused(path, error) from error
    except _MALFORMED as error:
        raise _unreadable(path, f"cannot be read as a checkpoint ({_first_line(error)})") from error
    if not isinstance(values, dict):
        raise _unreadable(path, f"holds a {type(values).__name__}, not a dictionary")
    return values


def _is_harmless(name: str) -> bool:
    return name in _STAND_INS or name.startswith(_INERT_PREFIXES)


def _stand_in(name: str) -> Callable[..., Any]:
    return _STAND_INS[name] if name in _STAND_INS else type(name.rsplit(".", 1)[-1], (_Inert,), {})


def _refused(path: Path, error: UnpicklingError) -> ModelFileUnreadable | UnsafeCheckpoint:
    if "nsupported operand" in str(error):
        fault = f"is a pickle of a kind that is not read without running it ({_first_line(error)})"
        return _unreadable(path, fault)
    return _unsafe(path, _first_line(error))


def _unsafe(path: Path, what: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"holds objects that are not data ({what[:300]}); nothing in it was executed",
        file=path,
        expected="tensors, numbers and texts",
        remedy="if you trust its authors, ask them for a file with state_dict and hyper_parameters alone",
    )


def _unreadable(path: Path, fault: str) -> ModelFileUnreadable:
    return ModelFileUnreadable(fault, file=path, expected="a whole PyTorch checkpoint", remedy=_COPY_AGAIN)


def _first_line(error: BaseException) -> str:
    if isinstance(error, UnpicklingError) and error.__context__ is not None:
        error = error.__context__  # torch wraps it in advice to load the file unsafely, which must not reach a user
    text = (str(error) or type(error).__name__).splitlines()[0]
    return "".join(character for character in text if character.isprintable())[:200]


def _foreign_names(path: Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except UnpicklingError as error:
        raise _refused(path, error) from error
    except _MALFORMED as error:
        raise _unreadable(path, f"cannot be read as a checkpoint ({_first_line(error)})") from error


def _check_zip(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_CHECKPOINT_BYTES:
        raise ModelFileTooLarge(f"{size} bytes", file=path, expected=f"at most {MAX_CHECKPOINT_BYTES} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist(), size)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise _unreadable(path, _zip_fault(path, error)) from error
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror})") from error
    if damaged is not None:
        raise _unreadable(path, f"is damaged (the checksum of {damaged!r} is wrong)")


def _zip_fault(path: Path, error: Exception) -> str:
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"PK\x03\x04":
        return "is truncated or damaged"
    if start[:1] == b"\x80":
        return "is a bare pickle, which could run code, not a checkpoint of PyTorch 1.6 or later"
    return "is empty" if not start else f"is not a PyTorch checkpoint ({_first_line(error)})"


def _check_members(path: Path, members: list[zipfile.ZipInfo], size: int) -> None:
    pickles = [member for member in members if member.filename.rsplit("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise _unreadable(path, f"is an archive with {len(pickles)} data.pkl")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _unreadable(path, "is a compressed archive, which PyTorch does not write")
    declared = sum(member.file_size for member in members)
    if declared > size or len(members) > MAX_ARCHIVE_MEMBERS or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise ModelFileTooLarge(
            f"declares {len(members)} members of {declared} bytes, {pickles[0].file_size} of them pickle",
            file=path,
            expected=f"at most the {size} bytes of the file, {MAX_PICKLE_BYTES} of them pickle",
        )


def tensors_of(values: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, each backed by as many bytes as its shape needs.

    A stride of zero lets a file of a kilobyte declare a tensor of a terabyte; such views are refused.
    """
    tensors = {}
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _unreadable(path, f"its state_dict holds a {type(value).__name__} where a tensor belongs")
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise _unreadable(path, f"{name[:100]!r} is a tensor without the values that its shape declares")
        tensors[name] = value.detach()
    return tensors
