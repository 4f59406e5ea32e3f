"""Requests of one form: what follows from a header that a client sends again and again, worked out once.

In binary requests the JSON header is the form; in JSON requests it is all but the numbers between the brackets of
`data`. A request whose form is known needs no JSON parser but for those numbers, and no second check against the
signature, for neither names nor types nor shapes can differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from math import prod
from struct import Struct
from struct import error as struct_error
from typing import Any, Literal, final

import numpy as np
import orjson

from airserve import wire
from airserve.model import Array
from airserve.serve.protocols._answers import Template
from airserve.serve.protocols._pending import Pending
from airserve.serve.served import Served
from airserve.serve.service import Service

try:
    from simdjson import Parser
except ImportError:  # no wheel for this machine
    NewParser: Callable[[], Any] | None = None
else:
    NewParser = Parser

FORM_LIMIT_BYTES = 4096  # of a form's header
# numpy's kind -> simdjson's: double, signed and unsigned 64-bit
SIMD: dict[str, Literal["d", "i", "u"]] = {"f": "d", "i": "i", "u": "u"}
PACKED = {
    "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q",
}  # fmt: skip
DATA = b'"data":'


def hole(body: bytes) -> tuple[int, int] | None:
    """Start and end of the first flat list that `data` names, brackets included.

    >>> body = b'{"inputs":[{"name":"x","data": [1,2]}]}'
    >>> body[slice(*hole(body))]
    b'[1,2]'
    """
    at = body.find(DATA) + len(DATA)
    if at < len(DATA):
        return None
    if body[at : at + 1] == b" ":
        at += 1
    end = body.find(b"]", at) + 1
    return (at, end) if end and body[at : at + 1] == b"[" and body.find(b"[", at + 1, end) < 0 else None


def numbers_of(dtype: np.dtype[Any], count: int) -> Callable[[bytes], Array | None] | None:
    """What reads a list of `count` JSON numbers as this type; it gives None for what is not just that.

    >>> numbers_of(np.dtype("float32"), 3)(b"[1, 2.5, 3e0]"), numbers_of(np.dtype("int8"), 1)(b"[128]")
    (array([1. , 2.5, 3. ], dtype=float32), None)
    """
    if dtype.kind not in SIMD:
        return None
    packer = Struct(f"<{count}{PACKED[dtype.str[1:]]}")

    def plain(text: bytes) -> Array | None:
        if b"t" in text or b"f" in text:  # struct would take true for 1
            return None
        try:
            return np.frombuffer(packer.pack(*orjson.loads(text)), dtype)
        except (struct_error, OverflowError, orjson.JSONDecodeError, TypeError):
            return None

    if NewParser is None:
        return plain
    parser, simd = NewParser(), SIMD[dtype.kind]
    wide = np.dtype({"d": "f8", "i": "i8", "u": "u8"}[simd])
    bounds = None if simd == "d" else np.iinfo(dtype)
    context = copy_context()  # to enter it takes a tenth of what np.errstate takes
    context.run(np.seterr, over="ignore")

    def quick(text: bytes) -> Array | None:
        try:
            given = np.frombuffer(parser.parse(text).as_buffer(of_type=simd), wide)
        except (ValueError, TypeError, RuntimeError):
            return None
        if len(given) != count or (bounds and count and (given.min() < bounds.min or given.max() > bounds.max)):
            return None
        return context.run(given.astype, dtype, copy=False)

    return quick


@final
class Form:
    """The requests to a version of a model that differ in nothing but the data of their inputs."""

    __slots__ = (
        "_begins", "_binary", "_ends", "_failed", "_gatherer", "_header", "_inputs", "_numbers", "_rows", "_served",
        "_service", "_shape", "_template", "_wanted", "body_bytes",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        served: Served,
        request: wire.Request,
        inputs: list[tuple[Any, ...]],
        body_bytes: int,
        numbers: Callable[[bytes], Array | None] | None,
        around: tuple[bytes, bytes],
        failed: Callable[[Exception], bytes],
    ) -> None:
        self._service = service
        self._served = served
        self.body_bytes = body_bytes  # of a binary request
        self._inputs = inputs  # shape, dtype, offset in the body: in the order of the signature
        self._numbers = numbers
        self._begins, self._ends = around  # of a JSON request: what stands before and after its numbers
        self._failed = failed
        self._gatherer = service.gatherer(served)
        self._shape = next(iter(request.inputs.values())).shape
        self._rows = self._shape[0] if self._shape else 1
        wanted = request.requested
        self._wanted = [k for k, t in enumerate(served.outputs) if wanted is None or t.name in wanted]
        self._binary = [request.binary if wanted is None else wanted[served.outputs[k].name] for k in self._wanted]
        self._header = {"model_name": served.name, "model_version": served.version}
        if request.id:
            self._header["id"] = request.id
        self._template: Template | None = None

    def binary(self, body: bytes, arrived_s: float) -> bytes | Pending:
        """The answer to a binary request of this form."""
        return self._answer([np.ndarray(shape, dtype, body, at) for shape, dtype, at in self._inputs], arrived_s)

    def json(self, body: bytes, arrived_s: float) -> bytes | Pending | None:
        """The answer to a JSON request; None where it is not of this form, or its numbers need another look."""
        begins, ends = self._begins, self._ends
        if self._numbers is None or not (body.startswith(begins) and body.endswith(ends)):
            return None
        text = body[len(begins) - 1 : 1 - len(ends)]
        # The parser takes one list that ends where the form goes on; that no list is in it is seen here.
        array = self._numbers(text) if text.find(b"[", 1) < 0 else None
        return None if array is None else self._answer([array.reshape(self._shape)], arrived_s)

    def _answer(self, ordered: list[Array], arrived_s: float) -> bytes | Pending:
        if self._gatherer is not None and self._served.max_batch > 1:
            pending = Pending()
            self._gatherer.add(self, pending, ordered, self._rows, arrived_s)
            return pending
        outputs, queue_s, compute_s = self._service.compute(self._served, ordered, arrived_s)
        return self._written(outputs, queue_s, compute_s)

    def answered(self, waiting: Pending, outputs: list[Array], queue_s: float, compute_s: float) -> None:
        try:
            response = self._written(outputs, queue_s, compute_s)
        except Exception as error:
            response = self._failed(error)
        waiting.settle(response)

    def answered_alike(
        self, waiting: Sequence[Pending], outputs: list[Array], queues_s: Sequence[float], compute_s: float
    ) -> None:
        try:
            outputs, each = self._chosen(outputs), self._rows
            shapes = [(each, *array.shape[1:]) for array in outputs]
            responses = self._template_of(shapes).write_alike(outputs, queues_s, compute_s)
        except Exception as error:
            responses = [self._failed(error)] * len(waiting)
        for pending, response in zip(waiting, responses, strict=True):
            pending.settle(response)

    def failed(self, waiting: Pending, error: Exception) -> None:
        waiting.settle(self._failed(error))

    def _written(self, outputs: list[Array], queue_s: float, compute_s: float) -> bytes:
        outputs = self._chosen(outputs)
        return self._template_of([array.shape for array in outputs]).write(outputs, queue_s, compute_s)

    def _chosen(self, outputs: list[Array]) -> list[Array]:
        return outputs if len(self._wanted) == len(outputs) else [outputs[k] for k in self._wanted]

    def _template_of(self, shapes: list[tuple[int, ...]]) -> Template:
        template = self._template
        if template is None or template.shapes != shapes:
            tensors = [self._served.outputs[k] for k in self._wanted]
            template = Template(self._service.site, self._header, tensors, shapes, self._binary)
            self._template = template
        return template


def form_of(
    service: Service,
    served: Served,
    request: wire.Request,
    body: bytes,
    json_bytes: int | None,
    failed: Callable[[Exception], bytes],
) -> Form | None:
    """The form of a request that has been read and answered; None where the next may differ in more than its data."""
    if request.timeout_s is not None or any(
        t.dtype in ("bytes", "bfloat16") for t in (*served.inputs, *served.outputs)
    ):
        return None
    if not served.outputs or not request.inputs:
        return None
    if json_bytes is not None:
        at, found = json_bytes, {}
        for name, array in request.inputs.items():
            found[name] = (array.shape, array.dtype, at)
            at += array.nbytes
        if at != len(body):  # some of it is JSON
            return None
        inputs = [found[tensor.name] for tensor in served.inputs]
        return Form(service, served, request, inputs, at, None, (b"", b""), failed)
    if (found_hole := hole(body)) is None or len(request.inputs) != 1:
        return None
    a, b = found_hole
    header = orjson.loads(body[:a] + b"[]" + body[b:])
    (array,) = request.inputs.values()
    if header["inputs"][0].get("data") != [] or not array.size:  # what was found is not the input's data
        return None
    numbers = numbers_of(array.dtype, prod(array.shape))
    around = body[: a + 1], body[b - 1 :]
    return None if numbers is None else Form(service, served, request, [], 0, numbers, around, failed)
