"""Tensors in the messages of the Open Inference Protocol V2 over gRPC, raw or typed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from airserve.model import Array
from airserve.serve.protocols._messages import classes
from airserve.serve.served import Served
from airserve.tensors import DATATYPE, NUMPY, WireError, from_list, unpack
from airserve.wire import refuse_parameters

RAW_INPUT, RAW_OUTPUT = b"\x3a", b"\x32"  # tags: fields 7 and 6, length-delimited
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
M = classes()


def inputs_of(request: Any) -> dict[str, Array]:
    """The tensors of a request, raw or typed. Raises `WireError`."""
    raws = list(request.raw_input_contents)
    if raws and len(raws) != len(request.inputs):
        raise WireError(f"{len(request.inputs)} inputs came with {len(raws)} raw_input_contents; send one for each.")
    arrays: dict[str, Array] = {}
    for k, tensor in enumerate(request.inputs):
        name, shape = f"input {tensor.name!r}", list(tensor.shape)
        if tensor.datatype not in NUMPY:
            raise WireError(f"{name} has datatype {tensor.datatype[:20]!r}; choose one of {', '.join(NUMPY)}.")
        if any(axis < 0 for axis in shape):
            raise WireError(f"{name} has shape {str(shape)[:60]}; whole numbers from 0 are wanted.")
        refuse_parameters(name, tensor.parameters, "send the data")
        if tensor.name in arrays:
            raise WireError(f"{name} is given twice; send it once.")
        if raws:
            arrays[tensor.name] = unpack(tensor.datatype, raws[k], shape, name)
        elif (field := CONTENTS.get(tensor.datatype)) is None:
            raise WireError(f"{name} is {tensor.datatype}, which has no typed contents; send raw_input_contents.")
        else:
            held = list(getattr(tensor.contents, field))
            if tensor.datatype == "BYTES":
                arrays[tensor.name] = _strings(held, shape, name)
            else:
                arrays[tensor.name] = from_list(held, tensor.datatype, shape, name)
    return arrays


def _strings(held: list[bytes], shape: list[int], name: str) -> Array:
    if len(held) != math.prod(shape):
        raise WireError(f"{name} holds {len(held)} byte strings; its shape {shape} wants {math.prod(shape)}.")
    array = np.empty(len(held), dtype=object)
    array[:] = held
    return array.reshape(shape)


def header_of(served: Served, identity: str, wanted: list[int], outputs: list[Array]) -> bytes:
    tensors = [served.outputs[k] for k in wanted]
    described = [(t.name, DATATYPE[t.dtype], a.shape) for t, a in zip(tensors, outputs, strict=True)]
    return answer_of(served, identity, described)


def answer_of(served: Served, identity: str, outputs: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """An answer before its data: the fields of a message may follow one another, so the data are appended."""
    described = [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in outputs]
    response = M["ModelInferResponse"](
        model_name=served.name, model_version=served.version, id=identity, outputs=described
    )
    return bytes(response.SerializeToString())


def delimited(data: bytes, tag: bytes) -> tuple[bytes, bytes]:
    """Tag and length of a field of bytes, and the bytes."""
    length, left = bytearray(), len(data)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    length.append(left)
    return tag + bytes(length), data
