"""A stranger's ONNX file, looked at before the engine opens it: what it may read from disk besides itself.

onnx.proto3: tensors may name an external file (TensorProto.external_data). A name that leads out of the model's folder
would have the server read any file. The few fields that matter are read from the protocol buffer's wire format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from airserve.model import ModelError

# The fields that lead from a message to a tensor, by message: {field: message}.
LEADS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},  # 11: defaults of its attributes
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
DEPTH = 64


class _Damaged(ValueError):
    """Bytes that are no protocol buffer."""


def check_graph(path: Path) -> None:
    """Raises `ModelError` for a file that is not there or is no ONNX, or whose data lie outside its folder."""
    try:
        data = memoryview(path.read_bytes())
        wanted = set(_locations(data, "model", 0))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); see that it is there.") from None
    except (_Damaged, UnicodeDecodeError):
        raise ModelError(f"{path.name} cannot be opened as an ONNX model: it is no protocol buffer.") from None
    folder = path.parent.resolve()
    for location in sorted(wanted):
        if not (folder / location).resolve().is_relative_to(folder):
            raise ModelError(f"{path.name} keeps data in {location[:80]!r}, outside its folder; that is not read.")


def _locations(data: memoryview, kind: str, depth: int) -> Iterator[str]:
    """The external files that the tensors of a message name."""
    if depth > DEPTH:
        raise _Damaged
    leads = LEADS[kind]
    for field, value in _fields(data):
        found = leads.get(field)
        if found is None:
            continue
        if found != "entry":
            yield from _locations(value, found, depth + 1)
        else:
            entry = dict(_fields(value))
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b"")).decode()


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields of a message that hold bytes."""
    at, size = 0, len(data)
    while at < size:
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(data, at)
                if at + length > size:
                    raise _Damaged
                yield tag >> 3, data[at : at + length]
                at += length
            case 5:
                at += 4
            case _:
                raise _Damaged


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise _Damaged
