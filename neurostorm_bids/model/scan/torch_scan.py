"""The selective scan in plain torch: step by step as the yardstick, and vectorised over windows for use.

Both take and return token-major tensors (w, l, d); see `neurostorm_bids.model.scan.selective_scan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neurostorm_bids.model.scan import Backend, Scan

NUMBERS_AT_ONCE = 2**19  # of decays; 2 MB in float32
CHUNK = 16  # steps whose states the backward keeps at a time; about the root of 256, which makes memory smallest

# step, u, A, B, C -> y, without skip and gate
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _scan_with(recurrence: Recurrence) -> Scan:
    """Add to a recurrence what all of them share: softplus, skip and gate."""

    def scan(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        *,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
    ) -> Tensor:
        # A decays as exp(step A) over hundreds of steps: half precision inputs are scanned in A's precision
        u, delta, B, C = (tensor.to(A.dtype) for tensor in (u, delta, B, C))
        step = F.softplus(delta if delta_bias is None else delta + delta_bias)  # (w, l, d)
        y = torch.addcmul(recurrence(step, u, A, B, C), u, D)  # (w, l, d)
        return y if z is None else y * F.silu(z)

    return scan


def sequential(step: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence as published, one token after another; autograd does its backward.

    Channels come first and all decays are made at once, as in the published plain implementation: it is also what
    speed is measured against.
    """
    step, u = step.transpose(1, 2), u.transpose(1, 2)  # (w, d, l)
    decay = torch.exp(torch.einsum("wdl,ds->wdls", step, A))  # (w, d, l, s)
    drive = torch.einsum("wdl,wls,wdl->wdls", step, B, u)  # (w, d, l, s)
    state = torch.zeros_like(decay[:, :, 0])  # (w, d, s)
    outputs = []
    for token in range(u.shape[2]):
        state = decay[:, :, token] * state + drive[:, :, token]
        outputs.append(torch.einsum("wds,ws->wd", state, C[:, token]))
    return torch.stack(outputs, dim=2).transpose(1, 2)  # (w, l, d)


def vectorised(step: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The same recurrence over all windows, states and channels at once, in place, in cache.

    No state but the current one is ever in memory, and no exponential but exp(step A) <= 1 is taken, so nothing
    overflows at any length (a scan by cumulative sums would divide by exponentials that vanish).
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (step, u, A, B, C)):
        return _Vectorised.apply(step, u, A, B, C)
    return _forward(step, u, A, B, C)[0]


def _forward(
    step: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Outputs (w, l, d), and if kept the state (w, s, d) before every chunk."""
    windows, length, channels = u.shape
    rates = halving_rates(A)  # (s, d)
    steps, drives, Bs, Cs = map(_token_first, (step, step * u, B, C))  # (l, w, d | s)
    state = u.new_zeros(windows, len(rates), channels)  # (w, s, d): channels last, each pass is over contiguous rows
    at_once = tokens_at_once(state.numel())
    buffers = state.new_empty(2, at_once, *state.shape)  # two: the last state of a part is needed in the next
    y = u.new_empty(length, windows, channels)
    starts = []
    for part, first in enumerate(range(0, length, at_once)):
        tokens = slice(first, first + at_once)
        states = buffers[part % 2, : len(steps[tokens])]  # (tokens, w, s, d), at first their decays
        torch.mul(steps[tokens].unsqueeze(2), rates, out=states).exp2_()
        rows = states.unbind(), drives[tokens].unsqueeze(2).unbind(), Bs[tokens].unsqueeze(3).unbind()
        for token, (now, drive, B_t) in enumerate(zip(*rows, strict=True), start=first):
            if keep and token % CHUNK == 0:
                starts.append(state.clone())
            state = now.mul_(state).addcmul_(drive, B_t)
        torch.matmul(Cs[tokens].unsqueeze(2), states, out=y[tokens].unsqueeze(2))
    return y.transpose(0, 1), starts


def tokens_at_once(numbers: int) -> int:
    """Tokens whose decays are made in one pass: many of small states (fewer calls), few of large ones (less memory)."""
    return max(1, min(CHUNK, NUMBERS_AT_ONCE // max(numbers, 1)))


def halving_rates(A: Tensor) -> Tensor:
    """A in powers of two, states first: exp(step A) = 2 ** (step rate).  # (d, s) -> (s, d)

    On CPUs torch's exp2 takes a third of the time of its exp, at the same precision.
    """
    return (A.t() * math.log2(math.e)).contiguous()


def _token_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous()  # (w, l, .) -> (l, w, .)


class _Vectorised(torch.autograd.Function):
    """Keeps the state before every chunk of tokens and recomputes the states inside it in the backward."""

    @staticmethod
    def forward(ctx, step: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        y, starts = _forward(step, u, A, B, C, keep=True)
        ctx.save_for_backward(step, u, A, B, C, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor, ...]:
        step, u, A, B, C, *starts = ctx.saved_tensors
        return _backward(grad_y, step, u, A, B, C, starts)


def _backward(
    grad_y: Tensor, step: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of step, u, A, B, C by the adjoint recurrence, chunk by chunk from the end."""
    rates, halvings = A.t().contiguous(), halving_rates(A)  # (s, d)
    steps, us, Bs, Cs, grad_ys = map(_token_first, (step, u, B, C, grad_y))  # (l, w, d | s)
    drives = steps * us  # (l, w, d)
    grad_steps, grad_drives, grad_Bs, grad_Cs = map(torch.empty_like, (steps, drives, Bs, Cs))
    grad_rates = torch.zeros_like(starts[0]) if starts else rates.new_zeros(0, *rates.shape)  # (w, s, d)
    grad_state = torch.zeros_like(grad_rates)
    for chunk, start in reversed(list(enumerate(starts))):
        at = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        decays, states = _recompute(steps[at], drives[at], halvings, Bs[at], start)
        grads = torch.empty_like(decays)  # (l, w, s, d): of each state
        for token in range(len(decays) - 1, -1, -1):
            grad_state.addcmul_(grad_ys[at][token].unsqueeze(1), Cs[at][token].unsqueeze(2))
            grads[token] = grad_state
            grad_state.mul_(decays[token])
        grad_Cs[at] = (states[1:] @ grad_ys[at].unsqueeze(3)).squeeze(3)
        grad_Bs[at] = (grads @ drives[at].unsqueeze(3)).squeeze(3)
        grad_drives[at] = (Bs[at].unsqueeze(2) @ grads).squeeze(2)
        grad_exponents = grads.mul_(states[:-1]).mul_(decays)  # (l, w, s, d)
        grad_rates += (grad_exponents * steps[at].unsqueeze(2)).sum(0)
        grad_steps[at] = (grad_exponents.mul_(rates)).sum(2)
    grad_steps.addcmul_(grad_drives, us)
    token_last = [_token_first(grad) for grad in (grad_steps, grad_drives.mul_(steps), grad_Bs, grad_Cs)]
    return token_last[0], token_last[1], grad_rates.sum(0).t(), token_last[2], token_last[3]


def _recompute(steps: Tensor, drives: Tensor, halvings: Tensor, Bs: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Decays (l, w, s, d) of a chunk, and its states (l + 1, w, s, d) with the one before it."""
    decays = (steps.unsqueeze(2) * halvings).exp2_()
    states = start.new_empty(len(steps) + 1, *start.shape)
    states[0] = start
    for token, decay in enumerate(decays):
        torch.mul(states[token], decay, out=states[token + 1])
        states[token + 1].addcmul_(drives[token].unsqueeze(1), Bs[token].unsqueeze(2))
    return decays, states


REFERENCE = Backend("torch-reference", _scan_with(sequential))
VECTORISED = Backend("torch", _scan_with(vectorised))
