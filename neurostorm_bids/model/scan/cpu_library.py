"""The compiled kernels as ctypes sees them: the library, its structures and its functions (csrc/neurostorm.h)."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache

import torch
from torch import Tensor

from neurostorm_bids.library import kernel_library

ISA_VARIABLE = "NEUROSTORM_ISA"  # avx512, avx2 or baseline: takes that instruction set instead of the machine's best
ISAS = ("avx512", "avx2", "baseline")
BFLOAT16 = "avx512bf16"  # products of matrices rounded to bfloat16; taken by name only

_Size4 = c_int32 * 4


class _Structure(ctypes.Structure):
    """A C structure filled from keywords; tensors and packed weights become pointers and stay alive with it."""

    def __init__(self, **values: Tensor | Packed | ctypes.Structure | tuple[int, ...] | int | None) -> None:
        super().__init__()
        self.owned = [value for value in values.values() if isinstance(value, Tensor | Packed)]
        for name, value in values.items():
            if isinstance(value, Tensor):
                value = pointer(value)
            elif isinstance(value, Packed):
                value = value.handle
            setattr(self, name, _Size4(*value) if isinstance(value, tuple) else value)


def _ints(names: str) -> list[tuple[str, type]]:
    return [(name, c_int32) for name in names.split()]


def _pointers(names: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in names.split()]


class BlockWeights(_Structure):
    """ns_block_weights"""

    _fields_ = (
        *_ints("dim inner rank states taps hidden prompt"),
        *_pointers("norm1_weight norm1_bias in_proj conv_weight conv_bias x_proj dt_weight dt_bias a skip out_proj"),
        *_pointers("norm2_weight norm2_bias fc1_weight fc1_bias fc2_weight fc2_bias prompt_tokens"),
    )


class Windows(_Structure):
    """ns_windows"""

    _fields_ = (("clips", c_int32), *((name, _Size4) for name in ("grid", "window", "count", "origin")))


class LinearWeights(_Structure):
    """ns_linear_weights"""

    _fields_ = (*_ints("inputs outputs"), *_pointers("weight bias norm_weight norm_bias"))


class Patches(_Structure):
    """ns_patches"""

    _fields_ = (*_ints("clips channels"), ("image", _Size4), ("patch", _Size4))


class Step(_Structure):
    """ns_step"""

    _fields_ = (*_pointers("block merging"), ("windows", Windows), *_pointers("place time tokens merged"))


class ScanArguments(_Structure):
    """ns_scan"""

    _fields_ = (*_ints("batch length channels states"), *_pointers("u delta a b c skip z delta_bias y starts"))


class ScanGradients(_Structure):
    """ns_scan_gradients"""

    _fields_ = tuple(_pointers("grad_y grad_u grad_delta grad_a grad_b grad_c grad_skip grad_z grad_delta_bias"))


class _Functions(ctypes.Structure):
    """ns_kernels"""

    _fields_ = (
        ("isa", c_char_p),
        ("block_new", ctypes.CFUNCTYPE(c_void_p, POINTER(BlockWeights))),
        ("block_free", ctypes.CFUNCTYPE(None, c_void_p)),
        ("block_forward", ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Windows), c_void_p, c_int32)),
        ("linear_new", ctypes.CFUNCTYPE(c_void_p, POINTER(LinearWeights))),
        ("linear_free", ctypes.CFUNCTYPE(None, c_void_p)),
        ("patch_embed", ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Patches), *[c_void_p] * 4, c_int32)),
        ("merge", ctypes.CFUNCTYPE(c_int, c_void_p, c_int32, POINTER(_Size4), *[c_void_p] * 4, c_int32)),
        ("run_steps", ctypes.CFUNCTYPE(c_int, POINTER(Step), c_int32, c_int32)),
        ("scan_forward", ctypes.CFUNCTYPE(c_int, POINTER(ScanArguments), c_int32)),
        ("scan_starts", ctypes.CFUNCTYPE(c_int64, *[c_int32] * 4)),
        ("scan_backward", ctypes.CFUNCTYPE(c_int, POINTER(ScanArguments), POINTER(ScanGradients), c_int32)),
        (
            "write_frames",
            c_void_p,
        ),  # these two are called through their own symbols, see neurostorm_bids.clips.compiled
        ("sum_frames", c_void_p),
        ("exponential", ctypes.CFUNCTYPE(None, c_int64, c_void_p)),
    )


class Packed:
    """Weights in the layout of the kernels, freed with this object."""

    def __init__(self, handle: int | None, free: Callable[[int], None]) -> None:
        if not handle:
            raise MemoryError("no memory for the packed weights")
        self.handle = handle
        weakref.finalize(self, free, handle)


class Kernels:
    """The kernels of one instruction set.

    Parameters
    ----------
    isa : str, optional
        One of `ISAS` or `BFLOAT16`; the machine's best of `ISAS` if not given.

    Raises
    ------
    ImportError
        The library was not built, or this machine lacks the instruction set.
    """

    def __init__(self, isa: str | None = None) -> None:
        found = _library().ns_kernels_for(isa.encode() if isa else None)
        if not found:
            raise ImportError(f"this machine cannot run the {isa} kernels; {ISA_VARIABLE} is one of {', '.join(ISAS)}")
        self._functions = found.contents
        self.isa: str = self._functions.isa.decode()

    def pack_block(self, weights: BlockWeights) -> Packed:
        """Weights of a block, packed."""
        return Packed(self._functions.block_new(weights), self._functions.block_free)

    def pack_linear(self, weights: LinearWeights) -> Packed:
        """Weights of a patch embedding or a patch merging, packed."""
        return Packed(self._functions.linear_new(weights), self._functions.linear_free)

    def block_forward(self, block: Packed, windows: Windows, tokens: Tensor) -> None:
        """A block on tokens (n, x, y, z, t, c), in place."""
        _check(self._functions.block_forward(block.handle, windows, pointer(tokens), threads()))

    def patch_embed(
        self, linear: Packed, patches: Patches, clips: Tensor, place: Tensor, time: Tensor, tokens: Tensor
    ) -> None:
        """Clips (n, ch, X, Y, Z, T) to tokens (n, x, y, z, t, c) with the embeddings (x, y, z, c) and (t, c) added."""
        pointers = map(pointer, (clips, place, time, tokens))
        _check(self._functions.patch_embed(linear.handle, patches, *pointers, threads()))

    def run_steps(self, steps: Sequence[Step]) -> None:
        """Layers one after the other, each on what the one before it wrote."""
        _check(self._functions.run_steps((Step * len(steps))(*steps), len(steps), threads()))

    def scan_forward(self, arguments: ScanArguments) -> None:
        """The scan alone."""
        _check(self._functions.scan_forward(arguments, threads()))

    def scan_starts(self, batch: int, length: int, channels: int, states: int) -> Tensor:
        """Memory for the states that the forward keeps for the backward."""
        return torch.empty(self._functions.scan_starts(batch, length, channels, states))

    def scan_backward(self, arguments: ScanArguments, gradients: ScanGradients) -> None:
        """Gradients of the scan's inputs."""
        _check(self._functions.scan_backward(arguments, gradients, threads()))

    def exponential(self, x: Tensor) -> None:
        """The exponential of x in place, on one thread; its size is a multiple of 16."""
        self._functions.exponential(x.numel(), pointer(x))


@cache
def _library() -> ctypes.CDLL:
    library = kernel_library()
    library.ns_kernels_for.argtypes, library.ns_kernels_for.restype = [c_char_p], POINTER(_Functions)
    library.ns_fingerprint.argtypes = [POINTER(c_void_p), POINTER(c_int64), c_int32]
    library.ns_fingerprint.restype = c_uint64
    return library


def fingerprint(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Changes when any of the tensors is replaced or moved, and when values are written into it.

    Version counters miss what is written through ``tensor.data``, so some values of each tensor are looked at as well.
    """
    addresses = [tensor.data_ptr() for tensor in tensors]
    versions = (0 if tensor.is_inference() else tensor._version for tensor in tensors)
    sizes = (c_int64 * len(addresses))(*(tensor.numel() for tensor in tensors))
    values = _library().ns_fingerprint((c_void_p * len(addresses))(*addresses), sizes, len(addresses))
    return (values, *addresses, *versions)


def default_isa() -> str | None:
    """The instruction set that the environment asks for, None for the machine's best."""
    return os.environ.get(ISA_VARIABLE) or None


def threads() -> int:
    """As many threads as torch computes with, which is what --omp-nthreads sets."""
    return torch.get_num_threads()


def pointer(tensor: Tensor) -> int:
    """Address of a tensor's first element."""
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"the kernels take contiguous float32 tensors on the CPU, not {tensor.dtype} on {tensor.device}"
        )
    return tensor.data_ptr()


def _check(status: int) -> None:
    if status:
        raise MemoryError("no memory for the scratch space of the kernels")
