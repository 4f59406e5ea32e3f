"""Open Inference Protocol V2 over REST.

KServe open-inference-protocol `required_api.md`; Triton's binary data, model repository and statistics extensions.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, final
from urllib.parse import unquote

import orjson

from airserve import wire
from airserve.model import ModelError, Tensor
from airserve.serve.batching import DeadlineExceeded, Overloaded
from airserve.serve.connecting import UpstreamFailed, UpstreamLate
from airserve.serve.exposing import MEDIA, exposition
from airserve.serve.guarding import Forbidden, Guard, TooMany, Unauthorized
from airserve.serve.protocols import _beside, _http, _listening, _pages
from airserve.serve.protocols._entry import (
    Ask,
    Entry,
    Given,
    NotAllowed,
    NotFound,
    Respond,
    Route,
    allowed,
    lines_of,
    method_of,
    timeout_s,
    trace,
    welcomes,
)
from airserve.serve.protocols._forms import FORM_LIMIT_BYTES, Form, form_of, hole
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._limits import Limits
from airserve.serve.served import BadInput, EngineFailed, Served
from airserve.serve.service import Fixed, Reply, Service, UnknownEndpoint
from airserve.tensors import DATATYPE, WireError
from airserve.timing import format_timing

STATUS: dict[type[Exception], int] = {
    wire.TooLarge: 413, wire.UnknownEncoding: 415, WireError: 400, BadInput: 400, ModelError: 400, Fixed: 400,
    UnknownEndpoint: 404, NotFound: 404, NotAllowed: 405, EngineFailed: 500, UpstreamFailed: 502,
    Unauthorized: 401, Forbidden: 403, TooMany: 429, Overloaded: 503, DeadlineExceeded: 504, UpstreamLate: 504,
}  # fmt: skip
FORMS = 64  # that are kept of a version of a model, for all connections
log = logging.getLogger(__name__)


async def listen(
    service: Service,
    host: str,
    port: int,
    *,
    limits: Limits | None = None,
    share: bool = False,
    tls: ssl.SSLContext | None = None,
    guard: Guard | None = None,
    wrap: Callable[[_http.Answer, _http.Failed], _http.Answer] | None = None,
) -> _listening.Listener:
    """Answers for a Service at an address (port 0: any that is free). Raises `OSError` where it is taken.

    Protocols that share the port (`_beside`) are answered too. `wrap` may stand between requests and answers, as a log
    does.
    """

    def answer(head: Head, body: bytes, arrived_s: float) -> Given:
        entry = head.memo
        if entry is None or entry.generation != service.generation or arrived_s > entry.until_s:
            if (other := _beside.beside(head.path)) is not None:
                return _beside.answer(other, service, guard, head, body, arrived_s)
            entry = head.memo = Entry(service, guard, head, find, error_response)
            head.quick = entry.quick if wrap is None and not entry.echoes else None
        return entry.answer(body, arrived_s)  # type: ignore[no-any-return]

    def find(head: Head) -> Route:
        method, route = _find(head.path)
        method_of(head, (method,))
        return route

    whole = wrap(answer, error_response) if wrap else answer
    welcome = welcomes(guard) if guard is not None else None
    return await _listening.listen(
        whole, error_response, host, port, limits=limits, share=share, tls=tls, welcome=welcome
    )


def error_response(error: Exception) -> bytes:
    """An exception as the protocol says it: {"error": SENTENCE} and a status."""
    for kind in type(error).__mro__:
        if (status := STATUS.get(kind)) is not None:
            return wire.error_response(status, str(error), extra=lines_of(error))
    log.error("a request failed in a way that no error names", exc_info=error)
    return wire.error_response(500, f"the server failed ({type(error).__name__}); its log says where.")


@lru_cache(1024)
def _find(path: str) -> tuple[str, Route]:
    """The method that a path takes and its route; raises `NotFound`."""
    if (fixed := FIXED.get(path.rstrip("/"))) is not None:
        return fixed
    if path.startswith("/v2/models/"):
        return MODEL.get(path.rpartition("/")[2], ("GET", _describe))
    if path.startswith("/v2/repository/models/") and path.endswith(("/load", "/unload")):
        return "POST", _change
    raise NotFound(f"{path[:80]} is not a path of the Open Inference Protocol V2.")


def _model(service: Service, path: str, last: str = "") -> Served:
    """The model of /v2/models/NAME[/versions/VERSION] before `last`. Raises `UnknownEndpoint`."""
    name, _, version = path.removesuffix(last).removeprefix("/v2/models/").partition("/versions/")
    return service.endpoint(unquote(name), unquote(version))


@final
class _Infer:
    """Answers infer requests with one header."""

    __slots__ = (
        "_encoding", "_forms", "_json_bytes", "_last", "_served", "_service", "_timeout_s", "_trace", "ask"
    )  # fmt: skip

    def __init__(self, service: Service, head: Head) -> None:
        self._service = service
        self._served = _model(service, head.path, "/infer")
        self._encoding = head.headers.get(b"content-encoding", b"").decode("latin-1")
        length = head.headers.get(b"inference-header-content-length")
        self._json_bytes = None if length is None else _whole(length)
        self._timeout_s, self._trace = timeout_s(head), trace(head)
        self._forms: dict[bytes, Form] = self._served.forms
        self.ask: Ask | None = None  # of the form of the last request, where it may be asked without more ado
        self._last = b""

    def __call__(self, body: bytes, arrived_s: float) -> Given:
        if self._encoding:
            body = wire.decompress(body, self._encoding)
        service, served = self._service, self._served
        if self._timeout_s is not None and time.monotonic() > arrived_s + self._timeout_s:
            served.meter.failed("late")
            raise DeadlineExceeded(f"the deadline of {1e3 * self._timeout_s:g} ms passed before the work began.")
        if (text := self._text(body)) and (form := self._forms.get(text)) is not None:
            if not self._encoding and self._timeout_s is None:
                self.ask = form.ask
            if (answer := form.ask(body, 0, len(body), arrived_s, self._timeout_s)) is not None:
                return answer
        asked = wire.parse_request(body, self._json_bytes)
        requested = asked.requested or ()
        reply = service.inline(served, asked.inputs, requested=requested, arrived_s=arrived_s)
        if reply is None:
            return self._later(text, asked, body, arrived_s)
        self._remember(text, asked, body)
        return _written(served, asked, reply)

    def _text(self, body: bytes) -> bytes:
        """What requests of one form have in common; b"" where that cannot be seen."""
        if self._json_bytes is not None:
            return body[: self._json_bytes]
        if (place := hole(body)) is None:
            return b""
        a, b = place
        return body[: a + 1] + body[b - 1 :]

    def _remember(self, text: bytes, asked: wire.Request, body: bytes) -> None:
        """Keep the form of a request that came twice; one with an id of its own does not come again."""
        twice, self._last = text == self._last, text
        if not text or not twice or text in self._forms or len(text) > FORM_LIMIT_BYTES:
            return
        if (form := form_of(self._service, self._served, asked, body, self._json_bytes, error_response)) is not None:
            if len(self._forms) >= FORMS:
                self._forms.clear()
            self._forms[text] = form

    async def _later(self, text: bytes, asked: wire.Request, body: bytes, arrived_s: float) -> bytes:
        within_s = [s for s in (asked.timeout_s, self._timeout_s) if s is not None]
        generation = self._service.generation
        reply = await self._service.infer(
            self._served,
            asked.inputs,
            requested=asked.requested or (),
            arrived_s=arrived_s,
            deadline_s=arrived_s + min(within_s) if within_s else None,
            trace=self._trace,
        )
        if generation == self._service.generation:  # else it may have been unloaded
            self._remember(text, asked, body)
        return _written(self._served, asked, reply)


def _written(served: Served, request: wire.Request, reply: Reply) -> bytes:
    """The reply as it was wanted: which outputs, and each as binary or JSON."""
    wanted = request.requested
    timing = format_timing(reply.timings)
    return wire.infer_response(
        served.name,
        served.version,
        reply.outputs,
        binary=request.binary if wanted is None else {name for name, as_binary in wanted.items() if as_binary},
        request_id=request.id,
        server_timing=f"{timing}, {reply.onward}" if reply.onward else timing,
    )


def _always(value: Any) -> Route:
    answer = wire.http_response(200, orjson.dumps(value))
    return lambda service, head: lambda body, arrived_s: answer


def _server(service: Service, head: Head) -> Respond:
    from importlib.metadata import version as version_of  # brings the parsers of e-mail

    extensions = ["binary_tensor_data", "model_repository", "statistics"]
    return _now(lambda: {"name": "airserve", "version": version_of("airserve"), "extensions": extensions})


def _index(service: Service, head: Head) -> Respond:
    def index(body: bytes, arrived_s: float) -> bytes:
        ready = _object(body).get("ready") is True
        rows = [row for row in service.index() if (row[2] == "READY" or not ready) and allowed(head, row[0])]
        return _json([dict(zip(("name", "version", "state", "reason"), row, strict=True)) for row in rows])

    return index


def _change(service: Service, head: Head) -> Respond:
    """/v2/repository/models/NAME/load or unload."""
    name, _, what = head.path.removeprefix("/v2/repository/models/").rpartition("/")

    async def change(body: bytes) -> bytes:
        parameters = _object(body).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise WireError("parameters is not an object of names and values.")
        wire.refuse_to_load_with(parameters)
        await service.change("load" if what == "load" else "unload", unquote(name))
        return _json({})

    return lambda body, arrived_s: change(body)


def _batching(service: Service, head: Head) -> Respond:
    """/v2/models/NAME[/versions/VERSION]/config: how requests are computed together, told and set."""
    served = _model(service, head.path, "/config")

    def batching(body: bytes, arrived_s: float) -> bytes:
        given = _object(body)
        if unknown := set(given) - {"max_batch", "max_wait_ms"}:
            raise WireError(f"config has no {min(unknown)[:40]!r}; it has max_batch and max_wait_ms.")
        if given:
            if head.admitted is not None and not head.admitted.tenant.admin:
                raise Forbidden(f"{head.admitted.tenant.name} may not set that; it takes a key of an admin.")
            rows, wait_ms = given.get("max_batch", 0), given.get("max_wait_ms", 1e3 * served.max_wait_s)
            if type(rows) is not int or not 0 <= rows <= 1024:
                raise WireError(
                    f"max_batch is {str(rows)[:20]}; a whole number to 1024 is wanted, 0 for what was found."
                )
            if type(wait_ms) not in (int, float) or not 0 <= wait_ms <= 1000:
                raise WireError(f"max_wait_ms is {str(wait_ms)[:20]}; milliseconds to 1000 are wanted.")
            served.batch(rows if "max_batch" in given else served.max_batch, wait_ms / 1e3)
        return _json({"max_batch": served.max_batch, "max_wait_ms": 1e3 * served.max_wait_s})

    return batching


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, empty where there is none. Raises `WireError`."""
    try:
        found = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise WireError(f"the JSON is malformed: {str(error)[:100]}.") from None
    if not isinstance(found, dict):
        raise WireError("the JSON is not an object.")
    return found


def _model_ready(service: Service, head: Head) -> Respond:
    served = _model(service, head.path, "/ready")
    return _now(lambda: {"name": served.name, "version": served.version, "ready": True})


def _describe(service: Service, head: Head) -> Respond:
    served = _model(service, head.path)

    async def describe() -> bytes:
        signature = await service.signature(served)
        return _json(
            {
                "name": served.name,
                "versions": service.versions(served.name),
                "platform": served.platform,
                "inputs": _described(signature.inputs),
                "outputs": _described(signature.outputs),
            }
        )

    return lambda body, arrived_s: describe()


def _described(tensors: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    return [{"name": t.name, "datatype": DATATYPE[t.dtype], "shape": t.shape} for t in tensors]


def _all_statistics(service: Service, head: Head) -> Respond:
    return _now(lambda: {"model_stats": [_counted(one) for one in service.served if allowed(head, one.name)]})


def _model_statistics(service: Service, head: Head) -> Respond:
    served = _model(service, head.path, "/stats")
    return _now(lambda: {"model_stats": [_counted(served)]})


def _counted(served: Served) -> dict[str, Any]:
    """Triton's statistics, with the overruns of emulated sites; times in nanoseconds since the start."""
    counted, padded = served.table.counted(served.slot), served.padded
    queue_ns, compute_ns = int(1e9 * counted.queue_s), int(1e9 * counted.compute_s)
    return {
        "name": served.name,
        "version": served.version,
        "inference_count": counted.rows,
        "execution_count": counted.runs,
        "inference_stats": {
            "success": {"count": counted.answered, "ns": queue_ns + compute_ns},
            "fail": {"count": counted.failed, "ns": 0},
            "queue": {"count": counted.answered, "ns": queue_ns},
            "compute_infer": {"count": counted.answered, "ns": compute_ns},
        },
        "padding": {"overruns": padded.overruns, "worst_overrun_ms": 1e3 * padded.worst_overrun_s},
    }


def _metrics(service: Service, head: Head) -> Respond:
    tenant = head.admitted.tenant if head.admitted else None
    return lambda body, arrived_s: wire.http_response(200, exposition(service, tenant), media=MEDIA)


def _now(value: Callable[[], Any]) -> Respond:
    """Answers each request with what `value` gives then, as JSON."""
    return lambda body, arrived_s: _json(value())


def _json(value: Any) -> bytes:
    return wire.http_response(200, orjson.dumps(value))


def _whole(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise WireError(
            f"Inference-Header-Content-Length is {value[:20].decode('latin-1')!r}; a number of bytes is wanted."
        )
    return int(value)


FIXED: dict[str, tuple[str, Route]] = {
    "/v2": ("GET", _server),
    "/v2/health/live": ("GET", _always({"live": True})),
    "/v2/health/ready": ("GET", _always({"ready": True})),
    "/v2/models/stats": ("GET", _all_statistics),
    "/metrics": ("GET", _metrics),
    **dict.fromkeys(_pages.PATHS, ("GET", _pages.route)),
    "/v2/repository/index": ("POST", _index),
}
MODEL: dict[str, tuple[str, Route]] = {
    "infer": ("POST", _Infer),
    "ready": ("GET", _model_ready),
    "stats": ("GET", _model_statistics),
    "config": ("POST", _batching),
}
