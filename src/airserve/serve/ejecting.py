"""Whether a place is asked: out at the first sign of death, back when a probe proves it alive.

Outlier ejection as proxies do it (Envoy), with one difference: a lost connection ejects at once and is followed by a
probe at once, so that a place that only lost a worker is back within milliseconds.
"""

from __future__ import annotations

from typing import final

PROBE_EVERY_S = 0.25  # while nothing else proves a place alive
PROBE_WITHIN_S = 0.3
MISSES = 2  # probes in a row without an answer: a place that hangs is out within EVERY + MISSES * WITHIN = 0.85 s
HOLD_S, HOLD_MOST_S = 0.25, 5.0


@final
class Health:
    """What is known of one place. It holds no clock: times come in, in seconds.

    A place that passes its probes and then fails what it is asked stays out for longer each time, until it answers a
    request.

    >>> health = Health()
    >>> health.failed(now_s=1.0), health.out, health.probed(now_s=1.1), health.out
    (True, True, True, False)
    """

    def __init__(self) -> None:
        self.out = False
        self._until_s = 0.0  # it stays out at least so long
        self._vain = 0  # times that it was taken out since it last answered a request
        self._misses = 0

    def failed(self, now_s: float) -> bool:
        """It refused or lost a connection, or answered nonsense: out. Returns whether it was in."""
        if self.out:
            return False
        self.out = True
        self._vain += 1
        hold_s = HOLD_S * 2.0 ** min(self._vain - 2, 10) if self._vain > 1 else 0.0
        self._until_s = now_s + min(hold_s, HOLD_MOST_S)
        return True

    def missed(self, now_s: float) -> bool:
        """A probe was not answered in time: out at the second in a row. Returns whether it has gone out by this."""
        self._misses += 1
        return self._misses >= MISSES and self.failed(now_s)

    def probed(self, now_s: float) -> bool:
        """A probe was answered. Returns whether it has come back by this."""
        self._misses = 0
        if not self.out or now_s < self._until_s:
            return False
        self.out = False
        return True

    def answered(self) -> None:
        """A request was answered. One that was under way when the place went out does not bring it back."""
        self._misses = 0
        self._vain = 0
