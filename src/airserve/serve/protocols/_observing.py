"""Somebody is told of each request once it has been answered: a log, or a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from airserve.serve.protocols import _http
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._pending import Pending
from airserve.serve.protocols._streaming import Stream

GONE = 499  # nginx's status for a client that closed its connection before it was answered
Tell = Callable[[Head, int, bytes, float], None]  # request, status, response, time.monotonic() when it arrived


def observed(answer: _http.Answer, failed: _http.Failed, tell: Tell) -> _http.Answer:
    """An `Answer` that tells of each request, with status 499 where its client has gone before the answer.

    A stream is told of at its end, with b"", for nobody keeps its bytes.
    """

    def said(head: Head, response: bytes, arrived_s: float) -> bytes:
        tell(head, int(response[9:12]), response, arrived_s)
        return response

    async def later(head: Head, waiting: Awaitable[bytes | Stream], arrived_s: float) -> bytes | Stream:
        try:
            response = await waiting
        except asyncio.CancelledError:  # the client has gone, and nothing is sent
            tell(head, GONE, b"", arrived_s)
            raise
        except Exception as error:
            response = failed(error)
        if isinstance(response, Stream):
            response.ended.append(lambda: tell(head, 200, b"", arrived_s))
            return response
        return said(head, response, arrived_s)

    def answered(head: Head, body: bytes, arrived_s: float) -> _http.Given:
        try:
            response = answer(head, body, arrived_s)
        except Exception as error:
            response = failed(error)
        if isinstance(response, Pending):
            return response.then(lambda whole: said(head, whole, arrived_s), lambda: tell(head, GONE, b"", arrived_s))
        return said(head, response, arrived_s) if isinstance(response, bytes) else later(head, response, arrived_s)

    return answered
