"""Tensors as the Open Inference Protocol V2 carries them: datatypes, raw bytes, and lists of JSON.

KServe open-inference-protocol, `required_api.md`; the binary tensor data extension of Triton.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from airserve.model import BFLOAT16, Array, Tensor

DATATYPE = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64", "bytes": "BYTES",
}  # fmt: skip
DTYPE = {datatype: dtype for dtype, datatype in DATATYPE.items()}
OWN: dict[str, Any] = {"bytes": object, "bfloat16": BFLOAT16}  # those that numpy does not know by their name
NUMPY: dict[str, np.dtype[Any]] = {datatype: np.dtype(OWN.get(dtype, dtype)) for datatype, dtype in DTYPE.items()}


class WireError(ValueError):
    """Bytes that are not the protocol; the message is one sentence."""


def pack(tensor: Tensor, array: Array) -> bytes:
    """An array as the raw bytes of the binary extension: little endian, row major; BYTES with 4-byte lengths.

    >>> pack(Tensor("s", "bytes", (-1,)), np.array([b"ab", "c"], dtype=object))
    b'\\x02\\x00\\x00\\x00ab\\x01\\x00\\x00\\x00c'
    """
    if tensor.dtype == "bytes":
        strings = [_string(item) for item in array.ravel()]
        return b"".join([part for string in strings for part in (struct.pack("<I", len(string)), string)])
    if array.dtype != NUMPY[DATATYPE[tensor.dtype]]:
        raise WireError(f"{tensor.name} is {array.dtype}; it should be {tensor.dtype}.")
    return array.tobytes()


def unpack(datatype: str, raw: bytes | memoryview, shape: Sequence[int], name: str = "the tensor") -> Array:
    """The inverse of `pack`; raises `WireError` where bytes and shape disagree."""
    count = 1
    for axis in shape:
        count *= axis
    if datatype == "BYTES":
        strings, at = [], 0
        while at < len(raw):
            if at + 4 > len(raw) or at + 4 + (size := int.from_bytes(raw[at : at + 4], "little")) > len(raw):
                raise WireError(
                    f"{name}: a BYTES element passes the end of the data; each is a 4-byte length and bytes."
                )
            strings.append(bytes(raw[at + 4 : at + 4 + size]))
            at += 4 + size
        if len(strings) != count:
            raise WireError(f"{name} holds {len(strings)} byte strings; its shape {list(shape)} wants {count}.")
        array = np.empty(count, dtype=object)
        array[:] = strings
        return _shaped(array, shape, name)
    dtype = NUMPY[datatype]
    if len(raw) != count * dtype.itemsize:
        raise WireError(
            f"{name} holds {len(raw)} bytes; {datatype} of shape {list(shape)} takes {count * dtype.itemsize}."
        )
    return _shaped(np.frombuffer(raw, dtype), shape, name)


def listed(tensor: Tensor, array: Array) -> Any:
    """An array as JSON carries it: flat, row major, as other servers of the protocol send it."""
    if tensor.dtype == "bfloat16":
        raise WireError(f"output {tensor.name!r} is BF16, which JSON cannot carry; ask for it with binary_data true.")
    if tensor.dtype != "bytes":
        return np.ascontiguousarray(array).reshape(-1)
    try:
        return [_string(item).decode() for item in array.ravel()]
    except UnicodeDecodeError:
        raise WireError(f"output {tensor.name!r} is not UTF-8; ask for it with binary_data true.") from None


ACCEPTS = {"b": "b", "u": "iu", "i": "iu", "f": "fiu"}  # kind of the type wanted -> kinds of numbers that JSON may give


def from_list(data: list[Any], datatype: str, shape: list[int], named: str) -> Array:
    """JSON data, flat or nested, as an array; no number is rounded or wrapped to make it fit."""
    dtype = NUMPY[datatype]
    if datatype == "BF16":
        raise WireError(f"{named} is BF16, which JSON cannot carry; send it as binary data.")
    try:
        if datatype == "BYTES":
            array = np.array(data, dtype=object)
            if not all(isinstance(item, str) for item in array.ravel()):
                raise WireError(f"{named} is BYTES: in JSON its data are strings.")
            array = np.array([item.encode() for item in array.ravel()] + [None], dtype=object)[:-1]
        else:
            given = np.asarray(data)
            if dtype.kind in "ui" and given.dtype.kind == "f" and _all_int(data):
                given = np.array(data, dtype)  # 0 beside 2**64 - 1, for which numpy chooses float64
            if dtype.kind != "b" and _has_bool(data):  # numpy would take true for 1
                raise WireError(f"{named} is {datatype}; its data hold true or false.")
            if given.size and given.dtype.kind not in ACCEPTS[dtype.kind]:
                raise WireError(f"{named} is {datatype}; its data hold something else ({given.dtype}).")
            if dtype.kind in "ui" and given.size:
                bounds = np.iinfo(dtype)
                if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
                    raise WireError(f"{named} is {datatype}; its data pass {bounds.min} to {bounds.max}.")
            with np.errstate(over="ignore"):
                array = given.astype(dtype)
    except (ValueError, OverflowError, TypeError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"{named}: its data are not a regular array of {datatype}: {str(error)[:80]}.") from None
    count = 1
    for axis in shape:
        count *= axis
    if array.size != count:
        raise WireError(f"{named} holds {array.size} values; its shape {shape} wants {count}.")
    return _shaped(array, shape, named)


def _shaped(array: Array, shape: Sequence[int], name: str) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:  # too many axes, or axes beyond an address beside one of 0
        raise WireError(f"{name} has shape {str(list(shape))[:60]}, which no array has.") from None


def _has_bool(data: list[Any]) -> bool:
    kinds = set(map(type, data))
    return bool in kinds or (list in kinds and any(_has_bool(item) for item in data if isinstance(item, list)))


def _all_int(data: list[Any]) -> bool:
    return all(_all_int(item) if isinstance(item, list) else type(item) is int for item in data)


def _string(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()
