"""A gateway's calls over gRPC: inference, and what a model says of itself. Messages are relayed as the bytes they are.

Of a message only the field is read that names the model, which is field 1 of each.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future
from importlib.metadata import version as version_of
from pathlib import Path
from typing import final

import grpc

from airserve.contract import Route
from airserve.serve.balancing import Balancer, Manner
from airserve.serve.batching import Overloaded
from airserve.serve.calling import Asking, Caller, Metadata, Said
from airserve.serve.protocols._calls import Answer, Call, Calls
from airserve.serve.protocols._contents import M, delimited
from airserve.serve.protocols._entry import NotFound
from airserve.serve.protocols._messages import SERVICE
from airserve.serve.protocols.oip_grpc import STREAMED, named, recorded, status_of
from airserve.serve.room import Room
from airserve.serve.routes import ANY, Routes
from airserve.tensors import WireError
from airserve.wire import BODY_LIMIT_BYTES

RELAYED = ("ModelReady", "ModelMetadata", "ModelInfer")
OWN = frozenset(("user-agent", "content-type", "te", "host"))  # metadata of one connection alone, beside gRPC's own
NAME = b"\x0a"  # tag of field 1, length-delimited
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def renamed(message: bytes, name: str) -> tuple[str, bytes]:
    """The model that a message names, and the message with another `name` in its place ("": as it is).

    Raises `WireError` for what is no message.

    >>> renamed(b"\\x0a\\x01m\\x1a\\x02id", "int8")
    ('m', b'\\n\\x04int8\\x1a\\x02id')
    """
    found, rest, at = b"", [b"" if not name else b"".join(delimited(name.encode(), NAME))], 0
    for tag, start, end in _fields(message):
        if tag == NAME[0]:
            found = message[start:end]  # the last counts
        else:
            rest.append(message[at:end])
        at = end
    return found.decode("utf-8", "replace"), b"".join(rest) if name else message


def _fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, and start and end of the content, of each field. Raises `WireError`."""
    at, size = 0, len(message)
    try:
        while at < size:
            tag, at = _varint(message, at)
            kind = tag & 7
            if kind == VARINT:
                length = _varint(message, at)[1] - at
            elif kind == BYTES:
                length, at = _varint(message, at)
            else:
                length = {FIXED64: 8, FIXED32: 4}[kind]
            if at + length > size:
                raise IndexError
            yield tag, at, at + length
            at += length
    except (IndexError, KeyError):
        raise WireError("the request is no message of the Open Inference Protocol.") from None


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := message[at]) & 128:
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise IndexError
    return value | byte << shift, at + 1


@final
class Relay:
    """The calls of a gateway. Made inside a running loop."""

    def __init__(self, routes: Routes, room: Room) -> None:
        self._routes, self._loop = routes, asyncio.get_running_loop()
        self._trusted = Path(routes.ca).read_bytes() if routes.ca and routes.secure else None
        self._room = room
        self.balancers: dict[str, Balancer[Asking]] = {
            name: Balancer(places, routes.manner, opens=self._open) for name, places in routes.calls.items()
        }

    async def without_keys(self) -> Route | None:
        """A site that answers whoever asks, if there is one."""
        for route in {(r.host, r.port): r for places in self._routes.calls.values() for r in places}.values():
            site = self._open(route)
            try:
                await site.exchange(Asking(f"/{SERVICE}/ServerMetadata", b""), time.monotonic() + 1.0)
            except OSError:  # it is not there yet
                continue
            except Said as said:
                if said.code is grpc.StatusCode.UNAUTHENTICATED:
                    continue
            finally:
                site.close()
            return route
        return None

    def _open(self, route: Route, manner: Manner | None = None) -> Caller:
        return Caller(route, self._trusted, secure=(route.host, route.port) in self._routes.secure)

    def listen(self, host: str, port: int, certificate: tuple[bytes, bytes] | None) -> Calls:
        """Raises `OSError` where the address is taken."""
        answers: dict[str, Answer] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._metadata,
            **dict.fromkeys(RELAYED, self._relayed),
            "ModelStreamInfer": self._streamed,
        }
        return Calls(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            {f"/{SERVICE}/{name}": answer for name, answer in answers.items()},
            (f"/{SERVICE}/ModelStreamInfer",),
            _status,
            arrived=self._arrived,
            most=self._room.most,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", BODY_LIMIT_BYTES),
                ("grpc.max_send_message_length", -1),
            ],
            credentials=None if certificate is None else grpc.ssl_server_credentials([certificate]),
        )

    def _arrived(self, call: Call) -> None:
        named(call)
        if self._routes.access_log:
            call.ended = lambda status, size: recorded(call, status, size)

    def _live(self, call: Call, message: bytes) -> bytes:
        return bytes(M["ServerLiveResponse"](live=True).SerializeToString())

    def _ready(self, call: Call, message: bytes) -> Future[bytes]:
        async def looked() -> bytes:
            known = [balancer.look() for balancer in self.balancers.values()]
            return bytes(M["ServerReadyResponse"](ready=all(known)).SerializeToString())

        return asyncio.run_coroutine_threadsafe(looked(), self._loop)

    def _metadata(self, call: Call, message: bytes) -> bytes:
        made = M["ServerMetadataResponse"](name="airserve-gateway", version=version_of("airserve"))
        return bytes(made.SerializeToString())

    def _relayed(self, call: Call, message: bytes) -> Future[bytes]:
        return asyncio.run_coroutine_threadsafe(self._relay(call, call.method, message), self._loop)

    def _streamed(self, call: Call, message: bytes) -> Future[bytes]:
        """One of the requests of a stream, which goes on as a call of its own; one that fails does not end it."""

        async def later() -> bytes:
            try:
                answer = await self._relay(call, f"/{SERVICE}/ModelInfer", message)
            except Exception as error:
                return bytes(M["ModelStreamInferResponse"](error_message=_status(error)[1]).SerializeToString())
            return b"".join(delimited(answer, STREAMED))

        return asyncio.run_coroutine_threadsafe(later(), self._loop)

    async def _relay(self, call: Call, method: str, message: bytes) -> bytes:
        model, _ = renamed(message, "")
        balancer = self.balancers.get(model) or self.balancers.get(ANY)
        if balancer is None:
            raise NotFound(self._routes.without(model, self.balancers))
        left_s = call.left_s()
        tell = math.isfinite(left_s)  # a site has a deadline of its own for calls that name none
        deadline_s = time.monotonic() + (left_s if tell else self._routes.deadline_s)
        sent = [(k, v) for k, v in call.metadata.items() if k not in OWN and not k.startswith(("grpc-", ":"))]
        metadata: Metadata = tuple(sent)

        def write(route: Route) -> Asking:
            return Asking(method, renamed(message, route.model)[1], metadata, tell)

        with self._room:
            answer = (await balancer.send(write, deadline_s)).answer
        if answer.status != 200:
            raise Overloaded(answer.headers["details"])
        return answer.body


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, Said):
        return error.code, error.details
    if isinstance(error, NotFound):
        return grpc.StatusCode.NOT_FOUND, str(error)
    return status_of(error)
