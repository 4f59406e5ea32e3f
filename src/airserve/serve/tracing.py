"""Spans of requests for OpenTelemetry: the request, and in it the queue and the work; the client's trace goes on.

Where they are sent, and which, is said by OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME). Attributes have the names of its semantic conventions for HTTP.
"""

from __future__ import annotations

import time
from typing import Any, final

from airserve.serve.configuration import ConfigurationError
from airserve.serve.protocols import _http
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._observing import observed
from airserve.timing import TimingError, parse_timing

FLUSH_MS = 1500  # at the end, for spans that were not sent yet
HEAD_BYTES = 2048  # of an answer, where its Server-Timing is
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
        """A request has been answered: its span, with those of its Server-Timing one after the other."""
        if head.path in PROBES:
            return
        ended_ns = time.time_ns()
        begun_ns = ended_ns - int(1e9 * (time.monotonic() - arrived_s))
        names = (b"traceparent", b"tracestate")
        given = {name.decode(): head.headers[name].decode("latin-1") for name in names if name in head.headers}
        attributes: dict[str, Any] = {
            "http.request.method": head.method,
            "url.path": head.path,
            "http.response.status_code": status,
        }
        if head.admitted is not None:
            attributes["airserve.tenant"] = head.admitted.tenant.name
        if head.path.startswith("/v2/models/"):
            attributes["airserve.model"] = head.path.split("/")[3]
        span = self._tracer.start_span(
            f"{head.method} {_route(head.path)}",
            self._context.extract(given),
            self._server,
            attributes,
            start_time=begun_ns,
        )
        if status >= 500:
            span.set_status(self._failed)
        within, at_ns = self._within(span), begun_ns
        try:
            entries = parse_timing(timing)[:2]  # what comes after was spent elsewhere
        except TimingError:
            entries = []
        for entry in entries:
            part = self._tracer.start_span(entry.name, within, start_time=at_ns)
            at_ns = min(at_ns + int(1e6 * entry.ms), ended_ns)
            part.end(at_ns)
        span.end(ended_ns)

    def traced(self, answer: _http.Answer, failed: _http.Failed) -> _http.Answer:
        """An `Answer` with a span for each request."""

        def tell(head: Head, status: int, response: bytes, arrived_s: float) -> None:
            header = response[:HEAD_BYTES].partition(b"\r\n\r\n")[0]
            timing = header.partition(b"\r\nServer-Timing: ")[2].partition(b"\r\n")[0]
            self.told(head, status, timing.decode("latin-1"), arrived_s)

        return observed(answer, failed, tell)


def _route(path: str) -> str:
    """A path without what differs between models, as spans are grouped by it.

    >>> _route("/v2/models/mlp/versions/3/infer"), _route("/v2")
    ('/v2/models/{model}/versions/{version}/infer', '/v2')
    """
    parts = path.split("/")
    if parts[1:3] == ["v2", "models"] and len(parts) > 3:
        parts[3] = "{model}"
        if parts[4:5] == ["versions"] and len(parts) > 5:
            parts[5] = "{version}"
    return "/".join(parts[:8])
