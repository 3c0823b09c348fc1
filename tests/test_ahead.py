"""Drawing ahead changes neither items nor errors, and stays one item ahead."""

from __future__ import annotations

import threading

import pytest

from neurostorm_bids.ahead import ahead


def test_items_and_order_are_kept():
    assert list(ahead(range(1, 6))) == [1, 2, 3, 4, 5]
    assert list(ahead([])) == []


def test_an_error_comes_in_its_place():
    def items():
        yield 1
        raise ValueError("the second")

    drawn = ahead(items())
    assert next(drawn) == 1
    with pytest.raises(ValueError, match="the second"):
        next(drawn)


def test_the_next_item_is_made_while_the_first_is_held_and_no_more():
    made, second = [], threading.Event()

    def items():
        for number in range(1, 10):
            made.append(number)
            if number == 2:
                second.set()
            yield number

    drawn = ahead(items())
    next(drawn)
    assert second.wait(5)
    drawn.close()
    assert made in ([1, 2], [1, 2, 3])
