"""Open Inference Protocol V2 over REST.

KServe open-inference-protocol `required_api.md`; Triton's binary data, model repository and statistics extensions.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from importlib.metadata import version as version_of
from typing import Any
from urllib.parse import unquote

import orjson

from airserve import wire
from airserve.model import ModelError, Tensor
from airserve.serve.batching import DeadlineExceeded, Overloaded
from airserve.serve.protocols import _http
from airserve.serve.routing import UpstreamFailed, UpstreamLate
from airserve.serve.service import BadInput, EngineFailed, Reply, Served, Service, UnknownEndpoint
from airserve.timing import format_timing


class NotFound(LookupError):
    """A path that the protocol does not have."""


class NotAllowed(LookupError):
    """A method that the path does not have."""


STATUS: dict[type[Exception], int] = {
    wire.TooLarge: 413, wire.UnknownEncoding: 415, wire.WireError: 400, BadInput: 400, ModelError: 400,
    UnknownEndpoint: 404, NotFound: 404, NotAllowed: 405, EngineFailed: 500, UpstreamFailed: 502,
    Overloaded: 503, DeadlineExceeded: 504, UpstreamLate: 504,
}  # fmt: skip
log = logging.getLogger(__name__)


async def listen(service: Service, host: str, port: int) -> _http.Listener:
    """Answers for a Service at an address (port 0: any that is free). Raises `OSError` where it is taken."""

    def answer(request: _http.Request) -> bytes | Awaitable[bytes]:
        method, respond = _find(request.path)
        if request.method != method:
            raise NotAllowed(f"{request.path[:80]} takes {method}, not {request.method}.")
        return respond(service, request)

    return await _http.listen(answer, error_response, host, port)


def error_response(error: Exception) -> bytes:
    """An exception as the protocol says it: {"error": SENTENCE} and a status."""
    for kind in type(error).__mro__:
        if (status := STATUS.get(kind)) is not None:
            return wire.error_response(status, str(error))
    log.error("a request failed in a way that no error names", exc_info=error)
    return wire.error_response(500, f"the server failed ({type(error).__name__}); its log says where.")


Respond = Callable[[Service, _http.Request], bytes | Awaitable[bytes]]


@lru_cache(1024)
def _find(path: str) -> tuple[str, Respond]:
    """The method that a path takes and what answers it; raises `NotFound`."""
    if (fixed := FIXED.get(path.rstrip("/"))) is not None:
        return fixed
    if path.startswith("/v2/models/"):
        return MODEL.get(path.rpartition("/")[2], ("GET", _describe))
    raise NotFound(f"{path[:80]} is not a path of the Open Inference Protocol V2.")


@lru_cache(1024)
def _model(path: str, last: str = "") -> str:
    """The name in /v2/models/NAME[/versions/1] before `last`; raises `NotFound` for another version.

    >>> _model("/v2/models/a%20b/versions/1/infer", "/infer")
    'a b'
    """
    name, _, version = path.removesuffix(last).removeprefix("/v2/models/").partition("/versions/")
    if version not in ("", wire.VERSION):
        raise NotFound(f"{unquote(name)[:80]} has no version {version[:20]!r}; every model has version {wire.VERSION}.")
    return unquote(name)


def _infer(service: Service, http: _http.Request) -> bytes | Awaitable[bytes]:
    model, body, headers = _model(http.path, "/infer"), http.body, http.headers
    if encoding := headers.get(b"content-encoding"):
        body = wire.decompress(body, encoding.decode("latin-1"))
    length = headers.get(b"inference-header-content-length")
    request = wire.parse_request(body, None if length is None else _whole(length))
    requested = request.requested or ()
    reply = service.inline(model, request.inputs, requested=requested, arrived_s=http.arrived_s)
    return _infer_later(service, model, request, http.arrived_s) if reply is None else _written(model, request, reply)


async def _infer_later(service: Service, model: str, request: wire.Request, arrived_s: float) -> bytes:
    deadline_s = None if request.timeout_s is None else arrived_s + request.timeout_s
    reply = await service.infer(
        model, request.inputs, requested=request.requested or (), arrived_s=arrived_s, deadline_s=deadline_s
    )
    return _written(model, request, reply)


def _written(model: str, request: wire.Request, reply: Reply) -> bytes:
    """The reply as it was wanted: which outputs, and each as binary or JSON."""
    wanted = request.requested
    timing = format_timing(reply.timings)
    return wire.infer_response(
        model,
        wire.VERSION,
        reply.outputs,
        binary=request.binary if wanted is None else {name for name, as_binary in wanted.items() if as_binary},
        request_id=request.id,
        server_timing=f"{timing}, {reply.onward}" if reply.onward else timing,
    )


def _live(service: Service, request: _http.Request) -> bytes:
    return _json({"live": True})


def _ready(service: Service, request: _http.Request) -> bytes:
    return _json({"ready": True})


def _server(service: Service, request: _http.Request) -> bytes:
    return _json(
        {"name": "airserve", "version": version_of("airserve"), "extensions": ["binary_tensor_data", "statistics"]}
    )


def _index(service: Service, request: _http.Request) -> bytes:
    return _json([{"name": n, "version": wire.VERSION, "state": "READY", "reason": ""} for n in service.endpoints])


def _model_ready(service: Service, request: _http.Request) -> bytes:
    return _json({"name": service.endpoint(_model(request.path, "/ready")).name, "ready": True})


async def _describe(service: Service, request: _http.Request) -> bytes:
    name = _model(request.path)
    signature = await service.signature(name)
    return _json(
        {
            "name": name,
            "versions": [wire.VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": _described(signature.inputs),
            "outputs": _described(signature.outputs),
        }
    )


def _described(tensors: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    return [{"name": t.name, "datatype": wire.DATATYPE[t.dtype], "shape": t.shape} for t in tensors]


def _all_statistics(service: Service, request: _http.Request) -> bytes:
    return _statistics(service.endpoints.values())


def _model_statistics(service: Service, request: _http.Request) -> bytes:
    return _statistics([service.endpoint(_model(request.path, "/stats"))])


def _statistics(endpoints: Iterable[Served]) -> bytes:
    """Triton's statistics, with the overruns of emulated sites; times in nanoseconds since the start."""
    models = []
    for served in endpoints:
        counts = served.counts
        queue_ns, compute_ns = int(1e9 * counts.queue_s), int(1e9 * counts.compute_s)
        models.append(
            {
                "name": served.name,
                "version": wire.VERSION,
                "inference_count": counts.answered,
                "execution_count": counts.answered,
                "inference_stats": {
                    "success": {"count": counts.answered, "ns": queue_ns + compute_ns},
                    "fail": {"count": counts.failed, "ns": 0},
                    "queue": {"count": counts.answered, "ns": queue_ns},
                    "compute_infer": {"count": counts.answered, "ns": compute_ns},
                },
                "padding": {"overruns": counts.overruns, "worst_overrun_ms": 1e3 * counts.worst_overrun_s},
            }
        )
    return _json({"model_stats": models})


def _json(value: Any) -> bytes:
    return wire.http_response(200, orjson.dumps(value))


def _whole(value: bytes) -> int:
    if not value.isdigit():
        raise wire.WireError(f"Inference-Header-Content-Length is {value[:20].decode('latin-1')!r}, not a number.")
    return int(value)


FIXED: dict[str, tuple[str, Respond]] = {
    "/v2": ("GET", _server),
    "/v2/health/live": ("GET", _live),
    "/v2/health/ready": ("GET", _ready),
    "/v2/models/stats": ("GET", _all_statistics),
    "/v2/repository/index": ("POST", _index),
}
MODEL: dict[str, tuple[str, Respond]] = {
    "infer": ("POST", _infer),
    "ready": ("GET", _model_ready),
    "stats": ("GET", _model_statistics),
}
