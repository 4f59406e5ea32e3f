"""The air in real time: a byte relay whose bytes the MAC holds and releases; it knows no protocol above TCP.

`python -m airserve.network.emulator DEPLOYMENT.json RUN_DIR`. A connection's source address names the device, its
destination the site, as in a user-plane function (TS 23.501 6.2.3). One loop: it sleeps in epoll while nothing is
queued and wakes at slot boundaries while something is. A slot is simulated when it begins: only what arrived before
may be sent in it. A loop that wakes late makes up for the slots it missed, with arrivals as they were; only release
is late then, and how late is what makes a run valid or not.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from airserve.airlog import PACKED
from airserve.contract import Air, Deployment, from_plain
from airserve.errors import UserError
from airserve.linux import die_with_parent, open_all_files, run_on_time, wait
from airserve.network.buffers import DOWN, UP
from airserve.network.channels import Channel
from airserve.network.connection import Connection, Half
from airserve.network.journal import Journal
from airserve.network.mac import Mac
from airserve.network.topology import Network

TIMES = ["id", "arrived_s", "granted_s", "delivered_s"]  # of the MAC's records
READ_BYTES = 1 << 16
QUEUE_BYTES = 1 << 20  # of a device in one direction: beyond it the relay reads no more, and TCP slows the sender
PRIORITY = 10  # of SCHED_FIFO
RESET = struct.pack("ii", 1, 0)  # SO_LINGER that makes close send RST


class RelayError(UserError):
    """A relay that cannot start; the message is one sentence for the user."""


@final
class Relay:
    """Listens for every site, offers what devices send to the MAC, and passes it on when the MAC has carried it."""

    def __init__(self, air: Air, mac: Mac, slot_s: float, journal: Journal) -> None:
        self.air, self.mac, self.slot_s, self.journal = air, mac, slot_s, journal
        self.ue_of = {address: ue for ue, address in enumerate(air.devices)}
        self.epoll = select.epoll()
        self.listeners = {sock.fileno(): (site, sock) for site, sock in enumerate(map(_listen, air.sites))}
        for fd in self.listeners:
            self.epoll.register(fd, select.EPOLLIN)
        self.wake, self.waker = socket.socketpair()
        self.wake.setblocking(False)
        self.waker.setblocking(False)
        self.epoll.register(self.wake, select.EPOLLIN)
        self.stopping = False
        self.connections: dict[int, Connection] = {}  # by either socket's file descriptor
        self.masks: dict[int, int] = {}
        self.numbers = itertools.count()
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.flying: dict[int, tuple[Half, bytes]] = {}  # by the MAC's record
        self.queued = [[0] * len(air.devices), [0] * len(air.devices)]  # bytes, by direction and device
        self.held_up: list[Half] = []  # not read, because their queue is full
        self.began_s = journal.began_s = time.monotonic()
        self.simulated_s = 0.0  # end of the last slot simulated, on the MAC's clock

    def run(self) -> None:
        """Relay until `stop`."""
        self._at(self.began_s + 1, self._second, self.began_s + 1)
        while not self.stopping:
            ready = wait(self.epoll, self._wake_s())
            now_s = time.monotonic()
            self._due(now_s)
            for fd, events in ready:
                self._ready(fd, events, now_s)
            self._slots(now_s)
            self._due(now_s)
        self._slots(time.monotonic(), idle=True)
        self.journal.second(self.mac.usage(), self.began_s + self.simulated_s, running=False)

    def stop(self, *_: object) -> None:
        """End `run`; safe in a signal handler."""
        self.stopping = True
        self.waker.send(b"x")

    def close(self) -> None:
        """Close every socket."""
        for connection in set(self.connections.values()):
            self._close(connection)
        for _, sock in self.listeners.values():
            sock.close()
        self.wake.close()
        self.waker.close()
        self.epoll.close()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _wake_s(self) -> float:
        """The next release, or the next slot while the MAC has something to carry."""
        next_s = self.events[0][0]
        return next_s if self.mac.idle else min(next_s, self.began_s + self.simulated_s)

    def _at(self, due_s: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (due_s, next(self.numbers), what, arguments))

    def _due(self, now_s: float) -> None:
        while self.events[0][0] <= now_s:
            due_s, _, what, arguments = heapq.heappop(self.events)
            what(due_s, *arguments)

    def _slots(self, now_s: float, idle: bool = False) -> None:
        """Simulate every slot that has begun; what they deliver is released when its time has come."""
        if self.mac.idle and not idle:
            return
        slots = math.floor((now_s - self.began_s) / self.slot_s) + 1
        if slots * self.slot_s <= self.simulated_s:
            return
        self.simulated_s = slots * self.slot_s
        self.journal.slots += 1
        done = self.mac.run(self.simulated_s)
        for number, arrived_s, granted_s, delivered_s in done[TIMES].tolist() if len(done) else ():
            half, data = self.flying.pop(number)
            delivered_s += self.began_s
            delay_s = self._delay_s(half) if half.direction == UP else 0.0
            self._at(delivered_s + delay_s, self._release, half, data, arrived_s, granted_s, delivered_s)

    def _second(self, due_s: float, second_s: float) -> None:
        self._slots(due_s, idle=True)  # so that PRBs of idle slots are counted as there
        self.journal.second(self.mac.usage(), self.began_s + self.simulated_s)
        self._at(second_s + 1, self._second, second_s + 1)

    def _delay_s(self, half: Half) -> float:
        return self.air.sites[half.connection.site].delay_ms / 1000

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _read(self, half: Half, now_s: float) -> None:
        try:
            data = half.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._end(half, "reset", now_s)
            return
        if not data:
            self._end(half, "eof", now_s)
            return
        half.flying += 1
        self.queued[half.direction][half.connection.ue] += len(data)
        if half.direction == UP:
            self._offer(now_s, half, data)
        else:
            self._at(now_s + self._delay_s(half), self._offer, half, data)
        if self._full(half):
            half.paused = True
            self.held_up.append(half)
            self._watch(half.connection)

    def _offer(self, due_s: float, half: Half, data: bytes) -> None:
        number = self.mac.offer(half.connection.ue, half.direction, len(data), due_s - self.began_s)
        self.flying[number] = half, data

    def _release(
        self, due_s: float, half: Half, data: bytes, arrived_s: float, granted_s: float, delivered_s: float
    ) -> None:
        connection = half.connection
        released_s = math.nan
        half.flying -= 1
        half.logged += len(data)
        self.queued[half.direction][connection.ue] -= len(data)
        if not connection.closed:
            released_s = time.monotonic()
            half.out += data
            self._write(half, released_s)
            self.journal.lateness(released_s - due_s)
        began_s = self.began_s
        self.journal.record(
            PACKED.pack(
                connection.ue, connection.number, connection.port, connection.site, half.direction, len(data),
                half.logged, arrived_s + began_s, granted_s + began_s, delivered_s, released_s,
            ),
            half.direction,
            len(data),
        )  # fmt: skip
        self._read_again()
        if half.ended:
            self._finish(due_s, half)

    def _write(self, half: Half, now_s: float) -> None:
        connection = half.connection
        if half.out and not (half.sink is connection.upstream and connection.connecting):
            try:
                del half.out[: half.sink.send(half.out)]
            except BlockingIOError:
                pass
            except OSError:  # the sink has gone: that is an end of the other half
                half.out.clear()
                self._end(self._other(half), "reset", now_s)
        if half.ended == "eof":
            self._finish(now_s, half)
        if not connection.closed:
            self._watch(connection)

    def _other(self, half: Half) -> Half:
        return half.connection.up if half.direction == DOWN else half.connection.down

    def _full(self, half: Half) -> bool:
        return self.queued[half.direction][half.connection.ue] >= QUEUE_BYTES or len(half.out) >= QUEUE_BYTES

    def _read_again(self) -> None:
        """Read the connections again whose queues have room."""
        for half in [half for half in self.held_up if half.connection.closed or not self._full(half)]:
            self.held_up.remove(half)
            half.paused = False
            if not half.connection.closed:
                self._watch(half.connection)

    # -- connections --------------------------------------------------------------------------------------------------

    def _ready(self, fd: int, events: int, now_s: float) -> None:
        if fd in self.listeners:
            self._accept(*self.listeners[fd])
        elif fd in self.connections:
            connection = self.connections[fd]
            inward, outward = connection.up, connection.down
            if fd == connection.upstream.fileno():
                inward, outward = outward, inward
                if connection.connecting and not self._connected(connection, now_s):
                    return
            if outward.out and events & (select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR):
                self._write(outward, now_s)
                self._read_again()
            if events & ~select.EPOLLOUT and not (inward.ended or inward.paused or connection.closed):
                self._read(inward, now_s)

    def _accept(self, site: int, listener: socket.socket) -> None:
        try:
            client, (address, port) = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        ue = self.ue_of.get(address)
        if ue is None:  # no device of this cell
            self.journal.strangers += 1
            _reset(client)
            return
        upstream = socket.socket()
        for sock in (client, upstream):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(next(self.numbers), ue, port, site, client, upstream)
        self.connections[client.fileno()] = self.connections[upstream.fileno()] = connection
        upstream.connect_ex((self.air.sites[site].upstream_host, self.air.sites[site].upstream_port))
        self._watch(connection)

    def _connected(self, connection: Connection, now_s: float) -> bool:
        connection.connecting = False
        if connection.upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end(connection.down, "reset", now_s)
            return False
        self._write(connection.up, now_s)
        return not connection.closed

    def _watch(self, connection: Connection) -> None:
        """Wait for exactly what can be used: an end that nobody reads would wake the loop again and again."""
        for sock, inward, outward in (
            (connection.client, connection.up, connection.down),
            (connection.upstream, connection.down, connection.up),
        ):
            waiting = outward.out or (connection.connecting and sock is connection.upstream)
            mask = select.EPOLLOUT if waiting else 0
            if not (inward.ended or inward.paused) and not (connection.connecting and sock is connection.upstream):
                mask |= select.EPOLLIN
            fd = sock.fileno()
            before = self.masks.get(fd, 0)
            if mask and not before:
                self.epoll.register(fd, mask)
            elif mask and mask != before:
                self.epoll.modify(fd, mask)
            elif before and not mask:
                self.epoll.unregister(fd)
            self.masks[fd] = mask

    def _end(self, half: Half, how: str, now_s: float) -> None:
        """The source has ended: the sink learns it after the bytes before it, or after the site's delay."""
        connection = half.connection
        if connection.closed or half.ended == "reset":
            return
        half.ended = how
        if not half.flying:
            self._at(now_s + self._delay_s(half), self._finish, half)
        self._watch(connection)

    def _finish(self, due_s: float, half: Half) -> None:
        """Pass on the end of a half whose bytes have all been written."""
        connection = half.connection
        if connection.closed or half.flying:
            return
        if half.ended == "reset":
            self._close(connection, reset=half.sink)
        elif not (half.passed or half.out or (connection.connecting and half.direction == UP)):
            half.passed = True
            try:
                half.sink.shutdown(socket.SHUT_WR)
            except OSError:  # the sink has gone: that is an end of the other half
                self._end(self._other(half), "reset", due_s)
            if self._other(half).passed:
                self._close(connection)

    def _close(self, connection: Connection, reset: socket.socket | None = None) -> None:
        connection.closed = True
        for sock in (connection.client, connection.upstream):
            fd = sock.fileno()
            if self.masks.pop(fd, 0):
                self.epoll.unregister(fd)
            self.connections.pop(fd, None)
            if sock is reset:
                _reset(sock)
            else:
                sock.close()
        connection.up.out.clear()
        connection.down.out.clear()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def _listen(site: Any) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((site.host, site.port))
    except OSError as error:
        sock.close()
        raise RelayError(
            f"the relay cannot listen at {site.host}:{site.port} for site {site.name} ({error.strerror}); "
            "stop what uses the port, or choose another with --port."
        ) from None
    sock.listen(1024)
    sock.setblocking(False)
    return sock


def _mac(network: Network, air: Air) -> Mac:
    return Mac(
        network,
        air.slice_of,
        seed=air.seed,
        kinds=air.kinds,
        device_of=air.device_of or None,
        channels=[Channel.model_validate(one) for one in air.channels] or None,
    )


def main() -> int:
    """Run a deployment's relay until it is told to stop: exit status 0, or 2 with a sentence where it cannot start."""
    if len(sys.argv) != 3:
        print("usage: python -m airserve.network.emulator DEPLOYMENT.json RUN_DIR", file=sys.stderr)
        return 2
    die_with_parent(os.getppid())
    open_all_files()
    try:
        deployment = from_plain(Deployment, json.loads(Path(sys.argv[1]).read_bytes()))
        if deployment.air is None:
            raise RelayError(f"deployment {deployment.name} has no air: nothing to relay.")
        air = deployment.air
        network = Network.model_validate(air.network)
        _warm_up(network, air)
        scheduling = run_on_time(PRIORITY)
        with Journal(Path(sys.argv[2]), network, scheduling) as journal:
            relay = Relay(air, _mac(network, air), network.cell.slot_ms / 1000, journal)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, relay.stop)
            print(f"ready air: {len(air.devices)} devices, {len(air.sites)} sites, {scheduling}", flush=True)
            relay.run()
            relay.close()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _warm_up(network: Network, air: Air) -> None:
    """Have the MAC compiled before anybody waits for it."""
    mac = _mac(network, air)
    for direction in (DOWN, UP):
        mac.offer(0, direction, 1000, 0.0)
    mac.run(0.1)


if __name__ == "__main__":
    sys.exit(main())
