"""A place that is asked for texts: a connection for each request, whose answer may come in parts while it is made.

HTTP's chunks (RFC 9112 7.1). A text takes long beside the opening of a connection, and nothing is to wait behind it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator
from typing import final

from airserve.contract import Route
from airserve.serve.connecting import Answer, Rest, Upstream, UpstreamFailed, connecting, head_of
from airserve.tensors import WireError
from airserve.timing import AirBytes

LINE_LIMIT_BYTES = 1 << 20  # that a reader holds
SILENT_S = 60.0  # without a word in the middle of an answer, where its deadline has passed: nginx's proxy_read_timeout


@final
class Streams:
    """A place that a route leads to. Made inside a running loop."""

    def __init__(self, route: Route, connect_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._route, self._connect_s, self._tls = route, connect_s, tls
        self._asked: set[asyncio.StreamWriter] = set()  # no answer has begun there
        self._opening = 0

    @property
    def waiting(self) -> int:
        """Requests of which no answer has begun."""
        return len(self._asked) + self._opening

    async def exchange(self, request: bytes, deadline_s: float) -> tuple[Answer, AirBytes]:
        """The answer to a request, whole, or with what is still to come as its `rest`.

        Raises `TimeoutError` at the deadline, `OSError` where the place cannot be reached or the connection is lost.
        """
        reader, writer = await self._connected(deadline_s)
        self._asked.add(writer)
        rest: Rest | None = None
        try:
            async with asyncio.timeout(max(deadline_s - time.monotonic(), 0.0)):
                writer.write(request)
                status = 100
                while status < 200:
                    status, headers = head_of(await reader.readuntil(b"\r\n\r\n"))
                if headers.get("transfer-encoding", "").lower() == "chunked":
                    # A writer that nobody holds closes itself.
                    rest = Rest(_parts(reader, deadline_s), lambda: writer.transport.abort())
                    body = b""
                else:
                    body = await reader.readexactly(int(headers.get("content-length", "")))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise ConnectionResetError("the connection was closed") from None
        except (WireError, ValueError) as error:
            raise ConnectionAbortedError(str(error).rstrip(".")) from None
        finally:
            self._asked.discard(writer)
            if rest is None:
                writer.transport.abort()
        return Answer(status, headers, body, len(body), rest), AirBytes(0, (0, 0), (0, 0))

    async def ready(self, deadline_s: float) -> bool:
        """Whether the place says that it is ready. Raises as `exchange`."""
        return await Upstream(self._route, 1, self._connect_s, self._tls).ready(deadline_s)

    def abort(self, why: str) -> None:
        """End the connections on which no answer has begun."""
        for writer in self._asked:
            writer.transport.abort()

    def close(self) -> None:
        self.abort("")

    async def _connected(self, deadline_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        within_s = max(deadline_s - time.monotonic(), 0.0)
        self._opening += 1
        try:
            async with connecting(within_s, self._connect_s):
                route = self._route
                return await asyncio.open_connection(route.host, route.port, limit=LINE_LIMIT_BYTES, ssl=self._tls)
        finally:
            self._opening -= 1


async def _parts(reader: asyncio.StreamReader, deadline_s: float) -> AsyncGenerator[bytes]:
    """The chunks of an answer as they come. Raises `UpstreamFailed` where it ends before its end, or does not go on."""
    try:
        while part := await _part(reader, max(deadline_s - time.monotonic(), SILENT_S)):
            yield part
    except TimeoutError:
        raise UpstreamFailed(f"the site has not gone on with its answer for {SILENT_S:g} s or more.") from None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        raise UpstreamFailed("the site ended its answer before its end.") from None


async def _part(reader: asyncio.StreamReader, within_s: float) -> bytes:
    """The next chunk, empty at the end."""
    async with asyncio.timeout(within_s):
        size = int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16)
        return (await reader.readexactly(size + 2))[:-2] if size else b""
