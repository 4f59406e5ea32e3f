"""How many requests may be sent again: a budget, so that a site in trouble is not asked ever more.

A token bucket as in Finagle's RetryBudget and gRPC's retry throttling (proposal A6): each request pays in a tenth,
each retry takes one out.
"""

from __future__ import annotations

from typing import final

UNIT = 1_000_000  # of a token: whole numbers, for a sum of tenths drifts


@final
class Budget:
    """At most `reserve` retries and `ratio` of the requests, whatever happens.

    The reserve is what may be sent again at once, when a site dies with so many requests under way; it fills up anew.

    >>> budget = Budget(ratio=0.5, reserve=1)
    >>> budget.take(), budget.take()
    (True, False)
    >>> budget.earn(), budget.earn(), budget.take()
    (None, None, True)
    """

    def __init__(self, ratio: float = 0.1, reserve: int = 100) -> None:
        self._earned, self._most = int(ratio * UNIT), reserve * UNIT
        self._tokens = self._most

    def earn(self) -> None:
        """A request came that is not a retry."""
        self._tokens = min(self._tokens + self._earned, self._most)

    def take(self) -> bool:
        """Whether one more retry may be made; where it may, it is paid for."""
        if self._tokens < UNIT:
            return False
        self._tokens -= UNIT
        return True
