"""What language models have done: tokens, the time to the first, who runs and waits; one table for all workers."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple, final

import numpy as np

from airserve.model import Array

FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # buckets of the time to the first token
PROMPT, GENERATED, RUNNING, WAITING, FIRST, BUCKET = 0, 1, 2, 3, 4, 5
CELLS = BUCKET + len(FIRST_S) + 1


class Tallied(NamedTuple):
    """What was counted of one model since the service began, and what is so now, over all workers."""

    prompt: int
    generated: int
    running: int
    waiting: int
    first_s: float  # summed
    buckets: tuple[int, ...]  # sequences by time to the first token, one number for each of FIRST_S and one beyond


@final
class Tally:
    """One worker's numbers of one model; the engine's thread alone writes them."""

    def __init__(self, cells: Array) -> None:
        self._cells = cells

    def prompt(self, tokens: int, first_s: float) -> None:
        """A prompt was taken in, and its first token is there."""
        cells = self._cells
        cells[PROMPT] += tokens
        cells[FIRST] += first_s
        cells[BUCKET + bisect_left(FIRST_S, first_s)] += 1

    def generated(self) -> None:
        self._cells[GENERATED] += 1

    def now(self, running: int, waiting: int) -> None:
        self._cells[RUNNING], self._cells[WAITING] = running, waiting


@final
class Tallies:
    """The numbers of `workers` processes. Made before they are forked, it is one table to all of them.

    >>> tallies = Tallies(workers=2, slots=1)
    >>> for worker in (0, 1):
    ...     tallies.tally(worker, 0).prompt(5, first_s=0.02)
    >>> tallies.tallied(0).prompt, tallies.tallied(0).buckets[:3]
    (10, (0, 2, 0))
    """

    def __init__(self, workers: int, slots: int) -> None:
        shared = mmap.mmap(-1, 8 * workers * slots * CELLS)
        self._array: Array = np.frombuffer(shared, np.float64).reshape(workers, slots, CELLS)

    def tally(self, worker: int, slot: int) -> Tally:
        """A worker's numbers of what counts in a slot; one that was started again runs nothing yet."""
        made = Tally(self._array[worker, slot])
        made.now(0, 0)
        return made

    def clear(self, slot: int) -> None:
        """Forget what a slot held, before another model gets it."""
        self._array[:, slot] = 0.0

    def tallied(self, slot: int) -> Tallied:
        total = self._array[:, slot].sum(axis=0).tolist()
        prompt, generated, running, waiting = map(int, total[:FIRST])
        return Tallied(prompt, generated, running, waiting, total[FIRST], tuple(map(int, total[BUCKET:])))


def exposed(tallied: Sequence[tuple[str, Tallied]]) -> list[str]:
    """Lines of Prometheus' text format for what was tallied, each with its labels; none for none."""
    lines: list[str] = []

    def say(name: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
        lines.extend(f"{name}{part} {value:.17g}" for part, value in values)

    def each(field: str) -> list[tuple[str, float]]:
        return [(f"{{{labels}}}", getattr(t, field)) for labels, t in tallied]

    if tallied:
        say("airserve_prompt_tokens_total", "counter", "Tokens of prompts taken in.", each("prompt"))
        say("airserve_generated_tokens_total", "counter", "Tokens generated.", each("generated"))
        say("airserve_sequences_running", "gauge", "Sequences that are generated now.", each("running"))
        say("airserve_sequences_waiting", "gauge", "Sequences that wait for a place.", each("waiting"))
        parts = []
        for labels, t in tallied:
            for bound, count in zip((*map(str, FIRST_S), "+Inf"), accumulate(t.buckets), strict=True):
                parts.append((f'_bucket{{{labels},le="{bound}"}}', float(count)))
            parts += [(f"_sum{{{labels}}}", t.first_s), (f"_count{{{labels}}}", float(sum(t.buckets)))]
        say("airserve_time_to_first_token_seconds", "histogram", "From arrival to the first token.", parts)
    return lines
