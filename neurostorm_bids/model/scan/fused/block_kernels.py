"""Kernels of the Triton backend: what lies around the Mamba layer in a block, and the ends of a stage. Inference only.

All arithmetic is float32, whatever the tensors hold; letters as in `neurostorm_bids.model`.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from neurostorm_bids.model.scan.fused.kernels import _row


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


# --- a block around its layer, in inference -------------------------------------------------------------------------
#
# Windows are never cut out by copies: rows are gathered where they are normalised, and put back where they are added.
# GRID, WINDOW, COUNT, ROLLED and BEFORE are four sizes each, as `WindowLayout` has them; PROMPT rows lead each window.


@triton.jit
def _token_of(
    m, PROMPT: tl.constexpr, GRID: tl.constexpr, WINDOW: tl.constexpr, COUNT: tl.constexpr,
    ROLLED: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Token of the grid that a row of the windows shows, whether there is one, and the row's place in its window."""
    length: tl.constexpr = WINDOW[0] * WINDOW[1] * WINDOW[2] * WINDOW[3] + PROMPT
    window, place = m // length, m % length
    within = place - PROMPT
    real = within >= 0
    within = tl.maximum(within, 0)
    token = m * 0
    stride = 1
    for axis in tl.static_range(3, -1, -1):  # t runs fastest
        at = (window % COUNT[axis]) * WINDOW[axis] + within % WINDOW[axis]
        window, within = window // COUNT[axis], within // WINDOW[axis]
        at = (at + ROLLED[axis]) % (COUNT[axis] * WINDOW[axis]) - BEFORE[axis]
        real = real & (at >= 0) & (at < GRID[axis])
        token += at * stride
        stride = stride * GRID[axis]
    return token + window * stride, real, place


@triton.jit
def _row_of(
    token, PROMPT: tl.constexpr, GRID: tl.constexpr, WINDOW: tl.constexpr, COUNT: tl.constexpr,
    ROLLED: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Row of the windows that shows a token of the grid: the inverse of `_token_of`."""
    window, within = token * 0, token * 0
    windows, length = 1, 1
    for axis in tl.static_range(3, -1, -1):
        at = token % GRID[axis]
        token = token // GRID[axis]
        at = (at + BEFORE[axis] - ROLLED[axis] + COUNT[axis] * WINDOW[axis]) % (COUNT[axis] * WINDOW[axis])
        window += at // WINDOW[axis] * windows
        within += at % WINDOW[axis] * length
        windows, length = windows * COUNT[axis], length * WINDOW[axis]
    return (token * windows + window) * (length + PROMPT) + PROMPT + within


@triton.jit
def _layer_norm(x, inside, weight, bias, eps, n):
    """Rows to mean 0 and variance 1, then scale and shift; columns outside are 0.  # (rows, c) -> (rows, c)"""
    mean = tl.sum(x, 1) / n
    centred = tl.where(inside[None, :], x - mean[:, None], 0)
    variance = tl.sum(centred * centred, 1) / n
    return centred / tl.sqrt(variance + eps)[:, None] * weight[None, :] + bias[None, :]


@triton.jit
def norm_windows(
    x, weight, bias, prompt, windows, n_rows, eps,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, PROMPT: tl.constexpr, GRID: tl.constexpr,
    WINDOW: tl.constexpr, COUNT: tl.constexpr, ROLLED: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """LayerNorm of tokens x (n, x, y, z, t, c), laid out as windows (w, prompt + l, c); padding is 0."""
    m, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    token, real, place = _token_of(m, PROMPT, GRID, WINDOW, COUNT, ROLLED, BEFORE)
    there, ok = m < n_rows, i < C
    values = _row(x, token.to(tl.int64)[:, None] * C + i[None, :], (real & there)[:, None] & ok[None, :])
    out = _layer_norm(values, ok, _row(weight, i, ok), _row(bias, i, ok), eps, C)
    out = tl.where(real[:, None], out, 0)
    if PROMPT > 0:
        out += _row(prompt, place[:, None] * C + i[None, :], (place < PROMPT)[:, None] & ok[None, :])
    at = m.to(tl.int64)[:, None] * C + i[None, :]
    tl.store(windows + at, out.to(windows.dtype.element_ty), mask=there[:, None] & ok[None, :])


@triton.jit
def _joined(
    x, mixed, token, i, inside, C: tl.constexpr, PROMPT: tl.constexpr, GRID: tl.constexpr,
    WINDOW: tl.constexpr, COUNT: tl.constexpr, ROLLED: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Tokens with what the windows say of them added.  # (rows, c)"""
    row = _row_of(token, PROMPT, GRID, WINDOW, COUNT, ROLLED, BEFORE).to(tl.int64)
    return _row(x, token.to(tl.int64)[:, None] * C + i[None, :], inside) + _row(
        mixed, row[:, None] * C + i[None, :], inside
    )


@triton.jit
def join_norm(
    x, mixed, weight, bias, normed, n_tokens, eps,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, PROMPT: tl.constexpr, GRID: tl.constexpr,
    WINDOW: tl.constexpr, COUNT: tl.constexpr, ROLLED: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Windows added to the tokens x in place, and their LayerNorm.  # mixed (w, prompt + l, c); normed as x"""
    token, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    ok = i < C
    inside = (token < n_tokens)[:, None] & ok[None, :]
    values = _joined(x, mixed, token, i, inside, C, PROMPT, GRID, WINDOW, COUNT, ROLLED, BEFORE)
    out = _layer_norm(values, ok, _row(weight, i, ok), _row(bias, i, ok), eps, C)
    at = token.to(tl.int64)[:, None] * C + i[None, :]
    tl.store(x + at, values.to(x.dtype.element_ty), mask=inside)
    tl.store(normed + at, out.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def join_mlp(
    x, mixed, weight, bias, up, up_bias, down, down_bias, n_tokens, eps,
    C: tl.constexpr, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, PROMPT: tl.constexpr, GRID: tl.constexpr,
    WINDOW: tl.constexpr, COUNT: tl.constexpr, ROLLED: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Windows and then the MLP added to the tokens x in place.  # up (hidden, c), down (c, hidden)"""
    token, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    ok = i < C
    inside = (token < n_tokens)[:, None] & ok[None, :]
    values = _joined(x, mixed, token, i, inside, C, PROMPT, GRID, WINDOW, COUNT, ROLLED, BEFORE)
    normed = _layer_norm(values, ok, _row(weight, i, ok), _row(bias, i, ok), eps, C).to(up.dtype.element_ty)
    total = tl.zeros((ROWS, COLUMNS), tl.float32) + _row(down_bias, i, ok)[None, :]
    for first in range(0, HIDDEN, BLOCK):
        j = first + tl.arange(0, BLOCK)
        known = j < HIDDEN
        rising = tl.load(up + j[None, :] * C + i[:, None], mask=ok[:, None] & known[None, :], other=0)
        hidden = tl.dot(normed, rising, input_precision=PRECISION) + _row(up_bias, j, known)[None, :]
        falling = tl.load(down + i[None, :] * HIDDEN + j[:, None], mask=known[:, None] & ok[None, :], other=0)
        total = tl.dot(_gelu(hidden).to(falling.dtype), falling, total, input_precision=PRECISION)
    at = token.to(tl.int64)[:, None] * C + i[None, :]
    tl.store(x + at, (values + total).to(x.dtype.element_ty), mask=inside)


# --- the ends of a stage, in inference ------------------------------------------------------------------------------


@triton.jit
def embed_patches(
    clips, weight, bias, place, time, tokens, n_tokens,
    CHANNELS: tl.constexpr, IMAGE: tl.constexpr, PATCH: tl.constexpr, C: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Patches of clips (n, ch, X, Y, Z, T) times weight (c, voxels), with place (x, y, z, c) and time (t, c) added.

    Tokens run along the lanes, since neighbours in time lie side by side in the clip.
    """
    m, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    there, ok = m < n_tokens, i < C
    voxels: tl.constexpr = PATCH[0] * PATCH[1] * PATCH[2] * PATCH[3] * CHANNELS
    image: tl.constexpr = IMAGE[0] * IMAGE[1] * IMAGE[2] * IMAGE[3]
    frames: tl.constexpr = IMAGE[3] // PATCH[3]
    rest, stride = m, 1
    corner = m.to(tl.int64) * 0
    for axis in tl.static_range(3, -1, -1):
        corner += rest % (IMAGE[axis] // PATCH[axis]) * (PATCH[axis] * stride)
        rest = rest // (IMAGE[axis] // PATCH[axis])
        stride = stride * IMAGE[axis]
    corner += rest.to(tl.int64) * (CHANNELS * image)
    total = tl.zeros((COLUMNS, ROWS), tl.float32)
    for first in range(0, voxels, BLOCK):
        v = first + tl.arange(0, BLOCK)
        known = v < voxels
        offset, left, step = (v % CHANNELS) * image, v // CHANNELS, 1
        for axis in tl.static_range(3, -1, -1):
            offset += left % PATCH[axis] * step
            left = left // PATCH[axis]
            step = step * IMAGE[axis]
        factor = tl.load(weight + i[:, None] * voxels + v[None, :], mask=ok[:, None] & known[None, :], other=0)
        values = tl.load(clips + corner[None, :] + offset[:, None], mask=known[:, None] & there[None, :], other=0)
        total = tl.dot(factor, values.to(factor.dtype), total, input_precision=PRECISION)
    inside = ok[:, None] & there[None, :]
    in_clip = m % (image // (PATCH[0] * PATCH[1] * PATCH[2] * PATCH[3]))
    total += _row(bias, i, ok)[:, None] + _row(place, (in_clip // frames)[None, :] * C + i[:, None], inside)
    total += _row(time, (m % frames)[None, :] * C + i[:, None], inside)
    at = m.to(tl.int64)[None, :] * C + i[:, None]
    tl.store(tokens + at, total.to(tokens.dtype.element_ty), mask=inside)


@triton.jit
def merge_norm(
    x, weight, bias, merged, n_rows, eps,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, GRID: tl.constexpr,
):  # fmt: skip
    """LayerNorm of every 2 x 2 x 2 tokens as one row.  # x (n, x, y, z, t, c) -> merged (n x/2 y/2 z/2 t, 8 c)"""
    m, i = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    ok = i < 8 * C
    part, stride = i // C, GRID[3]
    token = (m % GRID[3])[:, None] + (i * 0)[None, :]
    rest = m // GRID[3]
    real = (m < n_rows)[:, None] & ok[None, :]
    for axis in tl.static_range(2, -1, -1):
        at = (rest % ((GRID[axis] + 1) // 2) * 2)[:, None] + (part % 2)[None, :]
        rest, part = rest // ((GRID[axis] + 1) // 2), part // 2
        real = real & (at < GRID[axis])  # an odd axis is filled with zeros at its end
        token += at * stride
        stride = stride * GRID[axis]
    token += (rest * stride)[:, None]
    values = _row(x, token.to(tl.int64) * C + (i % C)[None, :], real)
    out = _layer_norm(values, ok, _row(weight, i, ok), _row(bias, i, ok), eps, 8 * C)
    at = m.to(tl.int64)[:, None] * (8 * C) + i[None, :]
    tl.store(merged + at, out.to(merged.dtype.element_ty), mask=(m < n_rows)[:, None] & ok[None, :])
