"""Protocols that share the port of the Open Inference Protocol: which paths are theirs, and errors as they say them."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from airserve import catalog
from airserve.serve.guarding import Guard
from airserve.serve.protocols._entry import Answered, Entry, Given, Route, method_of
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._pending import Pending
from airserve.serve.service import Service

# The first part of a path, and whose it is. A protocol is imported when it is first asked for.
PARTS = {"v1": "openai", **dict.fromkeys(("knowledge-base", "qa-assistant-manage", "qa-assistant-service"), "camara")}


class Beside(Protocol):
    """What a module of such a protocol defines."""

    def find(self, path: str) -> dict[str, Route]:
        """The routes of a path by method. Raises `NotFound`."""

    def error_response(self, error: Exception, head: Head | None = None) -> bytes:
        """An exception as the protocol says it, to a request with this header."""


def beside(path: str) -> Beside | None:
    """The protocol that a path belongs to, where that is another."""
    name = PARTS.get(path[1:].partition("/")[0])
    return None if name is None else catalog.protocols[name]


def answer(protocol: Beside, service: Service, guard: Guard | None, head: Head, body: bytes, arrived_s: float) -> Given:
    """An answer to a request to another protocol; nothing is kept of its header, whose reading costs it little."""

    def find(head: Head) -> Route:
        routes = protocol.find(head.path)
        return routes[method_of(head, routes)]

    def failed(error: Exception) -> bytes:
        return protocol.error_response(error, head)

    async def later(answered: Awaitable[Answered]) -> Answered:
        try:
            return await answered
        except Exception as error:
            return failed(error)

    try:
        answered = Entry(service, guard, head, find, failed).answer(body, arrived_s)
    except Exception as error:
        return failed(error)
    return answered if isinstance(answered, (bytes, Pending)) else later(answered)
