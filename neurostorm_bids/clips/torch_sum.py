"""The mean of many float32 values as the published preprocessing got it: torch's float32 sum, on two threads.

int8 rounding makes the last digits of the mean visible: a voxel in a million changes its step. So the parity route
repeats the order in which torch adds (``aten/src/ATen/native/cpu/SumKernel.cpp``, unchanged from 1.8 to 2.13), on
values that arrive in pieces. One thread adds a run of values as four interleaved rows of eight, in a cascade of four
levels; two threads take a half each.
"""

from __future__ import annotations

import numpy as np

LANES = 32  # four interleaved vectors of eight float32
VECTOR = 8
LEVELS = 4
SMALLEST_STEP = 16
ONE_THREAD = 32768  # torch does not split fewer values


class TorchMean:
    """Mean of ``n_values`` float32 numbers, fed in order and in pieces of any length."""

    def __init__(self, n_values: int) -> None:
        self._n_values = n_values
        half = -(-n_values // 2) if n_values > ONE_THREAD else n_values
        self._sums = [CascadeSum(half), CascadeSum(n_values - half)]
        self._left_in_first = half

    def feed(self, values: np.ndarray) -> None:
        """The next values.  # (n,) float32"""
        n_first = min(self._left_in_first, len(values))
        self._sums[0].feed(values[:n_first])
        self._sums[1].feed(values[n_first:])
        self._left_in_first -= n_first

    def result(self) -> np.float32:
        """The mean, once all values are in."""
        return (self._sums[0].result() + self._sums[1].result()) / np.float32(self._n_values)


class CascadeSum:
    """Float32 sum of ``n_values``, in the order of one torch thread."""

    def __init__(self, n_values: int) -> None:
        n_rows = n_values // LANES
        self._step = max(SMALLEST_STEP, 1 << (max(n_rows - 1, 0).bit_length() // LEVELS))
        self._pending: list[np.ndarray] = []
        self._n_pending = 0
        self._second_level = np.empty((0, LANES), np.float32)

    def feed(self, values: np.ndarray) -> None:
        """The next values.  # (n,) float32"""
        self._pending.append(values)
        self._n_pending += len(values)
        unit = self._step**2 * LANES
        n_whole = self._n_pending // unit * unit
        if not n_whole:
            return
        joined = np.concatenate(self._pending)
        rows = joined[:n_whole].reshape(-1, LANES)
        sums = _add_groups(_add_groups(rows, self._step), self._step)
        self._second_level = np.concatenate([self._second_level, sums])
        self._pending = [joined[n_whole:].copy()]
        self._n_pending -= n_whole

    def result(self) -> np.float32:
        """The sum, once all values are in."""
        rest = np.concatenate(self._pending) if self._pending else np.empty(0, np.float32)
        n_rows = len(rest) // LANES
        total = self._cascade(rest[: n_rows * LANES].reshape(-1, LANES)).reshape(-1, VECTOR)
        tail = rest[n_rows * LANES :]
        n_vectors = len(tail) // VECTOR
        for vector in tail[: n_vectors * VECTOR].reshape(-1, VECTOR):
            total[0] += vector
        return _add_in_turn(np.concatenate([tail[n_vectors * VECTOR :], _add_rows(total)]))

    def _cascade(self, rows: np.ndarray) -> np.ndarray:
        """Lane sums: what is left over at each level, lowest level first.  # (lanes,)"""
        leftovers, level = [], rows
        for number in range(LEVELS - 1):
            n_grouped = len(level) // self._step * self._step
            leftovers.append(_add_rows(level[n_grouped:]))
            level = _add_groups(level[:n_grouped], self._step)
            if number == 1:
                level = np.concatenate([self._second_level, level])
        return _add_rows(np.stack([*leftovers, _add_rows(level)]))


def _add_groups(rows: np.ndarray, step: int) -> np.ndarray:
    """Sums of ``step`` successive rows each, one row after the other.  # (n / step, lanes)"""
    return np.add.reduce(rows.reshape(-1, step, rows.shape[1]), axis=1)


def _add_rows(rows: np.ndarray) -> np.ndarray:
    return np.add.reduce(rows, axis=0, initial=np.float32(0))


def _add_in_turn(values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for value in values:
        total += value
    return total
