"""A request's line and header, and when the bytes that it came as are sure to mean the same again."""

from __future__ import annotations

from typing import Any, final

AGAIN_LIMIT_BYTES = 4096  # a longer header is parsed each time


@final
class Head:
    """A request's line and header. `path` is without the query; `headers` have names in lower case."""

    __slots__ = ("admitted", "again", "costly", "headers", "length", "memo", "method", "old", "path", "query")

    def __init__(self, method: str, url: bytes, headers: dict[bytes, bytes]) -> None:
        path, _, query = url.partition(b"?")
        self.method = method
        self.path = path.decode("latin-1")
        self.query = query
        self.headers = headers
        self.length = 0  # of the body, where `again` is there
        self.again = b""  # the bytes that it came as, where the next request may begin with the same
        self.admitted: Any = None  # who sends it, where that is asked
        self.memo: Any = None  # for the protocol: what follows from this header
        self.old = False  # HTTP/1.0, which knows no chunks
        self.costly = False  # an answer too dear to be made for a client that has closed its side


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
    head.again = again
    return head
