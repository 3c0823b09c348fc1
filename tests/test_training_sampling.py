"""Sampling over datasets: people alike, datasets alike or by their loss, the same whenever it is asked again."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurostorm_bids.training.sampling import LossOrder, PersonOrder, apportioned

# 30 people with 2 samples each, 10 people with 12 each
PEOPLE = [("small", f"{n:02d}") for n in range(30) for _ in range(2)]
PEOPLE += [("long", f"{n:02d}") for n in range(10) for _ in range(12)]


def of_people(order) -> Counter:
    return Counter(PEOPLE[sample] for sample in order)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=12), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_people_come_equally_often_and_samples_are_not_repeated_needlessly(counts, seed, epoch):
    people = [(f"d{number % 2}", str(number)) for number, count in enumerate(counts) for _ in range(count)]
    order = PersonOrder(people, seed)(epoch)
    assert len(order) == len(people)
    seen = Counter(people[sample] for sample in order)
    assert max(seen.values()) - min(seen[person] for person in people) <= 1
    for sample, times in Counter(order.tolist()).items():
        assert times <= -(-seen[people[sample]] // people.count(people[sample]))


def test_long_runs_do_not_count_more():
    assert set(of_people(PersonOrder(PEOPLE, 0)(0)).values()) == {4, 5}


def test_orders_follow_from_seed_and_epoch_alone():
    order = PersonOrder(PEOPLE, 3)
    again = [order(2).tolist(), PersonOrder(PEOPLE, 3)(2).tolist()]
    assert again[0] == again[1]
    assert order(1).tolist() != order(2).tolist() != PersonOrder(PEOPLE, 4)(2).tolist()


def test_datasets_come_in_proportion_to_their_loss():
    order = LossOrder(PEOPLE, 0, lambda: {"small": 0.3, "long": 0.9})(1)
    datasets = Counter(PEOPLE[sample][0] for sample in order)
    assert datasets == {"small": 45, "long": 135}
    seen = of_people(order)
    assert {seen[("long", f"{n:02d}")] for n in range(10)} == {13, 14}
    first_half = Counter(PEOPLE[sample][0] for sample in order[:90])
    assert 10 < first_half["small"] < 35  # mixed, not one after the other


def test_without_losses_people_count_alike():
    unknown = LossOrder(PEOPLE, 0, dict)
    np.testing.assert_array_equal(unknown(0), PersonOrder(PEOPLE, 0)(0))


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.integers(0, 500))
def test_shares_add_up_and_are_off_by_less_than_one(weights, total):
    counts = apportioned(np.array(weights), total)
    assert counts.sum() == total
    assert (np.abs(counts - np.array(weights) / sum(weights) * total) < 1 + 1e-6).all()
