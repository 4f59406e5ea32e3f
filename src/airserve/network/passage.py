"""How requests pass: device, radio, user-plane function, link, site and back, compiled, in order of time.

The MAC runs slot by slot. All else are events in a heap: something comes to a site, to the base station or to a device,
or a computation ends. An event is handled before the first slot that can carry what follows from it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network.buffers import DOWN, UP, Config, N, State, take_done, visible_slot
from airserve.network.core import ANY, DROP, cross, detect, enforce
from airserve.network.headers import PACKET_BYTES
from airserve.network.intake import enqueue
from airserve.network.jit import inner, njit
from airserve.network.lending import lend
from airserve.network.scheduler import quiet, step
from airserve.network.traffic import join
from airserve.network.transport import (
    HELLO_DOWN_BYTES,
    HELLO_UP_BYTES,
    SYN_BYTES,
    TLS,
    UDP,
    WARM,
    ack_bytes,
    acknowledged,
    burst,
    given_up,
    timeout_s,
    wake,
)

STAMPS = 10  # of a request, in this order:
RELEASED_UP, GRANTED_UP, DELIVERED_UP, ARRIVED, STARTED, ENDED, RELEASED_DOWN, AT_BASE, GRANTED_DOWN, DELIVERED_DOWN = (
    range(STAMPS)
)
SITE, COMPUTED, BASE, DEVICE, OUTWARD, INWARD, TIMEOUT = range(7)  # kinds of events: where something has come to
MESSAGE, BURST, LAST, ACK, HELLO = range(5)  # what it is; BURST and LAST are of a message in several

EVENT = np.dtype(
    [("at_s", "f8"), ("order", "i8"), ("kind", "i8"), ("id", "i8"), ("nbytes", "i8")],
    align=True,
)


class Numbers(NamedTuple):
    """Places in `World.n`."""

    sent: int = 0  # requests that have come to the radio
    closed: int = 1  # answered or lost
    lost: int = 2  # dropped by a rule or by a link
    mark: int = 3  # next mark to be noted
    events: int = 4  # in the heap
    order: int = 5  # of the next event
    offered: int = 6  # waiting to be given to the MAC
    size: int = 7


M = Numbers()


class World(NamedTuple):
    """All of a run beside the MAC's state, as few arrays. n requests, in order of `ready_s`."""

    n: Array  # int64 (Numbers.size,)
    asked: Array  # traffic.REQUEST (n,)
    stamps: Array  # float64 (n, STAMPS), seconds
    absent_s: Array  # float64 (n, 2, 2): by direction, waited for access and for an on-duration (rrc.py)
    site: Array  # int64 (n,): where the request went; ANY: not known yet
    rule: Array  # int64 (n,): that held, or ANY
    rounds: Array  # int64 (n,): of the handshake still to do
    connection: Array  # int64 (n,)
    following: Array  # int64 (n, 2): the next request of the connection, by direction
    sender: Array  # transport.SENDER (connections, 2)
    event: Array  # EVENT
    heap: Array  # int64: places of events, the first to happen first; behind `n[M.events]` the free ones
    offers: Array  # EVENT: for the MAC, `kind` is the direction
    links: Array  # core.LINK (sites,)
    speed: Array  # float64 (sites,)
    free_s: Array  # float64 (sites, cores): when each is free
    marks: Array  # int64 (marks,): slots at which counts are noted
    counts: Array  # int64 (marks, 2, slices, 2)


@njit
def simulate(state: State, config: Config, world: World, rules: Array, end: int) -> None:
    """Slot by slot from where it was until all requests are closed or `end`; a quiet cell jumps to the next event."""
    s, c, w = lend(state), lend(config), lend(world)
    while w.n[M.closed] < w.asked.size and s.n[N.slot] < end:
        slot = s.n[N.slot]
        note(s, w, slot)
        while w.n[M.sent] < w.asked.size and visible_slot(c, w.asked[w.n[M.sent]].ready_s) <= slot:
            begin(c, w, rules, w.n[M.sent])
            w.n[M.sent] += 1
            flush(s, c, w)
        while w.n[M.events] > 0 and visible_slot(c, w.event[w.heap[0]].at_s) <= slot:
            happen(w, rules)
            flush(s, c, w)
        if quiet(s.n):
            nearest = end if w.n[M.sent] == w.asked.size else visible_slot(c, w.asked[w.n[M.sent]].ready_s)
            if w.n[M.events] > 0:
                nearest = min(nearest, visible_slot(c, w.event[w.heap[0]].at_s))
            s.n[N.slot] = min(nearest, end)
            continue
        step(s, c)
        while s.n[N.done] > 0:
            delivered(s, w, rules)


@inner
def note(s: State, w: World, slot: int) -> None:
    """Copy what was counted at every mark up to a slot."""
    while w.n[M.mark] < w.marks.size and w.marks[w.n[M.mark]] <= slot:
        for k in range(s.prbs_used.shape[0]):
            for direction in range(2):
                w.counts[w.n[M.mark], 0, k, direction] = s.prbs_used[k, direction]
                w.counts[w.n[M.mark], 1, k, direction] = s.nbytes[k, direction]
        w.n[M.mark] += 1


@inner
def named(i: int, what: int, segments: int) -> int:
    """A number that says what a record or an event carries."""
    return (i << 20) | (segments << 8) | what


@inner
def offer(w: World, direction: int, nbytes: int, at_s: float, name: int) -> None:
    """Have something given to the MAC by `flush`: its code then stands in one place and not in every caller."""
    one = w.offers[w.n[M.offered]]
    one.at_s, one.kind, one.id, one.nbytes = at_s, direction, name, nbytes
    w.n[M.offered] += 1


@inner
def flush(s: State, c: Config, w: World) -> None:
    """Give the MAC what was offered, in that order."""
    for k in range(w.n[M.offered]):
        one = w.offers[k]
        enqueue(s, c, one.kind * c.ues + w.asked[one.id >> 20].ue, one.nbytes, one.at_s, one.id)
    w.n[M.offered] = 0


@inner
def begin(c: Config, w: World, rules: Array, i: int) -> None:
    """A device has a request ready for the radio."""
    one = w.asked[i]
    if one.transport <= UDP:
        w.stamps[i, RELEASED_UP] = one.ready_s
        offer(w, UP, one.up, one.ready_s, named(i, MESSAGE, 0))
    elif one.transport == WARM:
        w.connection[i] = one.ue
        queue(w, rules, i, UP, one.ready_s)
    else:
        w.connection[i] = c.ues + i
        w.rounds[i] = 2 if one.transport == TLS else 1
        greet(w, i, one.ready_s)


@inner
def greet(w: World, i: int, at_s: float) -> None:
    """The device's part of a round of the handshake."""
    nbytes = HELLO_UP_BYTES if w.asked[i].transport == TLS and w.rounds[i] == 1 else SYN_BYTES
    offer(w, UP, nbytes, at_s, named(i, HELLO, 0))


@inner
def queue(w: World, rules: Array, i: int, way: int, at_s: float) -> None:
    """Give a message to the sender of its connection."""
    one = w.sender[w.connection[i], way]
    if one.head < 0:
        one.head, one.left = i, w.asked[i].up if way == UP else w.asked[i].down
    else:
        w.following[one.tail, way] = i
    one.tail = i
    wake(w.sender, w.connection[i], way, at_s)
    pump(w, rules, w.connection[i], way, at_s)


@inner
def pump(w: World, rules: Array, k: int, way: int, at_s: float) -> None:
    """Send what the window of a connection allows."""
    while True:
        one = w.sender[k, way]
        i = one.head
        segments = burst(w.sender, k, way, at_s)
        if segments == 0:
            return
        nbytes = min(one.left, segments * PACKET_BYTES)
        one.left -= nbytes
        what = BURST
        if one.left == 0:
            what = LAST
            w.stamps[i, RELEASED_UP if way == UP else RELEASED_DOWN] = at_s
            one.head = w.following[i, way]
            if one.head >= 0:
                one.left = w.asked[one.head].up if way == UP else w.asked[one.head].down
        if way == UP:
            offer(w, UP, nbytes, at_s, named(i, what, segments))
        else:
            to_base(w, rules, i, named(i, what, segments), nbytes, at_s)


@inner
def to_base(w: World, rules: Array, i: int, name: int, nbytes: int, at_s: float) -> None:
    """A site sends towards the radio."""
    passed_s = enforce(rules, w.rule[i], DOWN, nbytes, at_s)
    if passed_s > at_s:
        push(w, passed_s, INWARD, name, nbytes)
    else:
        inward(w, i, name, nbytes, at_s)


@inner
def inward(w: World, i: int, name: int, nbytes: int, at_s: float) -> None:
    """What a rule lets pass crosses the link from its site."""
    there_s = cross(w.links, w.site[i], DOWN, nbytes, at_s, w.asked[i].transport == UDP)
    what = name & 255
    if what in (MESSAGE, LAST):
        w.stamps[i, AT_BASE] = there_s
    if there_s == np.inf:
        close(w, True)
    else:
        push(w, there_s, BASE, name, nbytes)


@inner
def close(w: World, lost: bool) -> None:
    w.n[M.closed] += 1
    w.n[M.lost] += lost


@inner
def delivered(s: State, w: World, rules: Array) -> None:
    """What the MAC has carried goes on its way."""
    record = s.record[take_done(s)]
    i, what, at_s = record.id >> 20, record.id & 255, record.delivered_s
    if what != ACK:  # bursts of a message wait together
        absent_s = w.absent_s[i, record.direction]
        absent_s[0] = max(absent_s[0], record.access_s)
        absent_s[1] = max(absent_s[1], record.asleep_s)
    if record.direction == DOWN:
        if what in (MESSAGE, LAST):
            w.stamps[i, GRANTED_DOWN], w.stamps[i, DELIVERED_DOWN] = record.granted_s, at_s
            close(w, False)
        if what != MESSAGE:
            push(w, at_s, DEVICE, record.id, record.nbytes)
        return
    one = w.asked[i]
    if w.site[i] == ANY:
        r = detect(rules, one.flow, one.device, one.slice, one.site, at_s)
        w.rule[i] = r
        w.site[i] = one.site if r == ANY or rules[r].forward == ANY else rules[r].forward
        if w.site[i] == DROP:
            close(w, True)
    if w.site[i] == DROP:
        if what in (BURST, LAST):
            push(w, at_s + timeout_s(w.sender, w.connection[i], UP), TIMEOUT, record.id, 0)
        return
    if what in (MESSAGE, LAST):
        w.stamps[i, GRANTED_UP], w.stamps[i, DELIVERED_UP] = record.granted_s, at_s
    passed_s = enforce(rules, w.rule[i], UP, record.nbytes, at_s)
    if passed_s > at_s:
        push(w, passed_s, OUTWARD, record.id, record.nbytes)
    else:
        outward(w, i, record.id, record.nbytes, at_s)


@inner
def outward(w: World, i: int, name: int, nbytes: int, at_s: float) -> None:
    """What a rule lets pass crosses the link to its site."""
    there_s = cross(w.links, w.site[i], UP, nbytes, at_s, w.asked[i].transport == UDP)
    if name & 255 in (MESSAGE, LAST):
        w.stamps[i, ARRIVED] = there_s
    if there_s == np.inf:
        close(w, True)
    else:
        push(w, there_s, SITE, name, nbytes)


@inner
def happen(w: World, rules: Array) -> None:
    """Handle the first event of the heap."""
    event = w.event[w.heap[0]]
    at_s, kind, name, nbytes = event.at_s, event.kind, event.id, event.nbytes
    pop(w)
    i, what, segments = name >> 20, name & 255, (name >> 8) & 4095
    one = w.asked[i]
    if kind == SITE:
        if what == HELLO:
            reply = HELLO_DOWN_BYTES if one.transport == TLS and w.rounds[i] == 1 else SYN_BYTES
            to_base(w, rules, i, name, reply, at_s)
        elif what == ACK:
            acknowledged(w.sender, w.connection[i], DOWN, segments, at_s)
            pump(w, rules, w.connection[i], DOWN, at_s)
        else:
            if what != BURST:
                seconds = one.site_seconds * w.speed[one.site] / w.speed[w.site[i]]
                w.stamps[i, STARTED] = join(w.free_s[w.site[i]], at_s, seconds)
                w.stamps[i, ENDED] = w.stamps[i, STARTED] + seconds
                push(w, w.stamps[i, ENDED], COMPUTED, named(i, MESSAGE, 0), 0)
            if what != MESSAGE:
                to_base(w, rules, i, named(i, ACK, segments), ack_bytes(segments), at_s)
    elif kind == COMPUTED:
        if one.transport <= UDP:
            w.stamps[i, RELEASED_DOWN] = at_s
            to_base(w, rules, i, named(i, MESSAGE, 0), one.down, at_s)
        else:
            queue(w, rules, i, DOWN, at_s)
    elif kind == BASE:
        offer(w, DOWN, nbytes, at_s, name)
    elif kind == OUTWARD:
        outward(w, i, name, nbytes, at_s)
    elif kind == INWARD:
        inward(w, i, name, nbytes, at_s)
    elif kind == TIMEOUT:
        given_up(w.sender, w.connection[i], UP, segments)
        pump(w, rules, w.connection[i], UP, at_s)
    elif what == ACK:
        acknowledged(w.sender, w.connection[i], UP, segments, at_s)
        pump(w, rules, w.connection[i], UP, at_s)
    elif what == HELLO:
        w.rounds[i] -= 1
        if w.rounds[i] > 0:
            greet(w, i, at_s)
        else:
            queue(w, rules, i, UP, at_s)
    else:
        offer(w, UP, ack_bytes(segments), at_s, named(i, ACK, segments))


@inner
def before(w: World, a: int, b: int) -> bool:
    """Whether the event at one place of the heap comes before that at another."""
    one, other = w.event[w.heap[a]], w.event[w.heap[b]]
    return bool(one.at_s < other.at_s or (one.at_s == other.at_s and one.order < other.order))


@inner
def swap(w: World, a: int, b: int) -> None:
    w.heap[a], w.heap[b] = w.heap[b], w.heap[a]


@inner
def push(w: World, at_s: float, kind: int, name: int, nbytes: int) -> None:
    """Put an event into the heap; those of one time come out in the order in which they went in."""
    at = w.n[M.events]
    event = w.event[w.heap[at]]
    event.at_s, event.order, event.kind, event.id, event.nbytes = at_s, w.n[M.order], kind, name, nbytes
    w.n[M.events] += 1
    w.n[M.order] += 1
    while at > 0 and before(w, at, (at - 1) // 2):
        swap(w, at, (at - 1) // 2)
        at = (at - 1) // 2


@inner
def pop(w: World) -> None:
    """Take the first event out; its place in `event` is free for the next."""
    w.n[M.events] -= 1
    last, at = w.n[M.events], 0
    swap(w, 0, last)
    while True:
        least = at
        for child in (2 * at + 1, 2 * at + 2):
            if child < last and before(w, child, least):
                least = child
        if least == at:
            return
        swap(w, at, least)
        at = least
