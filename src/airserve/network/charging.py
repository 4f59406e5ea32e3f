"""Which slice pays for a block: the one whose bytes it holds, also where a device is in several (TS 28.541 4.3.36)."""

from __future__ import annotations

from airserve.model import Array
from airserve.network.allocation import whole
from airserve.network.buffers import NONE, Config, State
from airserve.network.jit import inner
from airserve.network.prioritisation import by_bytes


@inner
def owe(s: State, c: Config, slices: Array, b: int) -> None:
    """A block to be sent again is a need of the slices whose bytes it holds, of each up to its maximum."""
    first = s.flow[s.block[b].flow]
    if s.block[b].also == NONE:
        slices[first.slice].need += s.block[b].prbs
        return
    slices[first.slice].need += divide(s, c, b, slices["maximum"])  # a window has let a slice have more
    g = s.channel[s.block[b].flow].first
    while g != NONE:
        slices[s.flow[g].slice].need += s.channel[g].part
        g = s.channel[g].following


@inner
def divide(s: State, c: Config, b: int, most: Array) -> int:
    """Divide the PRBs on which a block is sent again among its device's slices, as `CHANNEL.part`; returns the rest.

    Each is to give what its bytes take, in whole groups, at most `most`; what it lacks comes from the device's others,
    for the first grant was drawn from all too, and slices that wait for each other would wait for ever. The PRB of a
    carrier that is no group is nobody's.
    """
    by_bytes(s, b)
    first, left = s.channel[s.block[b].flow].first, s.block[b].prbs // c.group * c.group
    g = first
    while g != NONE:
        if s.flow[g].group == g:
            one, there = s.channel[g], max(most[s.flow[g].slice], 0) // c.group * c.group
            one.part = min(whole(one.part, c.group, left), there)
            left -= one.part
        g = s.channel[g].following
    g = first
    while g != NONE and left > 0:
        if s.flow[g].group == g:
            one, there = s.channel[g], max(most[s.flow[g].slice], 0) // c.group * c.group
            more = min(left, there - one.part)
            one.part += more
            left -= more
        g = s.channel[g].following
    return int(left)


@inner
def fits(s: State, c: Config, b: int, quota: Array) -> bool:
    """Whether a device's slices have the PRBs left to send a block again."""
    if s.block[b].also == NONE:
        return bool(s.block[b].prbs <= quota[s.flow[s.block[b].flow].slice])
    return divide(s, c, b, quota) == 0


@inner
def pay(s: State, b: int, quota: Array, direction: int) -> None:
    """Take these PRBs, after `fits`, and charge the slices whose bytes the block holds."""
    f = s.block[b].flow
    if s.block[b].also == NONE:
        k = s.flow[f].slice
        quota[k] -= s.block[b].prbs
        s.prbs_used[k, direction] += s.block[b].prbs
        return
    draw(s, f, direction, quota, 1)
    by_bytes(s, b)
    charge(s, f, direction)


@inner
def draw(s: State, f: int, direction: int, quota: Array, sign: int) -> None:
    """Take what a device is granted from what its slices have left in this slot, or with sign -1 give it back.

    `slicing.settle` will count that as used; what its bytes take counts in its place, by `charge`.
    """
    g = s.channel[f].first
    while g != NONE:
        if s.flow[g].group == g:
            one = s.slices[direction, s.flow[g].slice]
            quota[s.flow[g].slice] -= sign * s.channel[g].part
            one.used -= sign * s.channel[g].part / one.window
        g = s.channel[g].following


@inner
def charge(s: State, f: int, direction: int) -> None:
    """Count the PRBs of a device's block as those of the slices whose bytes went."""
    g = s.channel[f].first
    while g != NONE:
        if s.flow[g].group == g:
            k = s.flow[g].slice
            s.prbs_used[k, direction] += s.channel[g].part
            s.slices[direction, k].used += s.channel[g].part / s.slices[direction, k].window
        g = s.channel[g].following
