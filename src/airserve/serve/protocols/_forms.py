"""Requests of one form: what follows from a header that a client sends again and again, worked out once.

In binary requests the JSON header is the form; in JSON requests it is all but the numbers between the brackets of
`data`. A request whose form is known needs no JSON parser but for those numbers, and no second check against the
signature, for neither names nor types nor shapes can differ. Of requests that are computed together the data are joined
first and become one array.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, final

import numpy as np
import orjson

from airserve import wire
from airserve.model import Array
from airserve.serve.batching import Done
from airserve.serve.gathering import Unread
from airserve.serve.protocols._answers import Template
from airserve.serve.protocols._numbers import ReadNumbers, numbers_of
from airserve.serve.protocols._pending import Pending
from airserve.serve.served import Served
from airserve.serve.service import Service

FORM_LIMIT_BYTES = 4096  # of a form's header
COPIED_BYTES = 64 << 10  # of a body whose tensors are copied out of it; of a longer one they are views
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


class Layout(ABC):
    """Where the data of a form's requests lie in a body, and how they become arrays."""

    __slots__ = ()

    @abstractmethod
    def given(self, data: bytes, a: int, b: int) -> Any:
        """What differs in the body that lies in data[a:b]; None where it is not of this form, or needs another look."""

    @abstractmethod
    def inputs(self, given: Sequence[Any]) -> list[Array]:
        """As a Gatherer asks for them. Raises `Unread`."""

    @abstractmethod
    def body(self, given: Any) -> bytes:
        """The body of which this was given to `inputs`."""


@final
class Binary(Layout):
    """Bodies that begin with the same JSON header; raw tensors come after it."""

    __slots__ = ("_begins", "_inputs", "_size")

    def __init__(self, served: Served, arrays: Mapping[str, Array], begins: bytes) -> None:
        self._begins = begins
        at, found = 0, {}
        for name, array in arrays.items():
            found[name] = (array.shape, array.dtype, at, at + array.nbytes)
            at += array.nbytes
        self._inputs = [found[tensor.name] for tensor in served.inputs]
        self._size = len(begins) + at

    def given(self, data: bytes, a: int, b: int) -> bytes | memoryview | None:
        begins = self._begins
        if b - a != self._size or not data.startswith(begins, a):
            return None
        return (data if b - a <= COPIED_BYTES else memoryview(data))[a + len(begins) : b]

    def inputs(self, given: Sequence[bytes | memoryview]) -> list[Array]:
        count, arrays = len(given), []
        for shape, dtype, start, end in self._inputs:
            parts = given if len(self._inputs) == 1 else [one[start:end] for one in given]
            whole = parts[0] if count == 1 else b"".join(parts)
            arrays.append(np.ndarray(_stacked(shape, count), dtype, whole))
        return arrays

    def body(self, given: bytes | memoryview) -> bytes:
        return self._begins + given


@final
class Json(Layout):
    """Bodies that are the same text around the numbers of their one input. They are read when they are computed."""

    __slots__ = ("_begins", "_ends", "_read", "_shape")

    def __init__(self, shape: tuple[int, ...], around: tuple[bytes, bytes], read: ReadNumbers) -> None:
        self._begins, self._ends = around
        self._shape, self._read = shape, read

    def given(self, data: bytes, a: int, b: int) -> bytes | None:
        begins, ends = self._begins, self._ends
        if not (data.startswith(begins, a) and data.endswith(ends, a, b)):
            return None
        return data[a + len(begins) - 1 : b + 1 - len(ends)]  # whether it is a list of numbers is seen by who reads it

    def inputs(self, given: Sequence[bytes]) -> list[Array]:
        return [self._read(given).reshape(_stacked(self._shape, len(given)))]

    def body(self, given: bytes) -> bytes:
        return self._begins[:-1] + given + self._ends[1:]


@final
class Form:
    """The requests to a version of a model that differ in nothing but the data of their inputs."""

    __slots__ = (
        "_binary", "_failed", "_gatherer", "_given", "_header", "_json_bytes", "_layout", "_rows",
        "_served", "_service", "_template", "_wanted", "inputs",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        served: Served,
        request: wire.Request,
        json_bytes: int | None,
        layout: Layout,
        failed: Callable[[Exception], bytes],
    ) -> None:
        self._service = service
        self._json_bytes = json_bytes
        self._layout, self._given = layout, layout.given
        self.inputs = layout.inputs  # as a Gatherer asks for them
        self._served = served
        self._failed = failed
        self._gatherer = service.gatherer(served)
        shape = next(iter(request.inputs.values())).shape
        self._rows = shape[0] if shape else 1
        wanted = request.requested
        self._wanted = [k for k, t in enumerate(served.outputs) if wanted is None or t.name in wanted]
        self._binary = [request.binary if wanted is None else wanted[served.outputs[k].name] for k in self._wanted]
        self._header = {"model_name": served.name, "model_version": served.version}
        if request.id:
            self._header["id"] = request.id
        self._template: Template | None = None

    def ask(
        self, data: bytes, a: int, b: int, arrived_s: float, within_s: float | None = None
    ) -> bytes | Pending | None:
        """The answer to the body that lies in data[a:b]; None where it is not of this form, or needs another look."""
        if (given := self._given(data, a, b)) is None:
            return None
        if not (self._served.quick and self._service.workers.idle):
            return self._begun(given, arrived_s, within_s)
        if self._gatherer is not None and self._served.max_batch > 1:
            pending = Pending()
            self._gatherer.add(self, pending, given, self._rows, arrived_s)
            return pending
        try:
            inputs = self.inputs((given,))
        except Unread:
            return None
        return self._computed(inputs, arrived_s)

    def _begun(self, given: Any, arrived_s: float, within_s: float | None) -> Pending | None:
        """What takes its time, or has to wait for a core. Raises `Overloaded`."""
        try:
            inputs = self.inputs((given,))
        except Unread:
            return None
        pending = Pending()

        def told(outcome: Done[list[Array]] | Exception) -> None:
            if isinstance(outcome, Exception):
                pending.settle(self._failed(outcome))
            else:
                self.answered(pending, *outcome)

        deadline_s = arrived_s + (self._service.deadline_s if within_s is None else within_s)
        pending.give_up = self._service.begin(self._served, inputs, arrived_s, deadline_s, told)
        return pending

    def _computed(self, inputs: list[Array], arrived_s: float) -> bytes:
        outputs, queue_s, compute_s = self._service.compute(self._served, inputs, arrived_s)
        return self._written(outputs, queue_s, compute_s)

    def unread(self, waiting: Pending, given: Any, arrived_s: float) -> None:
        """Reads it in full, as the first of its form was."""
        try:
            request = wire.parse_request(self._layout.body(given), self._json_bytes)
            response = self._computed(self._served.check(request.inputs), arrived_s)
        except Exception as error:
            response = self._failed(error)
        waiting.settle(response)

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


def _stacked(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    return shape if count == 1 else (count * shape[0], *shape[1:])


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
    if not served.outputs or not request.inputs or served.router is not None:
        return None
    if json_bytes is not None:
        if json_bytes + sum(array.nbytes for array in request.inputs.values()) != len(body):  # some of it is JSON
            return None
        layout: Layout = Binary(served, request.inputs, body[:json_bytes])
        return Form(service, served, request, json_bytes, layout, failed)
    if (found_hole := hole(body)) is None or len(request.inputs) != 1:
        return None
    a, b = found_hole
    header = orjson.loads(body[:a] + b"[]" + body[b:])
    (array,) = request.inputs.values()
    if header["inputs"][0].get("data") != [] or not array.size:  # what was found is not the input's data
        return None
    read = numbers_of(array.dtype, prod(array.shape))
    around = body[: a + 1], body[b - 1 :]
    if read is None:
        return None
    return Form(service, served, request, None, Json(array.shape, around, read), failed)
