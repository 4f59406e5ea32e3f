"""Lists of JSON numbers as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from struct import error as struct_error
from typing import Any

import numpy as np
import orjson

from airserve.model import Array
from airserve.serve.gathering import Unread

try:
    from airserve.serve.protocols._decimals import read as read_lists
except ImportError:  # installed where there is no C compiler
    compiled: Callable[[Sequence[bytes], Array], bool] | None = None
else:
    compiled = read_lists

WIDE = {"f": "f8", "i": "i8", "u": "u8"}  # by numpy's kinds
PACKED = {
    "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q",
}  # fmt: skip


Texts = Sequence[bytes]
ReadNumbers = Callable[[Texts], Array]


def numbers_of(dtype: np.dtype[Any], count: int) -> ReadNumbers | None:
    """What reads texts, each a list of `count` JSON numbers, as one array of this type with a single axis.

    None for a type that is no number. Reading raises `Unread` where a text is not just that, or has a number that the
    type does not hold.

    >>> read = numbers_of(np.dtype("float32"), 3)
    >>> read([b"[1, 2.5, 3e0]", b"[4,5,6]"])
    array([1. , 2.5, 3. , 4. , 5. , 6. ], dtype=float32)
    """
    if dtype.kind not in WIDE:
        return None
    return _plain(dtype, count) if compiled is None else _quick(compiled, dtype, count)


def _quick(read_lists: Callable[[Sequence[bytes], Array], bool], dtype: np.dtype[Any], count: int) -> ReadNumbers:
    """Without a Python object for each number."""
    given = dtype if dtype.str[1:] in ("f4", "f8") else np.dtype(WIDE[dtype.kind])
    bounds = np.iinfo(dtype) if dtype.kind != "f" and dtype != given else None

    def read(texts: Texts) -> Array:
        found = np.empty(len(texts) * count, given)
        if not read_lists(texts, found):
            raise Unread
        if bounds and len(found) and (found.min() < bounds.min or found.max() > bounds.max):
            raise Unread
        if given == dtype:
            return found
        with np.errstate(over="ignore"):
            return found.astype(dtype)

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
