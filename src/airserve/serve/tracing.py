"""Spans of requests for OpenTelemetry: the request, and in it the queue and the work; the client's trace goes on.

Where they are sent, and which, is said by OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME). Attributes have the names of its semantic conventions for HTTP and RPC.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, final

from airserve.serve.configuration import ConfigurationError
from airserve.serve.guarding import Admitted
from airserve.serve.protocols import _http
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._observing import observed
from airserve.serve.protocols._openapi import document
from airserve.timing import TimingError, parse_timing

if TYPE_CHECKING:
    from airserve.serve.protocols._calls import Call  # which needs grpcio

KNOWN = 1024  # paths whose route is kept
FLUSH_MS = 1500  # at the end, for spans that were not sent yet
HEAD_BYTES = 2048  # of an answer, where its Server-Timing is
CALLED = frozenset(("ServerLive", "ServerReady"))  # as PROBES, over gRPC
STATUS_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# Those that are a server's fault, by OpenTelemetry's conventions for gRPC.
FAILED = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
PROBES = frozenset(("/v2/health/live", "/v2/health/ready", "/metrics"))  # asked all the time


@final
class Spans:
    """One worker's spans, sent by a thread. Raises `ConfigurationError` where OpenTelemetry is not installed."""

    def __init__(self, name: str, exporter: Any = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigurationError("spans need the extra `otel`: pip install 'airserve[otel]'.") from None
        self._provider = TracerProvider(resource=Resource.create({"airserve.site": name}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("airserve")
        self._context, self._within = TraceContextTextMapPropagator(), set_span_in_context
        self._server, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)

    def flush(self) -> None:
        """Send what is there, for a short time at most."""
        self._provider.force_flush(FLUSH_MS)

    def told(self, head: Head, status: int, timing: str, arrived_s: float) -> None:
        """An HTTP request has been answered: its span, with those of its Server-Timing one after the other."""
        if head.path in PROBES:
            return
        names = (b"traceparent", b"tracestate")
        given = {name.decode(): head.headers[name].decode("latin-1") for name in names if name in head.headers}
        attributes: dict[str, Any] = {
            "http.request.method": head.method,
            "url.path": head.path,
            "http.response.status_code": status,
        }
        model = head.path.split("/")[3] if head.path.startswith("/v2/models/") else ""
        try:
            entries = parse_timing(timing)[:2]  # what comes after was spent elsewhere
        except TimingError:
            entries = []
        parts = [(entry.name, entry.ms / 1e3) for entry in entries]
        name = f"{head.method} {_route(head.path)}".rstrip()
        self._tell(name, given, attributes, model, head.admitted, status >= 500, arrived_s, parts)

    def called(self, call: Call, status: str) -> None:
        """A gRPC request has been answered, alone or in a stream."""
        service, _, method = call.method[1:].partition("/")
        if method in CALLED:
            return
        names = ("traceparent", "tracestate")
        given = {name: value for name in names if isinstance(value := call.metadata.get(name), str)}
        code = STATUS_CODES.index(status) if status in STATUS_CODES else 2
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": code}
        parts = list(zip(("queue", "compute"), call.took_s, strict=False))
        name, failed = f"{service}/{method}", status in FAILED
        self._tell(name, given, attributes, call.model, call.admitted, failed, call.arrived_s, parts)

    def _tell(
        self,
        name: str,
        given: dict[str, str],
        attributes: dict[str, Any],
        model: str,
        admitted: Admitted | None,
        failed: bool,
        arrived_s: float,
        parts: Sequence[tuple[str, float]],
    ) -> None:
        """A span that ends now, in the trace that was `given`, and in it one for each of its parts, in seconds."""
        ended_ns = time.time_ns()
        begun_ns = ended_ns - int(1e9 * (time.monotonic() - arrived_s))
        if admitted is not None:
            attributes["airserve.tenant"] = admitted.tenant.name
        if model:
            attributes["airserve.model"] = model
        context = self._context.extract(given)
        span = self._tracer.start_span(name, context, self._server, attributes, start_time=begun_ns)
        if failed:
            span.set_status(self._failed)
        within, at_ns = self._within(span), begun_ns
        for part, took_s in parts:
            inner = self._tracer.start_span(part, within, start_time=at_ns)
            at_ns = min(at_ns + int(1e9 * took_s), ended_ns)
            inner.end(at_ns)
        span.end(ended_ns)

    def traced(self, answer: _http.Answer, failed: _http.Failed) -> _http.Answer:
        """An `Answer` with a span for each request."""

        def tell(head: Head, status: int, response: bytes, arrived_s: float) -> None:
            header = response[:HEAD_BYTES].partition(b"\r\n\r\n")[0]
            timing = header.partition(b"\r\nServer-Timing: ")[2].partition(b"\r\n")[0]
            self.told(head, status, timing.decode("latin-1"), arrived_s)

        return observed(answer, failed, tell)


@cache
def _paths() -> list[tuple[re.Pattern[str], str]]:
    """Those that are served, without names before those with."""
    paths = sorted(document()["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), path) for path in paths]


@lru_cache(KNOWN)
def _route(path: str) -> str:
    """A path as the API has it, by which spans are grouped; whoever asks for others adds no group.

    >>> _route("/v2/models/mlp/versions/3/infer"), _route("/v2"), _route("/v2/models/stats"), _route("/.git/config")
    ('/v2/models/{model}/versions/{version}/infer', '/v2', '/v2/models/stats', '')
    """
    return next((template for pattern, template in _paths() if pattern.fullmatch(path)), "")
