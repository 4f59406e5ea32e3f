"""How long a device sleeps: counted when it wakes, so that a device which sleeps costs nothing.

A quiet device listens until a timer ends, then wakes for every on-duration of C-DRX (TS 38.321 5.7); released, for its
paging occasions (TS 38.304 7.1). A stretch of sleep is deep, light or micro by its length: TR 38.840 8.1.2.
"""

from __future__ import annotations

from typing import Any

from airserve.model import Array
from airserve.network.jit import inner, njit

DEEP, LIGHT, MICRO, DEEP_TIMES, LIGHT_TIMES = range(5)  # places in UE.rest: slots asleep, and how often


@inner
def sleep(a: Any, ue: Array, u: int, length: int, times: int) -> None:
    """Count stretches of sleep of a length."""
    rest = ue[u].rest
    if length >= a.deep:
        rest[DEEP] += length * times
        rest[DEEP_TIMES] += times
    elif length >= a.light:
        rest[LIGHT] += length * times
        rest[LIGHT_TIMES] += times
    else:
        rest[MICRO] += length * times


@inner
def between(a: Any, ue: Array, u: int, start: int, end: int, cycle: int, awake: int, offset: int) -> None:
    """Sleep in the slots [start, end) but for the first `awake` of every cycle, which begins at an offset."""
    at = start
    while at < end:
        into = (at - offset) % cycle
        if into < awake:
            at += awake - into
            continue
        length = min(cycle - into, end - at)
        sleep(a, ue, u, length, 1)
        at += length
        whole = (end - at) // cycle
        if whole > 0:
            sleep(a, ue, u, cycle - awake, whole)
            at += whole * cycle


@inner
def rest(a: Any, ue: Array, u: int, until: int) -> None:
    """Count what a device has slept since its last traffic, up to a slot; `a` is rrc.Access."""
    one = ue[u]
    connected = until if a.always_on else min(until, one.active_at + a.inactivity + 1)
    if a.drx_cycle > 0:
        from_slot = one.active_at + a.drx_inactivity + 1
        between(a, ue, u, from_slot, connected, a.drx_cycle, a.drx_on, one.drx_offset)
    between(a, ue, u, connected, until, a.paging, 1, one.paging_offset)


@njit
def rested(a: Any, ue: Array, until: int) -> None:
    """Count what devices have slept up to a slot, whether they wake then or not; for a copy of State.ue.

    A device in random access is awake.
    """
    for u in range(ue.size):
        if not ue[u].accessing and until - ue[u].active_at > a.soonest:
            rest(a, ue, u, until)
