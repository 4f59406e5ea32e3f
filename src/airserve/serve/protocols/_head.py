"""A request's line and header, and when the bytes that it came as are sure to mean the same again."""

from __future__ import annotations

import re
from typing import Any, final

AGAIN_LIMIT_BYTES = 4096  # a longer header is parsed each time
LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *([0-9]+)\r\n")
ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
DIGITS = 9  # of a body's length; a longer body is the parser's


@final
class Head:
    """A request's line and header. `path` is without the query; `headers` have names in lower case."""

    __slots__ = (
        "admitted", "again", "back", "costly", "front", "headers", "length", "memo", "method", "old", "path", "query",
        "quick",
    )  # fmt: skip

    def __init__(self, method: str, url: bytes, headers: dict[bytes, bytes]) -> None:
        if not url.startswith(b"/"):
            url = _origin(url)
        path, _, query = url.partition(b"?")
        self.method = method
        self.path = path.decode("latin-1")
        self.query = query
        self.headers = headers
        self.length = 0  # of the body, where `again` is there
        self.again = b""  # the bytes that it came as, where the next request may begin with the same
        self.front = self.back = b""  # those before and after the digits of the length
        self.admitted: Any = None  # who sends it, where that is asked
        self.memo: Any = None  # for the protocol: what follows from this header
        # What answers the body that lies in data[a:b] of a further request: quick(data, a, b, arrived_s). It gives None
        # where that has to be asked in full.
        self.quick: Any = None
        self.old = False  # HTTP/1.0, which knows no chunks
        self.costly = False  # an answer too dear to be made for a client that has closed its side

    def asks_as(self, other: Head) -> bool:
        """Whether what was worked out for this header holds for the other: it is the same in all but its bytes."""
        return (self.method, self.path, self.query, self.headers) == (
            other.method,
            other.path,
            other.query,
            other.headers,
        )


def _origin(url: bytes) -> bytes:
    """A target in absolute form, which a server must take too (RFC 9112 3.2.2), without scheme and authority.

    >>> _origin(b"http://h:8000/v2?a=1"), _origin(b"HTTP://h?a"), _origin(b"*")
    (b'/v2?a=1', b'/?a', b'*')
    """
    if (found := ABSOLUTE.match(url)) is None:
        return url
    rest = url[found.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def repeatable(head: Head, data: bytes) -> Head | None:
    """The head with its bytes, which `data` begins with, where the same bytes are sure to mean the same again.

    The count of lines proves that the parser saw the header end where it ends here.
    """
    end = data.find(b"\r\n\r\n", 0, AGAIN_LIMIT_BYTES) + 4
    again = data[:end]
    headers = head.headers
    if (
        end < 4
        or headers.get(b"content-length") != str(head.length).encode()
        or b"transfer-encoding" in headers
        or b"expect" in headers
        or not again.count(b"\n") == again.count(b"\r\n") == again.count(b"\r") == len(headers) + 2
    ):
        return None
    if (found := LENGTH.search(again)) is None:
        return None
    head.again, head.front, head.back = again, again[: found.start(1)], again[found.end(1) :]
    return head


def another_length(head: Head, data: bytes, at: int) -> tuple[int, int]:
    """Where the body starts and how long it is, of a request that differs from the last in nothing but its length.

    JSON of other numbers has another length. (0, 0) where `data` does not hold such a header whole at `at`.
    """
    front, back = head.front, head.back
    if not data.startswith(front, at):
        return 0, 0
    at += len(front)
    end = data.find(b"\r", at, at + DIGITS + 1)
    digits = data[at:end] if end > 0 else b""
    if not digits.isdigit() or not data.startswith(back, end):
        return 0, 0
    return end + len(back), int(digits)
