"""Kernels of the Triton backend: the scan, and the Mamba layer between its outer projections.

All arithmetic is float32, whatever the tensors hold; letters as in `neurostorm_bids.model`.

A program of a scan owns one window and a block of channels. Its state is a tile (s, d): with channels across the lanes
of one warp and states in each lane's registers, sums over states need no exchange between lanes, and the B and C of a
token are the same for all lanes. Padded states and channels are zero throughout.
"""

# ruff: noqa: RUF005
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


# --- functions of one number ------------------------------------------------------------------------------------


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(-x * LOG2E))


@triton.jit
def _softplus(x):
    """max(x, 0) + log1p(e), e = exp(-|x|), with log1p(e) = 2 artanh(e / (2 + e)): small steps keep their digits."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    r = e / (2 + e)  # at most 1/3, so that the series ends early
    q = r * r
    series = 1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15)))
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
    return tl.maximum(x, 0) + 2 * r * series


# --- one token of the recurrence --------------------------------------------------------------------------------


@triton.jit
def _advance(h, step, u, rates, b):
    """h[t] of h[t - 1]; ``rates`` are A log2(e).  # (s, d), (d,), (d,), (s, d), (s,) -> (s, d)"""
    return tl.exp2(step[None, :] * rates) * h + (step * u)[None, :] * b[:, None]


@triton.jit
def _row(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0).to(tl.float32)


@triton.jit
def _while(condition, i, n):
    """Mask of the first n, or of none.  # scalar, (d,), scalar -> (d,)"""
    return i < tl.where(condition, n, 0)


# --- the scan alone ---------------------------------------------------------------------------------------------


@triton.jit
def scan_forward(
    u, delta, rates, b, c, skip, z, bias, y,
    length, channels,
    u_window, u_token, delta_window, delta_token, b_window, b_token, c_window, c_token, z_window, z_token,
    STATES: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Softplus, scan, skip and gate.

    u, delta, z, y are (w, l, d), b, c (w, l, s) with the last axis contiguous, rates (s, d), skip, bias (d,).
    z and bias may be None.
    """
    window = tl.program_id(0).to(tl.int64)
    i, s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, S)
    ok, known = i < channels, s < STATES
    u, delta, y = u + window * u_window, delta + window * delta_window, y + window * length * channels
    b, c = b + window * b_window, c + window * c_window
    rate = _row(rates, s[:, None] * channels + i[None, :], known[:, None] & ok[None, :]) * LOG2E  # (s, d)
    passed = _row(skip, i, ok)
    shift = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        shift = _row(bias, i, ok)
    if z is not None:
        z += window * z_window
    h = tl.zeros((S, BLOCK), tl.float32)
    for first in range(0, length, UNROLL):
        for k in tl.static_range(UNROLL):
            t = first + k
            here, there = _while(t < length, i, channels), _while(t < length, s, STATES)
            u_t = _row(u + t * u_token, i, here)
            step = _softplus(_row(delta + t * delta_token, i, here) + shift)
            h = _advance(h, step, u_t, rate, _row(b + t * b_token, s, there))
            y_t = tl.sum(h * _row(c + t * c_token, s, there)[:, None], 0) + passed * u_t
            if z is not None:
                z_t = _row(z + t * z_token, i, here)
                y_t *= z_t * _sigmoid(z_t)
            tl.store(y + t * channels + i, y_t.to(y.dtype.element_ty), mask=here)


@triton.jit
def _replay(
    h, u, delta, b, rate, shift, first, length, i, channels, s, u_token, delta_token, b_token,
    STATES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The state h before the token ``first``, and those after it and its successors."""
    states = (h,)
    for k in tl.static_range(CHUNK):
        t = first + k
        here, there = _while(t < length, i, channels), _while(t < length, s, STATES)
        step = _softplus(_row(delta + t * delta_token, i, here) + shift)
        h = _advance(h, step, _row(u + t * u_token, i, here), rate, _row(b + t * b_token, s, there))
        states = states + (h,)
    return states


@triton.jit
def scan_starts(
    u, delta, rates, b, bias, starts, length, channels,
    u_window, u_token, delta_window, delta_token, b_window, b_token,
    STATES: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The states before each chunk of tokens.  # starts (w, chunks, s, d)"""
    window = tl.program_id(0).to(tl.int64)
    i, s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, S)
    ok = i < channels
    tile, in_tile = s[:, None] * channels + i[None, :], (s < STATES)[:, None] & ok[None, :]
    u, delta, b = u + window * u_window, delta + window * delta_window, b + window * b_window
    n_chunks = tl.cdiv(length, CHUNK)
    starts += window * n_chunks * STATES * channels
    rate = _row(rates, tile, in_tile) * LOG2E  # (s, d)
    shift = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        shift = _row(bias, i, ok)
    h = tl.zeros((S, BLOCK), tl.float32)
    for chunk in range(n_chunks):
        tl.store(starts + chunk * STATES * channels + tile, h, mask=in_tile)
        first = chunk * CHUNK
        states = _replay(
            h, u, delta, b, rate, shift, first, length, i, channels, s, u_token, delta_token, b_token, STATES, CHUNK
        )
        h = states[CHUNK]


@triton.jit
def scan_backward(
    grad_y, u, delta, rates, b, c, skip, z, bias, starts,
    grad_u, grad_delta, grad_rates, grad_b, grad_c, grad_skip, grad_z, grad_bias,
    length, channels,
    u_window, u_token, delta_window, delta_token, b_window, b_token, c_window, c_token, z_window, z_token,
    grad_z_window, grad_z_token,
    STATES: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of `scan_forward`; states are computed again, a chunk at a time, from those of `scan_starts`.

    Sums over windows and channels are left to the caller, in a fixed order: grad_rates (w, s, d), grad_skip and
    grad_bias (w, d), grad_b and grad_c (channel blocks, w, l, s).
    """
    window = tl.program_id(0).to(tl.int64)
    i, s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, S)
    ok = i < channels
    tile, in_tile = s[:, None] * channels + i[None, :], (s < STATES)[:, None] & ok[None, :]
    u, delta, grad_y = u + window * u_window, delta + window * delta_window, grad_y + window * length * channels
    b, c = b + window * b_window, c + window * c_window
    n_chunks = tl.cdiv(length, CHUNK)
    starts += window * n_chunks * STATES * channels
    rate = _row(rates, tile, in_tile) * LOG2E  # (s, d)
    passed = _row(skip, i, ok)
    shift = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        shift = _row(bias, i, ok)
    if z is not None:
        z, grad_z = z + window * z_window, grad_z + window * grad_z_window
    partial = (tl.program_id(1) * tl.num_programs(0) + window) * length * STATES
    grad_b, grad_c = grad_b + partial, grad_c + partial
    grad_u, grad_delta = grad_u + window * length * channels, grad_delta + window * length * channels
    of_rates, of_state = tl.zeros((S, BLOCK), tl.float32), tl.zeros((S, BLOCK), tl.float32)
    of_skip, of_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for back in range(n_chunks):
        chunk = n_chunks - 1 - back
        h = _row(starts + chunk * STATES * channels, tile, in_tile)
        first = chunk * CHUNK
        states = _replay(
            h, u, delta, b, rate, shift, first, length, i, channels, s, u_token, delta_token, b_token, STATES, CHUNK
        )
        for k in tl.static_range(CHUNK - 1, -1, -1):
            t = first + k
            here, there = _while(t < length, i, channels), _while(t < length, s, STATES)
            u_t = _row(u + t * u_token, i, here)
            raw = _row(delta + t * delta_token, i, here) + shift
            step = _softplus(raw)
            b_t, c_t = _row(b + t * b_token, s, there), _row(c + t * c_token, s, there)
            grad_v = _row(grad_y + t * channels, i, here)
            if z is not None:
                z_t = _row(z + t * z_token, i, here)
                open_ = _sigmoid(z_t)
                v = tl.sum(states[k + 1] * c_t[:, None], 0) + passed * u_t
                of_z = grad_v * v * open_ * (1 + z_t * (1 - open_))
                tl.store(grad_z + t * grad_z_token + i, of_z.to(grad_z.dtype.element_ty), mask=here)
                grad_v *= z_t * open_
            of_skip += grad_v * u_t
            of_state += grad_v[None, :] * c_t[:, None]
            tl.store(grad_c + t * STATES + s, tl.sum(states[k + 1] * grad_v[None, :], 1), mask=there)
            tl.store(grad_b + t * STATES + s, tl.sum(of_state * (step * u_t)[None, :], 1), mask=there)
            of_drive = tl.sum(of_state * b_t[:, None], 0)  # (d,): of step times u
            of_state *= tl.exp2(step[None, :] * rate)
            of_exponent = of_state * states[k]  # (s, d): of step times A
            of_rates += of_exponent * step[None, :]
            of_step = of_drive * u_t + tl.sum(of_exponent * rate, 0) / LOG2E
            of_delta = tl.where(here, of_step * _sigmoid(raw), 0)
            of_bias += of_delta
            tl.store(grad_delta + t * channels + i, of_delta.to(grad_delta.dtype.element_ty), mask=here)
            of_u = grad_v * passed + of_drive * step
            tl.store(grad_u + t * channels + i, of_u.to(grad_u.dtype.element_ty), mask=here)
    tl.store(grad_rates + window * STATES * channels + tile, of_rates, mask=in_tile)
    tl.store(grad_skip + window * channels + i, of_skip, mask=ok)
    if bias is not None:
        tl.store(grad_bias + window * channels + i, of_bias, mask=ok)


# --- the Mamba layer between its outer projections ------------------------------------------------------------------
#
# x (before its convolution) and z are the halves of what the input projection gives. B, C and the low-rank step depend
# on all channels of the convolved x, so a product over channels stands between convolution and scan: `project`
# convolves and multiplies, `mix_forward` convolves once more, token by token, and scans. The convolved x is never in
# memory.


@triton.jit
def _convolved(x, weight, bias, t, i, ok, length, x_token, TAPS: tl.constexpr):
    """Causal depthwise convolution, before its SiLU, of a tile of tokens and channels.  # (t,), (d,) -> (t, d)"""
    total = tl.zeros((t.shape[0], i.shape[0]), tl.float32) + _row(bias, i, ok)[None, :]
    for k in tl.static_range(TAPS):
        source = t + (k - (TAPS - 1))
        inside = ((source >= 0) & (t < length))[:, None] & ok[None, :]
        total += _row(x, source[:, None] * x_token + i[None, :], inside) * _row(weight, i * TAPS + k, ok)[None, :]
    return total


@triton.jit
def convolve(
    x, weight, bias, u, length, channels, x_window, x_token,
    TAPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Convolution and SiLU.  # x (w, l, d), weight (d, taps), bias (d,) -> u (w, l, d)"""
    window = tl.program_id(0).to(tl.int64)
    t, i = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    ok = i < channels
    pre = _convolved(x + window * x_window, weight, bias, t, i, ok, length, x_token, TAPS)
    at = t[:, None] * channels + i[None, :]
    here = (t < length)[:, None] & ok[None, :]
    tl.store(u + window * length * channels + at, (pre * _sigmoid(pre)).to(u.dtype.element_ty), mask=here)


@triton.jit
def project(
    x, conv_weight, conv_bias, weight, rows, length, channels, x_window, x_token, row,
    RANK: tl.constexpr, STATES: tl.constexpr, TAPS: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Convolution, SiLU and the projection to B, C and the low-rank step.

    weight (r + 2 s, d) as in the layer; rows (w, l, row) hold B, C, the step and zeros, so that B and C of a token lie
    at multiples of 16 numbers.
    """
    window = tl.program_id(0).to(tl.int64)
    t, n = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.arange(0, COLUMNS)
    known = n < RANK + 2 * STATES
    source = tl.where(n < 2 * STATES, n + RANK, n - 2 * STATES)
    x += window * x_window
    total = tl.zeros((TILE, COLUMNS), tl.float32)
    for first in range(0, channels, BLOCK):
        i = first + tl.arange(0, BLOCK)
        ok = i < channels
        pre = _convolved(x, conv_weight, conv_bias, t, i, ok, length, x_token, TAPS)
        factor = tl.load(weight + source[None, :] * channels + i[:, None], mask=known[None, :] & ok[:, None], other=0)
        total = tl.dot((pre * _sigmoid(pre)).to(factor.dtype), factor, total, input_precision=PRECISION)
    at = t[:, None] * row + n[None, :]
    here = (t < length)[:, None] & (n < row)[None, :]
    tl.store(rows + window * length * row + at, total.to(rows.dtype.element_ty), mask=here)


@triton.jit
def mix_forward(
    x, z, conv_weight, conv_bias, rows, dt_weight, dt_bias, rates, skip, y,
    length, channels, x_window, x_token, row,
    RANK: tl.constexpr, R: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, TAPS: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Convolution, SiLU, step projection, softplus, scan, skip and gate.

    x, z (w, l, d) with the same strides, rows (w, l, row) of `project`, dt_weight (r, d), rates (s, d); y (w, l, d).
    """
    window = tl.program_id(0).to(tl.int64)
    i, s, r = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, S), tl.arange(0, R)
    ok, known, ranked = i < channels, s < STATES, r < RANK
    x, z = x + window * x_window, z + window * x_window
    rows, y = rows + window * length * row, y + window * length * channels
    rate = _row(rates, s[:, None] * channels + i[None, :], known[:, None] & ok[None, :]) * LOG2E  # (s, d)
    raise_ = _row(dt_weight, r[:, None] * channels + i[None, :], ranked[:, None] & ok[None, :])  # (r, d)
    passed, shift, offset = _row(skip, i, ok), _row(dt_bias, i, ok), _row(conv_bias, i, ok)
    taps, past = (), ()
    for k in tl.static_range(TAPS):
        taps = taps + (_row(conv_weight, i * TAPS + k, ok),)
        if k < TAPS - 1:
            past = past + (tl.zeros((BLOCK,), tl.float32),)
    h = tl.zeros((S, BLOCK), tl.float32)
    for first in range(0, length, UNROLL):
        for k in tl.static_range(UNROLL):
            t = first + k
            inside = t < length
            here, there = _while(inside, i, channels), _while(inside, s, STATES)
            x_t = _row(x + t * x_token, i, here)
            u_t = offset + x_t * taps[TAPS - 1]
            moved = ()
            for j in tl.static_range(TAPS - 1):
                u_t += past[j] * taps[j]
                if j > 0:
                    moved = moved + (past[j],)
            past = moved + (x_t,)
            u_t *= _sigmoid(u_t)
            token = rows + t * row
            low = _row(token + 2 * STATES, r, _while(inside, r, RANK))
            step = _softplus(tl.sum(raise_ * low[:, None], 0) + shift)
            h = _advance(h, step, u_t, rate, _row(token, s, there))
            z_t = _row(z + t * x_token, i, here)
            y_t = tl.sum(h * _row(token + STATES, s, there)[:, None], 0) + passed * u_t
            y_t *= z_t * _sigmoid(z_t)
            tl.store(y + t * channels + i, y_t.to(y.dtype.element_ty), mask=here)


@triton.jit
def convolve_backward(
    grad_u, x, weight, bias, grad_x, grad_weight, grad_bias,
    length, channels, x_window, x_token, grad_x_token, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of `convolve`, from the last token back; of each window grad_weight (w, taps, d), grad_bias (w, d)."""
    window = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = i < channels
    grad_u, x = grad_u + window * length * channels, x + window * x_window
    grad_x += window * length * grad_x_token
    taps, seen, later, of_taps = (), (), (), ()
    for k in tl.static_range(TAPS):  # seen: x[t - taps + 1 + k]; later: gradient before the SiLU at t + 1 + k
        taps = taps + (_row(weight, i * TAPS + k, ok),)
        of_taps = of_taps + (tl.zeros((BLOCK,), tl.float32),)
        source = length - TAPS + k
        seen = seen + (_row(x + source * x_token, i, _while(source >= 0, i, channels)),)
        if k < TAPS - 1:
            later = later + (tl.zeros((BLOCK,), tl.float32),)
    offset, of_bias = _row(bias, i, ok), tl.zeros((BLOCK,), tl.float32)
    for back in range(length):
        t = length - 1 - back
        pre = offset
        for k in tl.static_range(TAPS):
            pre += seen[k] * taps[k]
        open_ = _sigmoid(pre)
        grad = _row(grad_u + t * channels, i, ok) * open_ * (1 + pre * (1 - open_))
        of_bias += grad
        source = t - TAPS
        before = (_row(x + source * x_token, i, _while(source >= 0, i, channels)),)
        after, summed = (grad,), ()
        of_x = grad * taps[TAPS - 1]
        for k in tl.static_range(TAPS):
            summed = summed + (of_taps[k] + grad * seen[k],)
            if k < TAPS - 1:
                before = before + (seen[k],)
                of_x += later[k] * taps[TAPS - 2 - k]
                if k < TAPS - 2:
                    after = after + (later[k],)
        seen, later, of_taps = before, after, summed
        tl.store(grad_x + t * grad_x_token + i, of_x.to(grad_x.dtype.element_ty), mask=ok)
    for k in tl.static_range(TAPS):
        tl.store(grad_weight + (window * TAPS + k) * channels + i, of_taps[k], mask=ok)
    tl.store(grad_bias + window * channels + i, of_bias, mask=ok)
