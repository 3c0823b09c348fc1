"""Contrastive losses in cases whose value is known."""

from __future__ import annotations

import math

import pytest
import torch

from neurostorm_bids.model.contrastive import instance_loss, local_local_loss


def test_instance_loss_of_perfect_pairs():
    # each subject along an axis of its own: likeness 1 with its partner, 0 with the 2 n - 2 others
    views = torch.eye(5, dtype=torch.float64)
    for temperature in (0.1, 0.5, 1.0):
        expected = math.log(1 + 8 * math.exp(-1 / temperature))
        assert instance_loss(views, 3 * views, temperature).item() == pytest.approx(expected)


def test_instance_loss_of_a_collapsed_model():
    views = torch.ones(6, 4)
    assert instance_loss(views, views).item() == pytest.approx(math.log(11))


def test_instance_loss_by_its_equation():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)
    z = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    total = 0.0
    for i in range(8):
        partner = (i + 4) % 8
        shares = {j: math.exp(float(z[i] @ z[j]) / 0.2) for j in range(8) if j != i}
        total -= math.log(shares[partner] / sum(shares.values()))
    assert instance_loss(first, second, 0.2).item() == pytest.approx(total / 8)


def test_local_local_loss_compares_within_a_run_only():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 4, 5, generator=g)
    apart = torch.stack([instance_loss(a, b) for a, b in zip(first, second, strict=True)]).mean()
    assert local_local_loss(first, second).item() == pytest.approx(apart.item(), rel=1e-6)
    other = second.clone()
    other[2] += 1
    assert local_local_loss(first[:2], other[:2]).item() == local_local_loss(first[:2], second[:2]).item()


def test_losses_do_not_depend_on_order_or_length():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, 3, generator=g)
    order = torch.randperm(6, generator=g)
    loss = instance_loss(first, second).item()
    assert instance_loss(second, first).item() == pytest.approx(loss, rel=1e-6)
    assert instance_loss(first[order], second[order]).item() == pytest.approx(loss, rel=1e-6)
    assert instance_loss(7 * first, second / 3).item() == pytest.approx(loss, rel=1e-6)
    assert instance_loss(first[order], second).item() != pytest.approx(loss, rel=1e-3)


def test_descent_brings_partners_together_and_others_apart():
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 8, generator=g).requires_grad_() for _ in range(2))
    optimiser = torch.optim.Adam([first, second], lr=0.1)
    for _ in range(100):
        loss = instance_loss(first, second)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (first, second))
    likeness = a @ b.T
    assert likeness.diagonal().min() > 0.8
    assert likeness.detach().fill_diagonal_(-1).max() < 0.3


def test_nan_stays_nan():
    views = torch.eye(3)
    views[0, 0] = torch.nan
    assert instance_loss(views, torch.eye(3)).isnan()


@pytest.mark.parametrize(
    ("loss", "first", "second", "message"),
    [
        (instance_loss, (1, 4), (1, 4), r"views of \(1, 4\) and \(1, 4\); expected both \(2 or more, size\)"),
        (instance_loss, (3, 4), (2, 4), r"views of \(3, 4\) and \(2, 4\)"),
        (local_local_loss, (3, 4), (3, 4), r"expected both \(runs, 2 or more clips, size\)"),
        (local_local_loss, (3, 1, 4), (3, 1, 4), r"expected both \(runs, 2 or more clips, size\)"),
    ],
)
def test_unfit_views_are_refused(loss, first, second, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.ones(first), torch.ones(second))


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(ValueError, match="temperature is 0"):
        instance_loss(torch.eye(2), torch.eye(2), temperature=0)
