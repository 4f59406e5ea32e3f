"""Lists of JSON numbers as arrays, without a Python object for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from struct import Struct
from struct import error as struct_error
from typing import Any, Literal

import numpy as np
import orjson

from airserve.model import Array
from airserve.serve.gathering import Unread

try:
    from simdjson import Parser
except ImportError:  # no wheel for this machine
    NewParser: Callable[[], Any] | None = None
else:
    NewParser = Parser

# numpy's kind -> simdjson's: double, signed and unsigned 64-bit
SIMD: dict[str, Literal["d", "i", "u"]] = {"f": "d", "i": "i", "u": "u"}
WIDE = {"d": "f8", "i": "i8", "u": "u8"}
PACKED = {
    "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q",
}  # fmt: skip


Texts = Sequence[bytes]
ReadNumbers = Callable[[Texts], Array]


def numbers_of(dtype: np.dtype[Any], count: int) -> ReadNumbers | None:
    """What reads texts, each a list of `count` JSON numbers, as one array of this type with a single axis.

    None for a type that is no number. Reading raises `Unread` where a text is not just that, or has a number that the
    type does not hold; it does not see a list in a list.

    >>> read = numbers_of(np.dtype("float32"), 3)
    >>> read([b"[1, 2.5, 3e0]", b"[4,5,6]"])
    array([1. , 2.5, 3. , 4. , 5. , 6. ], dtype=float32)
    """
    if dtype.kind not in SIMD:
        return None
    return _plain(dtype, count) if NewParser is None else _quick(NewParser(), dtype, count)


def _quick(parser: Any, dtype: np.dtype[Any], count: int) -> ReadNumbers:
    """By simdjson, which gives 64-bit numbers."""
    simd, parse = SIMD[dtype.kind], parser.parse
    wide, size_bytes = np.dtype(WIDE[simd]), 8 * count
    bounds = None if simd == "d" else np.iinfo(dtype)
    context = copy_context()  # to enter it takes a tenth of what np.errstate takes
    context.run(np.seterr, over="ignore")

    def read(texts: Texts) -> Array:
        try:
            parts = [memoryview(parse(text).as_buffer(of_type=simd)) for text in texts]
        except (ValueError, TypeError, RuntimeError):
            raise Unread from None
        if [part for part in parts if part.nbytes != size_bytes]:
            raise Unread
        given = np.frombuffer(b"".join(parts), wide)
        if bounds and len(given) and (given.min() < bounds.min or given.max() > bounds.max):
            raise Unread
        found: Array = context.run(given.astype, dtype, copy=False)
        return found

    return read


def _plain(dtype: np.dtype[Any], count: int) -> ReadNumbers:
    pack = Struct(f"<{count}{PACKED[dtype.str[1:]]}").pack

    def read(texts: Texts) -> Array:
        try:
            if any(b"t" in text or b"f" in text for text in texts):  # struct would take true for 1
                raise Unread
            return np.frombuffer(b"".join([pack(*orjson.loads(text)) for text in texts]), dtype)
        except (struct_error, OverflowError, orjson.JSONDecodeError, TypeError):
            raise Unread from None

    return read
