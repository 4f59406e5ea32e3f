"""Named tuples lent by their address: read and written as those that are handed on by value."""

import sys
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

from airserve.network.jit import inner, njit
from airserve.network.lending import lend, owned

PLACE = np.dtype([("count", "i8"), ("weight", "f8")], align=True)


class Part(NamedTuple):
    weight: float
    known: bool
    grid: Any  # float32 (2, 3)


class Whole(NamedTuple):
    place: Any  # PLACE
    pair: tuple[int, int]
    part: Part
    size: int


def made():
    part = Part(0.5, True, np.arange(6, dtype=np.float32).reshape(2, 3))
    return Whole(np.zeros(3, PLACE), (10, 20), part, 3)


@inner
def count(whole, i):
    """Uses an array of records, a plain tuple, a tuple within and what that holds."""
    one = whole.place[i % whole.size]
    one.count += whole.pair[i % 2]
    weigh(one, whole.part)


@inner
def weigh(one, part):
    if part.known:
        one.weight += part.weight * part.grid[1, 2] * part.grid.shape[1]


@inner
def remade(whole):
    return Whole(whole.place[1:], whole.pair, owned(whole.part), whole.size - 1)


@inner
def count_rest_by_address(whole, i):
    count(lend(remade(whole)), i)


@inner
def count_rest_by_value(whole, i):
    count(remade(whole), i)


@njit
def by_address(whole, times):
    lent = lend(whole)
    for i in range(times):
        count(lent, i)
        count_rest_by_address(lent, i)


@njit
def by_value(whole, times):
    for i in range(times):
        count(whole, i)
        count_rest_by_value(whole, i)


def test_what_is_lent_is_read_and_written_as_by_value():
    lent, plain = made(), made()
    owners = [sys.getrefcount(one) for one in (lent.place, lent.part.grid)]
    by_address(lent, 101)
    by_value(plain, 101)
    assert (lent.place == plain.place).all()
    assert lent.place["count"].sum() == 2 * (51 * 10 + 50 * 20)
    assert lent.place["weight"].sum() == 202 * 0.5 * 5 * 3
    assert [sys.getrefcount(one) for one in (lent.place, lent.part.grid)] == owners


def test_what_is_not_there_is_named():
    @numba.njit
    def wrong(whole):
        return lend(whole).length

    with pytest.raises(numba.TypingError, match="Unknown attribute 'length' of type LentWhole"):
        wrong(made())
