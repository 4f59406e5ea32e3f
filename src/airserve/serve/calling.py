"""A place that is asked over gRPC, as `connecting` asks one over HTTP: calls side by side on one channel.

A call's message goes and comes as the bytes it has on the wire.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple, final

import grpc
import grpc.aio

from airserve.contract import Route
from airserve.serve.connecting import Answer, Refused
from airserve.serve.protocols._calls import PUSHBACK
from airserve.serve.protocols._messages import SERVICE
from airserve.timing import AirBytes
from airserve.wire import BODY_LIMIT_BYTES

UNKNOWN = AirBytes(0, (0, 0), (0, 0))  # where a call lies on its connection is gRPC's own
READY = b"\x08\x01"  # ServerReadyResponse(ready=True)
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a channel opened anew is a connection opened anew
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", BODY_LIMIT_BYTES),
    ("grpc.enable_retries", 0),  # a Balancer's, who knows other places
]
Metadata = tuple[tuple[str, str | bytes], ...]


class Asking(NamedTuple):
    """A unary call: its method, its message, and what goes beside it; `tell`: the time that is left for it too."""

    method: str
    message: bytes
    metadata: Metadata = ()
    tell: bool = False


class Said(Refused):
    """A place ended a call with a status of its own."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


@final
class Caller:
    """A place that a route leads to, over gRPC. Made inside a running loop."""

    def __init__(self, route: Route, trusted: bytes | None = None, *, secure: bool = False) -> None:
        host = f"[{route.host}]" if ":" in route.host else route.host
        self._target = f"{host}:{route.port}"
        self._credentials = grpc.ssl_channel_credentials(trusted) if secure else None
        self._calls: set[Any] = set()
        self._ending: set[asyncio.Future[None]] = set()
        self._why = ""
        self._channel = self._open()

    @property
    def waiting(self) -> int:
        """Calls without an answer yet."""
        return len(self._calls)

    async def exchange(self, request: Asking, deadline_s: float) -> tuple[Answer, AirBytes]:
        """The answer to a call; its status is 200, or 503 where the place says that it has no room.

        Raises `Said`, `TimeoutError` at the deadline, `ConnectionError` where the place cannot be reached or is lost.
        """
        left_s = max(deadline_s - time.monotonic(), 0.0)
        within_s = left_s if request.tell else None
        call = self._channel.unary_unary(request.method)(request.message, timeout=within_s, metadata=request.metadata)
        self._calls.add(call)
        try:
            async with asyncio.timeout(left_s):
                body = await call
        except grpc.aio.AioRpcError as error:
            return self._failed(error, deadline_s)
        except asyncio.CancelledError:
            if call in self._calls:  # whoever asked is gone
                raise
            raise ConnectionAbortedError(self._why) from None
        finally:
            self._calls.discard(call)
        return Answer(200, {}, body, len(body)), UNKNOWN

    async def ready(self, deadline_s: float) -> bool:
        """Whether the place says that it is ready. Raises as `exchange`."""
        try:
            answer, _ = await self.exchange(Asking(f"/{SERVICE}/ServerReady", b""), deadline_s)
        except Said:
            return False
        return answer.body == READY

    def abort(self, why: str) -> None:
        """End the channel, for another; what waits on it fails with `ConnectionAbortedError`."""
        self._why, calls, self._calls = why, self._calls, set()
        for call in calls:
            call.cancel()
        self.close()
        self._channel = self._open()

    def close(self) -> None:
        ending = asyncio.ensure_future(self._channel.close())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is not None:
            return grpc.aio.secure_channel(self._target, self._credentials, OPTIONS)
        return grpc.aio.insecure_channel(self._target, OPTIONS)

    def _failed(self, error: grpc.aio.AioRpcError, deadline_s: float) -> tuple[Answer, AirBytes]:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() >= deadline_s - 1e-3:
            raise TimeoutError from None
        if code is not grpc.StatusCode.UNAVAILABLE:
            raise Said(code, details) from None
        if PUSHBACK[0][0] not in dict(error.trailing_metadata() or ()):
            raise ConnectionResetError("the connection was lost or could not be made") from None  # gRPC names addresses
        return Answer(503, {"details": details}, b"", 0), UNKNOWN
