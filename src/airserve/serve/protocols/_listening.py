"""A socket that listens for HTTP/1.1, its connections, and their end."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import final

from airserve.serve.protocols._http import Answer, Connection, Failed, Welcome
from airserve.serve.protocols._limits import Bodies, Limits


async def listen(
    answer: Answer,
    failed: Failed,
    host: str,
    port: int,
    *,
    limits: Limits | None = None,
    share: bool = False,
    tls: ssl.SSLContext | None = None,
    welcome: Welcome | None = None,
) -> Listener:
    """Answers at an address (port 0: any that is free). Raises `OSError` where it is taken.

    With `share` other processes may listen at the same address, and the kernel deals connections out (SO_REUSEPORT).
    A body that `welcome` does not want is read and not kept.
    """
    connections: set[Connection] = set()
    within, bodies = limits or Limits(), Bodies()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(answer, failed, connections, within, bodies, welcome),
        host,
        port,
        reuse_port=share or None,
        ssl=tls,
    )
    return Listener(server, connections)


@final
class Listener:
    """A listening socket and its connections."""

    def __init__(self, server: asyncio.Server, connections: set[Connection]) -> None:
        self._server = server
        self._connections = connections
        self.port: int = server.sockets[0].getsockname()[1]
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def drain(self, within_s: float) -> None:
        """Takes no new connections, answers what has come, and closes; what is not answered in time is cut."""
        self._server.close()
        self._sweeper.cancel()
        for connection in list(self._connections):
            connection.drain()
        until_s = time.monotonic() + within_s
        while self._connections and time.monotonic() < until_s:
            await asyncio.sleep(0.005)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)

    async def _sweep(self) -> None:
        """Ends connections whose clients are too slow: one timer for all of them, none for a request."""
        while True:
            await asyncio.sleep(0.5)
            now_s = time.monotonic()
            for connection in list(self._connections):
                connection.sweep(now_s)
