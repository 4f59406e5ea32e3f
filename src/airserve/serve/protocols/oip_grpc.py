"""Open Inference Protocol V2 over gRPC, on a thread of its own, which leaves the loop of the other protocols alone.

A request comes as the bytes it has on the wire. Where it begins like an earlier one, all but the data of its tensors is
known, and no message is parsed or built; else it is read in full. A model that takes long is left to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, NamedTuple, final

import grpc
import numpy as np

from airserve.errors import UserError
from airserve.model import Array
from airserve.serve import recording
from airserve.serve.batching import DeadlineExceeded, Done, Overloaded
from airserve.serve.connecting import UpstreamFailed, UpstreamLate
from airserve.serve.guarding import Admitted, Allowance, Forbidden, Guard, TooMany, Unauthorized
from airserve.serve.protocols._calls import Answer, Call, Calls
from airserve.serve.protocols._contents import RAW_INPUT, RAW_OUTPUT, M, answer_of, delimited, header_of, inputs_of
from airserve.serve.protocols._control import METHODS, OPEN, Control, permit
from airserve.serve.protocols._entry import REQUEST_ID, TRACEPARENT
from airserve.serve.protocols._messages import SERVICE
from airserve.serve.served import BadInput, EngineFailed, Served
from airserve.serve.service import Fixed, Service, UnknownEndpoint
from airserve.tensors import DATATYPE, NUMPY, WireError, pack
from airserve.wire import BODY_LIMIT_BYTES, refuse_parameters

SPARE = 16  # calls above those that may wait for a core
KNOWN = 256  # keys that are remembered
STREAMED = b"\x12"  # tag of ModelStreamInferResponse.infer_response
FORMS = 16  # that are kept
OPEN_METHODS = frozenset(f"/{SERVICE}/{name}" for name in OPEN)
CODE: dict[type[Exception], grpc.StatusCode] = {
    Unauthorized: grpc.StatusCode.UNAUTHENTICATED, Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded: grpc.StatusCode.UNAVAILABLE,
    UpstreamFailed: grpc.StatusCode.UNAVAILABLE, UpstreamLate: grpc.StatusCode.DEADLINE_EXCEEDED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED, UnknownEndpoint: grpc.StatusCode.NOT_FOUND,
    BadInput: grpc.StatusCode.INVALID_ARGUMENT, WireError: grpc.StatusCode.INVALID_ARGUMENT,
    Fixed: grpc.StatusCode.FAILED_PRECONDITION, EngineFailed: grpc.StatusCode.INTERNAL,
    UserError: grpc.StatusCode.INVALID_ARGUMENT,
}  # fmt: skip
Told = Callable[[Call, str], None]
log = logging.getLogger(__name__)


async def listen(
    service: Service,
    host: str,
    port: int,
    *,
    share: bool = False,
    certificate: tuple[bytes, bytes] | None = None,
    guard: Guard | None = None,
    told: Told | None = None,
) -> Calls:
    """Answers for a Service at an address (port 0: any that is free). `certificate`: private key and chain, PEM.

    `told` hears of each request once it has been answered, with the name of its status.

    Raises `OSError` where the address is taken.
    """
    options = [
        ("grpc.so_reuseport", int(share)),
        ("grpc.max_receive_message_length", BODY_LIMIT_BYTES),
        ("grpc.max_send_message_length", -1),
    ]
    methods = _Methods(service, guard, asyncio.get_running_loop(), told)
    return Calls(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        {f"/{SERVICE}/{name}": methods.answer(name) for name in (*METHODS, "ModelInfer", "ModelStreamInfer")},
        (f"/{SERVICE}/ModelStreamInfer",),
        status_of,
        arrived=methods.arrived,
        most=service.workers.limit + SPARE,
        options=options,
        credentials=None if certificate is None else grpc.ssl_server_credentials([certificate]),
    )


class _Form(NamedTuple):
    """What requests that begin alike have in common."""

    generation: int
    begins: bytes
    size: int
    marks: list[tuple[int, bytes]]  # where the tag and length of a further tensor stand
    inputs: list[tuple[tuple[int, ...], np.dtype[Any], int]]  # in the order of the signature
    served: weakref.ref[Served]  # the model may be unloaded
    wanted: list[int]
    id: str
    within_s: float  # that the request gives itself
    answers: dict[tuple[tuple[int, ...], ...], bytes]  # by the outputs' shapes: all of the answer before the data


@final
class _Methods:
    """The calls of the service; each takes and gives the bytes of its messages."""

    def __init__(
        self, service: Service, guard: Guard | None, loop: asyncio.AbstractEventLoop, told: Told | None = None
    ) -> None:
        self._service, self._guard, self._loop, self._told = service, guard, loop, told
        self._control = Control(service)
        self._forms: list[_Form] = []
        self._last = b""
        self._known: dict[tuple[Any, Any], tuple[Admitted, Allowance]] = {}
        self._recorded = recording.requests.isEnabledFor(logging.INFO)
        self._observed = self._recorded or told is not None

    def answer(self, name: str) -> Answer:
        """What answers a method."""
        if name == "ModelStreamInfer":
            return self._streamed
        return self._infer if name == "ModelInfer" else self._called(name, METHODS[name])

    def arrived(self, call: Call) -> None:
        """A call has come, its message has not. Raises `Unauthorized`."""
        named(call)
        if self._observed:
            call.ended = lambda status, size: self._over(call, status, size)
        if self._guard is not None and call.method not in OPEN_METHODS:
            self._admit(self._guard, call)

    def _over(self, call: Call, status: str, size: int) -> None:
        """A request has been answered."""
        if self._recorded:
            recorded(call, status, size)
        if self._told is not None:
            self._told(call, status)

    def _streamed(self, call: Call, data: bytes) -> bytes | Future[bytes]:
        """One of the requests of a stream; one that fails does not end it."""

        def failed(error: Exception) -> bytes:
            code, sentence = status_of(error)
            if self._observed:
                self._over(call, code.name, 0)
            return bytes(M["ModelStreamInferResponse"](error_message=sentence).SerializeToString())

        def answered(answer: bytes) -> bytes:
            if self._observed:
                self._over(call, "OK", len(answer))
            return b"".join(delimited(answer, STREAMED))

        try:
            answer = self._infer(call, data)
        except Exception as error:
            return failed(error)
        if isinstance(answer, bytes):
            return answered(answer)

        async def later() -> bytes:
            try:
                return answered(await asyncio.wrap_future(answer))
            except Exception as error:
                return failed(error)

        return asyncio.run_coroutine_threadsafe(later(), self._loop)

    def _called(self, name: str, method: Callable[[Control, Any, Admitted | None], Any]) -> Answer:
        request_of = M[f"{name}Request"].FromString

        async def later(made: Coroutine[Any, Any, Any]) -> bytes:
            return bytes((await made).SerializeToString())

        def called(call: Call, data: bytes) -> bytes | Future[bytes]:
            if name not in OPEN:
                self._count(call)
            try:
                request = request_of(data)
            except Exception:  # as of `_read`
                raise WireError(f"the request is no {name}Request.") from None
            made = method(self._control, request, call.admitted)
            if isinstance(made, Coroutine):
                return asyncio.run_coroutine_threadsafe(later(made), self._loop)
            return bytes(made.SerializeToString())

        return called

    def _admit(self, guard: Guard, call: Call) -> None:
        """Who asks, looked up once for each key. Raises `Unauthorized`."""
        metadata = call.metadata
        given = metadata.get("authorization"), metadata.get("x-api-key")
        found = self._known.get(given)
        if found is None or found[0].until_s < time.monotonic():
            headers = {key.encode(): _bytes(value) for key, value in metadata.items()}
            admitted = guard.admit(headers, found[0] if found else None)
            if len(self._known) >= KNOWN:
                self._known.clear()
            found = self._known[given] = admitted, guard.allowance(admitted, self._service.worker, aside=True)
        call.admitted, call.allowance = found

    def _count(self, call: Call) -> None:
        """Counts a request against its tenant's rate, now: others may have been counted since it began to arrive."""
        admitted = call.admitted
        if admitted is None or self._guard is None:
            return
        if admitted.until_s < time.monotonic():  # a stream may outlive its token
            self._admit(self._guard, call)
        if call.allowance is not None:
            call.allowance.take()

    def _infer(self, call: Call, data: bytes) -> bytes | Future[bytes]:
        self._count(call)
        admitted, allowance = call.admitted, call.allowance
        if call.left_s() <= 0.0:
            raise DeadlineExceeded("the deadline passed before the work began.")
        generation = self._service.generation
        for form in self._forms:
            if data.startswith(form.begins) and len(data) == form.size and form.generation == generation:
                if all(data.startswith(mark, at) for at, mark in form.marks):
                    served = form.served()
                    if served is None:  # pragma: no cover (it is offered in this generation)
                        break
                    permit(admitted, served.name)
                    arrays = [np.ndarray(shape, dtype, data, at) for shape, dtype, at in form.inputs]
                    return self._computed(form, served, arrays, call)
                break
        return self._read(data, call, admitted, allowance)

    def _computed(self, form: _Form, served: Served, arrays: list[Array], call: Call) -> bytes | Future[bytes]:
        """The answer: here and now, or from the loop once a core is free."""
        service = self._service
        call.model = served.name
        if served.quick and service.workers.idle:
            return self._answered(form, served, service.compute(served, arrays, call.arrived_s, aside=True), call)
        allowance = call.allowance
        if allowance is not None:
            allowance.enter()
        deadline_s = self._deadline_s(call, form.within_s)
        future: Future[bytes] = Future()
        give_up: list[Callable[[], None]] = []

        def begin() -> None:
            try:
                give_up.append(service.begin(served, arrays, call.arrived_s, deadline_s, told))
            except Overloaded as error:
                told(error)

        def told(outcome: Done[list[Array]] | Exception) -> None:
            give_up.clear()
            if allowance is not None:
                allowance.leave()
            if not future.set_running_or_notify_cancel():
                return
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                future.set_result(self._answered(form, served, outcome, call))
            except Exception as error:
                future.set_exception(error)

        def cancelled() -> None:
            if give_up:
                give_up.pop()()
                if allowance is not None:
                    allowance.leave()

        future.add_done_callback(lambda one: self._loop.call_soon_threadsafe(cancelled) if one.cancelled() else None)
        self._loop.call_soon_threadsafe(begin)
        return future

    def _deadline_s(self, call: Call, within_s: float) -> float:
        """Of a request that gives itself so long: the earlier of its own and its call's, else the service's."""
        within_s = min(call.left_s(), within_s)
        return call.arrived_s + (within_s if math.isfinite(within_s) else self._service.deadline_s)

    def _answered(self, form: _Form, served: Served, done: tuple[list[Array], float, float], call: Call) -> bytes:
        outputs, *call.took_s = done
        outputs = [outputs[k] for k in form.wanted]
        shapes = tuple([array.shape for array in outputs])
        if (begun := form.answers.get(shapes)) is None:
            if len(form.answers) > FORMS:
                form.answers.clear()
            begun = form.answers[shapes] = header_of(served, form.id, form.wanted, outputs)
        raws = [pack(served.outputs[k], array) for k, array in zip(form.wanted, outputs, strict=True)]
        return begun + b"".join([part for raw in raws for part in delimited(raw, RAW_OUTPUT)])

    def _read(
        self, data: bytes, call: Call, admitted: Admitted | None, allowance: Allowance | None
    ) -> bytes | Future[bytes]:
        """A request read in full."""
        service, arrived_s = self._service, call.arrived_s
        try:
            request = M["ModelInferRequest"].FromString(data)
        except Exception:  # protobuf's DecodeError differs between its implementations
            raise WireError("the request is no ModelInferRequest.") from None
        call.model = request.model_name
        permit(admitted, request.model_name)
        served = service.endpoint(request.model_name, request.model_version)
        inputs = inputs_of(request)
        for output in request.outputs:
            refuse_parameters(f"output {output.name!r}", output.parameters, "ask for the tensor")
        requested = [output.name for output in request.outputs]
        served.check_requested(requested, served.outputs)
        wanted = [k for k, tensor in enumerate(served.outputs) if not requested or tensor.name in requested]
        asked_s = request.parameters["timeout"].int64_param / 1e6 if "timeout" in request.parameters else 0.0
        within_s = asked_s or math.inf
        if served.router is None:
            ordered = served.checked(inputs, aside=True)
            form = _Form(service.generation, b"", 0, [], [], weakref.ref(served), wanted, request.id, within_s, {})
            self._remember(data, request, form, served)
            return self._computed(form, served, ordered, call)
        if allowance is not None:
            allowance.enter()
        deadline_s = self._deadline_s(call, within_s)
        traceparent = _bytes(call.metadata.get("traceparent", b""))
        trace = f"traceparent: {traceparent.decode()}\r\n" if TRACEPARENT.fullmatch(traceparent) else ""

        async def later() -> bytes:
            try:
                reply = await service.infer(
                    served, inputs, requested=requested, arrived_s=arrived_s, deadline_s=deadline_s, trace=trace
                )
            finally:
                if allowance is not None:
                    allowance.leave()
            call.took_s = [timing.ms / 1e3 for timing in reply.timings[:2]]
            raws = [part for tensor, array in reply.outputs for part in delimited(pack(tensor, array), RAW_OUTPUT)]
            described = [(t.name, DATATYPE[t.dtype], a.shape) for t, a in reply.outputs]
            return answer_of(served, request.id, described) + b"".join(raws)

        return asyncio.run_coroutine_threadsafe(later(), self._loop)

    def _remember(self, data: bytes, request: Any, form: _Form, served: Served) -> None:
        """Keep the form of a request of numbers that began as the last one did."""
        raws = request.raw_input_contents
        tail = sum(len(part) for raw in raws for part in delimited(raw, RAW_INPUT))
        begins, at = data[: len(data) - tail], len(data) - tail
        twice, self._last = begins == self._last, begins
        if not twice or not raws or any(t.dtype == "bytes" for t in (*served.inputs, *served.outputs)):
            return
        try:
            head = M["ModelInferRequest"].FromString(begins)
        except Exception:  # as in `_read`: the data are not all at the end
            return
        head.raw_input_contents.extend(raws)
        if head != request or len(begins) > 4096:  # the data are not all at the end
            return
        marks, found = [], {}
        for tensor, raw in zip(request.inputs, raws, strict=True):
            mark = delimited(raw, RAW_INPUT)[0]
            marks.append((at, mark))
            at += len(mark)
            found[tensor.name] = (tuple(tensor.shape), NUMPY[tensor.datatype], at)
            at += len(raw)
        inputs = [found[tensor.name] for tensor in served.inputs]
        known = [f for f in self._forms if f.generation == form.generation and f.begins != begins][1 - FORMS :]
        self._forms = [*known, form._replace(begins=begins, size=len(data), marks=marks, inputs=inputs)]


def named(call: Call) -> None:
    """Gives a call's `x-request-id` back with its answer."""
    given = call.metadata.get("x-request-id")
    if given is not None and REQUEST_ID.fullmatch(identity := _bytes(given)):
        call.echo = (("x-request-id", identity.decode()),)


def recorded(call: Call, status: str, size: int) -> None:
    """Logs a call that has been answered."""
    names = _bytes(call.metadata.get("x-request-id", b"")), _bytes(call.metadata.get("traceparent", b""))
    recording.say("gRPC", call.method, status, call.arrived_s, size, *names, call.admitted)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """An exception as gRPC says it."""
    for kind in type(error).__mro__:
        if (code := CODE.get(kind)) is not None:
            return code, str(error)
    log.error("a request failed in a way that no error names", exc_info=error)
    return grpc.StatusCode.INTERNAL, f"the server failed ({type(error).__name__}); its log says where."


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "replace")
