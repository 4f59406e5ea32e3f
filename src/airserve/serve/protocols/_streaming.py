"""Answers that are sent while they are made: HTTP's chunks (RFC 9112 section 7.1) and server-sent events (WHATWG HTML
section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import final

EVENTS = "text/event-stream; charset=utf-8"
LAST = b"0\r\n\r\n"


@final
class Stream:
    """An answer with status 200 whose parts come later; `extra` is whole header lines.

    Whoever takes it closes it, however it ends; then what stands in `ended` is called.
    """

    __slots__ = ("ended", "extra", "media", "parts")

    def __init__(self, parts: AsyncGenerator[bytes], *, media: str = EVENTS, extra: str = "") -> None:
        self.parts = parts
        self.media = media
        self.extra = extra
        self.ended: list[Callable[[], None]] = []

    def head(self, chunked: bool) -> bytes:
        """Status line and header; HTTP/1.0 knows no chunks, and there the end of the connection is the answer's."""
        length = "Transfer-Encoding: chunked" if chunked else "Connection: close"
        return (
            f"HTTP/1.1 200 OK\r\nContent-Type: {self.media}\r\nCache-Control: no-store\r\n{self.extra}{length}\r\n\r\n"
        ).encode("latin-1")

    async def close(self) -> None:
        ended, self.ended = self.ended, []
        try:
            await self.parts.aclose()
        finally:
            for end in ended:
                end()


def chunk(part: bytes) -> bytes:
    """
    >>> chunk(b"eleven byte")
    b'b\\r\\neleven byte\\r\\n'
    """
    return b"%x\r\n%b\r\n" % (len(part), part)


def event(data: bytes) -> bytes:
    """A server-sent event; JSON holds no line ends.

    >>> event(b"[DONE]")
    b'data: [DONE]\\n\\n'
    """
    return b"data: " + data + b"\n\n"
