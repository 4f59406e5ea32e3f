"""Every candidate, the cheapest first: refused by its bound, by a cheaper one that dominates it, or by the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

C = TypeVar("C")
V = TypeVar("V")


def choose(
    candidates: Sequence[C],
    *,
    cost: Callable[[C], float],
    bound_ms: Callable[[C], float],
    promise_ms: float,
    judge: Callable[[C], V],
    keeps: Callable[[V], bool],
    accepted: Callable[[C], bool],
    dominates: Callable[[C, C], bool],
) -> tuple[C | None, dict[int, V]]:
    """The cheapest candidate that keeps its promise, or None; and what the judge said, by place in `candidates`.

    A candidate is not judged when its lower bound misses the promise, or when one that was refused by the judge
    asks no more of anything. `accepted` is asked last, for it may be slow: the score. Ties go to the lower bound.

    >>> cost, ms = {"a": 1, "b": 2, "c": 3}, {"a": 9, "b": 4, "c": 1}
    >>> choose("abc", cost=cost.get, bound_ms=lambda c: 0, promise_ms=5, judge=ms.get, keeps=lambda v: v <= 5,
    ...        accepted=lambda c: True, dominates=lambda a, b: False)
    ('b', {0: 9, 1: 4})
    """
    bounds = [bound_ms(one) for one in candidates]
    order = sorted(range(len(candidates)), key=lambda i: (cost(candidates[i]), bounds[i], i))
    said: dict[int, V] = {}
    missed: list[C] = []
    for i in order:
        one = candidates[i]
        if bounds[i] > promise_ms or any(dominates(worse, one) for worse in missed):
            continue
        said[i] = judge(one)
        if not keeps(said[i]):
            missed.append(one)
        elif accepted(one):
            return one, said
    return None, said
