"""Open Inference Protocol V2 over gRPC, on grpcio's threads, which leave the loop of the other protocols alone.

A request comes as the bytes it has on the wire. Where it begins like an earlier one, all but the data of its tensors is
known, and no message is parsed or built; else it is read in full.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as version_of
from typing import Any, NamedTuple, final

import grpc
import numpy as np

from airserve.errors import UserError
from airserve.model import Array
from airserve.serve.batching import DeadlineExceeded, Overloaded
from airserve.serve.connecting import UpstreamFailed, UpstreamLate
from airserve.serve.guarding import Admitted, Forbidden, Guard, TooMany, Unauthorized
from airserve.serve.protocols._contents import RAW_INPUT, RAW_OUTPUT, M, answer_of, delimited, header_of, inputs_of
from airserve.serve.protocols._messages import SERVICE
from airserve.serve.served import BadInput, EngineFailed, Served
from airserve.serve.service import Fixed, Service, UnknownEndpoint
from airserve.tensors import DATATYPE, NUMPY, WireError, pack
from airserve.wire import BODY_LIMIT_BYTES

THREADS = 16  # for all but inference
FORMS = 16  # that are kept
CODE: dict[type[Exception], grpc.StatusCode] = {
    Unauthorized: grpc.StatusCode.UNAUTHENTICATED, Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded: grpc.StatusCode.UNAVAILABLE,
    UpstreamFailed: grpc.StatusCode.UNAVAILABLE, UpstreamLate: grpc.StatusCode.DEADLINE_EXCEEDED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED, UnknownEndpoint: grpc.StatusCode.NOT_FOUND,
    BadInput: grpc.StatusCode.INVALID_ARGUMENT, WireError: grpc.StatusCode.INVALID_ARGUMENT,
    Fixed: grpc.StatusCode.FAILED_PRECONDITION, EngineFailed: grpc.StatusCode.INTERNAL,
    UserError: grpc.StatusCode.INVALID_ARGUMENT,
}  # fmt: skip
OPEN = ("ServerLive", "ServerReady")
log = logging.getLogger(__name__)


async def listen(
    service: Service,
    host: str,
    port: int,
    *,
    share: bool = False,
    certificate: tuple[bytes, bytes] | None = None,
    guard: Guard | None = None,
) -> Listener:
    """Answers for a Service at an address (port 0: any that is free). `certificate`: private key and chain, PEM.

    Raises `OSError` where the address is taken.
    """
    options = [
        ("grpc.so_reuseport", int(share)),
        ("grpc.max_receive_message_length", BODY_LIMIT_BYTES),
        ("grpc.max_send_message_length", -1),
    ]
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="grpc")
    server = grpc.server(pool, options=options, maximum_concurrent_rpcs=service.workers.limit + THREADS)
    methods = _Methods(service, guard, asyncio.get_running_loop())
    handlers = {name: grpc.unary_unary_rpc_method_handler(methods.handler(name)) for name in (*METHODS, "ModelInfer")}
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(methods.stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificate is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([certificate]))
    except RuntimeError:
        raise OSError(f"{address} cannot be had for gRPC") from None
    server.start()
    return Listener(server, bound)


@final
class Listener:
    """A listening gRPC server."""

    def __init__(self, server: Any, port: int) -> None:
        self._server, self.port = server, port

    async def drain(self, within_s: float) -> None:
        """Takes no new calls, finishes those under way, and ends."""
        stopped = self._server.stop(within_s)
        await asyncio.to_thread(stopped.wait, within_s + 1)


class _Form(NamedTuple):
    """What requests that begin alike have in common."""

    generation: int
    begins: bytes
    size: int
    marks: list[tuple[int, bytes]]  # where the tag and length of a further tensor stand
    inputs: list[tuple[tuple[int, ...], np.dtype[Any], int]]  # in the order of the signature
    served: Served
    wanted: list[int]
    id: str
    answers: dict[tuple[tuple[int, ...], ...], bytes]  # by the outputs' shapes: all of the answer before the data


@final
class _Methods:
    """The calls of the service; each takes and gives the bytes of its messages."""

    def __init__(self, service: Service, guard: Guard | None, loop: asyncio.AbstractEventLoop) -> None:
        self._service, self._guard, self._loop = service, guard, loop
        self._one = threading.Lock()  # the worker has one core: a request that is computed here waits for another
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="grpc-infer")
        self._forms: list[_Form] = []
        self._last = b""

    def handler(self, name: str) -> Callable[[bytes, Any], bytes]:
        """What answers a method: errors become the status that the protocol has for them."""
        call = self._infer if name == "ModelInfer" else self._called(name, METHODS[name])

        def handle(data: bytes, context: Any) -> bytes:
            try:
                return call(data, context)
            except Exception as error:
                context.abort(*_status(error))
                raise  # abort has raised already

        if name == "ModelInfer":
            # A worker has one core: more threads than one only pass it back and forth, at a third of a call's cost.
            handle.experimental_thread_pool = self._engine  # type: ignore[attr-defined]
        return handle

    def stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Requests one after another; one that fails does not end the stream."""
        for data in requests:
            try:
                response = M["ModelInferResponse"].FromString(self._infer(data, context))
                yield M["ModelStreamInferResponse"](infer_response=response).SerializeToString()
            except Exception as error:
                yield M["ModelStreamInferResponse"](error_message=_status(error)[1]).SerializeToString()

    def _called(self, name: str, call: Callable[[_Methods, Any, Admitted | None], Any]) -> Any:
        request_of = M[f"{name}Request"].FromString

        def called(data: bytes, context: Any) -> bytes:
            admitted = self._admit(context) if name not in OPEN else None
            return bytes(call(self, request_of(data), admitted).SerializeToString())

        return called

    def _admit(self, context: Any) -> Admitted | None:
        if self._guard is None:
            return None
        admitted = self._guard.admit({key.encode(): _bytes(value) for key, value in context.invocation_metadata()})
        if (allowance := self._guard.allowance(admitted, self._service.worker)) is not None:
            allowance.take(time.monotonic())
            allowance.enter()
            context.add_callback(allowance.leave)
        return admitted

    def _infer(self, data: bytes, context: Any) -> bytes:
        arrived_s = time.monotonic()
        admitted = self._admit(context)
        if context.time_remaining() == 0.0 or not context.is_active():
            raise DeadlineExceeded("the deadline passed before the work began.")
        service = self._service
        if service.workers.idle:
            for form in self._forms:
                if data.startswith(form.begins) and len(data) == form.size and form.generation == service.generation:
                    if all(data.startswith(mark, at) for at, mark in form.marks):
                        _permit(admitted, form.served.name)
                        arrays = [np.ndarray(shape, dtype, data, at) for shape, dtype, at in form.inputs]
                        return self._quick(form, arrays, arrived_s)
                    break
        return self._read(data, context, admitted, arrived_s)

    def _quick(self, form: _Form, arrays: list[Array], arrived_s: float) -> bytes:
        with self._one:
            outputs, _, _ = self._service.compute(form.served, arrays, arrived_s, aside=True)
        outputs = [outputs[k] for k in form.wanted]
        shapes = tuple([array.shape for array in outputs])
        if (begun := form.answers.get(shapes)) is None:
            if len(form.answers) > FORMS:
                form.answers.clear()
            begun = form.answers[shapes] = header_of(form.served, form.id, form.wanted, outputs)
        return begun + b"".join([part for array in outputs for part in delimited(array.tobytes(), RAW_OUTPUT)])

    def _read(self, data: bytes, context: Any, admitted: Admitted | None, arrived_s: float) -> bytes:
        """A request read in full."""
        service = self._service
        try:
            request = M["ModelInferRequest"].FromString(data)
        except Exception:  # protobuf's DecodeError differs between its implementations
            raise WireError("the request is no ModelInferRequest.") from None
        _permit(admitted, request.model_name)
        served = service.endpoint(request.model_name, request.model_version)
        inputs = inputs_of(request)
        requested = [output.name for output in request.outputs]
        served.check_requested(requested, served.outputs)
        wanted = [k for k, tensor in enumerate(served.outputs) if not requested or tensor.name in requested]
        left_s = context.time_remaining()
        asked = request.parameters["timeout"].int64_param / 1e6 if "timeout" in request.parameters else None
        within_s = [s for s in (left_s, asked) if s]
        deadline_s = arrived_s + min(within_s, default=service.deadline_s)
        if served.quick and service.workers.idle:
            try:
                ordered = served.check(inputs)
            except BadInput:
                with self._one:
                    served.aside.failed("refused")
                raise
            form = _Form(service.generation, b"", 0, [], [], served, wanted, request.id, {})
            answer = self._quick(form, ordered, arrived_s)
            self._remember(data, request, form)
            return answer
        call = service.infer(served, inputs, requested=requested, arrived_s=arrived_s, deadline_s=deadline_s)
        reply = asyncio.run_coroutine_threadsafe(call, self._loop).result()
        raws = [part for tensor, array in reply.outputs for part in delimited(pack(tensor, array), RAW_OUTPUT)]
        response = answer_of(served, request.id, [(t.name, DATATYPE[t.dtype], a.shape) for t, a in reply.outputs])
        return bytes(response) + b"".join(raws)

    def _remember(self, data: bytes, request: Any, form: _Form) -> None:
        """Keep the form of a request of numbers that began as the last one did."""
        raws, served = request.raw_input_contents, form.served
        tail = sum(len(part) for raw in raws for part in delimited(raw, RAW_INPUT))
        begins, at = data[: len(data) - tail], len(data) - tail
        twice, self._last = begins == self._last, begins
        if not twice or not raws or any(t.dtype == "bytes" for t in (*served.inputs, *served.outputs)):
            return
        head = M["ModelInferRequest"].FromString(begins)
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

    # the other methods

    def server_live(self, request: Any, admitted: Admitted | None) -> Any:
        return M["ServerLiveResponse"](live=True)

    def server_ready(self, request: Any, admitted: Admitted | None) -> Any:
        return M["ServerReadyResponse"](ready=True)

    def model_ready(self, request: Any, admitted: Admitted | None) -> Any:
        _permit(admitted, request.name)
        try:
            self._service.endpoint(request.name, request.version)
        except UnknownEndpoint:
            return M["ModelReadyResponse"](ready=False)
        return M["ModelReadyResponse"](ready=True)

    def server_metadata(self, request: Any, admitted: Admitted | None) -> Any:
        extensions = ["binary_tensor_data", "model_repository", "statistics"]
        return M["ServerMetadataResponse"](name="airserve", version=version_of("airserve"), extensions=extensions)

    def model_metadata(self, request: Any, admitted: Admitted | None) -> Any:
        _permit(admitted, request.name)
        served = self._service.endpoint(request.name, request.version)
        signature = asyncio.run_coroutine_threadsafe(self._service.signature(served), self._loop).result()
        tensor_of = M["ModelMetadataResponse.TensorMetadata"]

        def described(tensors: Any) -> list[Any]:
            return [tensor_of(name=t.name, datatype=DATATYPE[t.dtype], shape=t.shape) for t in tensors]

        return M["ModelMetadataResponse"](
            name=served.name,
            versions=self._service.versions(served.name),
            platform="onnxruntime_onnx",
            inputs=described(signature.inputs),
            outputs=described(signature.outputs),
        )

    def model_statistics(self, request: Any, admitted: Admitted | None) -> Any:
        if request.name:
            _permit(admitted, request.name)
            found = [self._service.endpoint(request.name, request.version)]
        else:
            found = [served for served in self._service.served if _may(admitted, served.name)]
        made = []
        for served in found:
            c = served.table.counted(served.slot)
            queue_ns, compute_ns = int(1e9 * c.queue_s), int(1e9 * c.compute_s)
            stats = M["InferStatistics"](
                success={"count": c.answered, "ns": queue_ns + compute_ns},
                fail={"count": c.failed},
                queue={"count": c.answered, "ns": queue_ns},
                compute_infer={"count": c.answered, "ns": compute_ns},
            )
            made.append(
                M["ModelStatistics"](
                    name=served.name,
                    version=served.version,
                    inference_count=c.rows,
                    execution_count=c.runs,
                    inference_stats=stats,
                )
            )
        return M["ModelStatisticsResponse"](model_stats=made)

    def repository_index(self, request: Any, admitted: Admitted | None) -> Any:
        keys = ("name", "version", "state", "reason")
        rows = [row for row in self._service.index() if (row[2] == "READY" or not request.ready)]
        return M["RepositoryIndexResponse"](
            models=[dict(zip(keys, row, strict=True)) for row in rows if _may(admitted, row[0])]
        )

    def repository_model_load(self, request: Any, admitted: Admitted | None) -> Any:
        return self._change("load", request, admitted)

    def repository_model_unload(self, request: Any, admitted: Admitted | None) -> Any:
        return self._change("unload", request, admitted)

    def _change(self, what: Any, request: Any, admitted: Admitted | None) -> Any:
        if admitted is not None and not admitted.tenant.admin:
            raise Forbidden(f"{admitted.tenant.name} may not load or unload models; that takes a key of an admin.")
        change = self._service.change(what, request.model_name)
        asyncio.run_coroutine_threadsafe(change, self._loop).result()
        return M[f"RepositoryModel{what.title()}Response"]()


METHODS: dict[str, Callable[[_Methods, Any, Admitted | None], Any]] = {
    "ServerLive": _Methods.server_live, "ServerReady": _Methods.server_ready, "ModelReady": _Methods.model_ready,
    "ServerMetadata": _Methods.server_metadata, "ModelMetadata": _Methods.model_metadata,
    "ModelStatistics": _Methods.model_statistics, "RepositoryIndex": _Methods.repository_index,
    "RepositoryModelLoad": _Methods.repository_model_load, "RepositoryModelUnload": _Methods.repository_model_unload,
}  # fmt: skip


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    for kind in type(error).__mro__:
        if (code := CODE.get(kind)) is not None:
            return code, str(error)
    log.error("a request failed in a way that no error names", exc_info=error)
    return grpc.StatusCode.INTERNAL, f"the server failed ({type(error).__name__}); its log says where."


def _may(admitted: Admitted | None, model: str) -> bool:
    return admitted is None or not admitted.tenant.models or model in admitted.tenant.models


def _permit(admitted: Admitted | None, model: str) -> None:
    if admitted is not None and not _may(admitted, model):
        raise Forbidden(f"{admitted.tenant.name} may not use {model[:80]!r}.")


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "replace")
