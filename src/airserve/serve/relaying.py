"""A gateway: one address before several sites, which it asks as `balancing` does. It relays bytes and opens no tensor.

What it relays may be repeated: inference, and what a model says of itself. Keys, traces and all that a client sends go
on to the site; so does the time that is left of a deadline that the client named. Models are loaded and unloaded at
their sites.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final
from urllib.parse import quote, unquote, urlsplit

import orjson

from airserve import wire
from airserve.contract import Route
from airserve.serve import recording
from airserve.serve.balancing import Balancer, Manner, Placed
from airserve.serve.configuration import loopback
from airserve.serve.connecting import Upstream
from airserve.serve.exposing import MEDIA, escaped
from airserve.serve.passing import passed_back, passed_on, written
from airserve.serve.protocols import _listening
from airserve.serve.protocols._entry import NotFound, method_of, timeout_s
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._http import Given
from airserve.serve.protocols.oip import error_response
from airserve.serve.relaying_texts import Texts
from airserve.serve.room import Room
from airserve.serve.routes import ANY, Routes, RoutesError

if TYPE_CHECKING:
    from airserve.serve.protocols._calls import Calls
    from airserve.serve.relaying_calls import Relay

DRAIN_S = 10.0
METHOD = {"infer": "POST", "ready": "GET", "": "GET"}  # of a model's paths


class _Way(NamedTuple):
    """What follows from a request's header."""

    balancer: Balancer[bytes]
    write: Callable[[Route, bytes, int | None], bytes]
    within_s: float | None  # as the client says
    model: str


@final
class Gateway:
    """Answers for the sites of `routes`. Made inside a running loop. Raises `RoutesError`."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._tls = _trusted(routes.ca) if routes.secure else None
        self.room = Room()
        self.calls: Relay | None = None
        if routes.calls:
            try:
                from airserve.serve.relaying_calls import Relay
            except ImportError:
                raise RoutesError("gRPC needs the extra `grpc`: pip install 'airserve[grpc]'.") from None
            self.calls = Relay(routes, self.room)
        self._balancers = {
            name: Balancer(places, routes.manner, opens=self._open) for name, places in routes.routes.items()
        }
        self._texts = Texts(routes, self._tls, self.room)
        self._beside = routes.watch is None and loopback(routes.host)

    def answer(self, head: Head, body: bytes, arrived_s: float) -> Given:
        """As `_http` asks. Raises `NotFound`, `NotAllowed`."""
        if self._beside and head.path in OWN_PATHS:
            return self.own(head, body, arrived_s)
        if head.path in FIXED:
            return wire.http_response(*self._fixed(head.path))
        if head.path.startswith("/v1/"):
            return self._texts.answer(head, body, arrived_s)
        if head.memo is None:
            head.memo = self._way(head)
        return self._relay(head.memo, body, arrived_s)

    def own(self, head: Head, body: bytes, arrived_s: float) -> Given:
        """What the gateway tells of itself. Raises `NotFound`."""
        if head.path == "/gateway":
            return wire.http_response(200, orjson.dumps(self.status()))
        if head.path == "/metrics":
            return wire.http_response(200, _exposed(self._all()), media=MEDIA)
        raise NotFound(f"{head.path[:80]} is not told here; /gateway and /metrics are.")

    def status(self) -> dict[str, Any]:
        """Each model's places as they are now, and what was counted since the start."""
        return {
            "under_way": self.room.taken,
            "models": [
                {
                    "model": name,
                    "protocol": protocol,
                    **balancer.counts.__dict__,
                    "sites": [
                        {
                            "url": self._url(place.route, protocol),
                            "model": place.route.model or name,
                            "mirror" if place.route.mirror else "weight": place.route.weight,
                            "state": "out" if place.out else "in",
                            "under_way": place.waiting,
                            "answered": place.answered,
                            "failed": place.failed,
                        }
                        for place in balancer.places
                    ],
                }
                for protocol, name, balancer in self._all()
            ],
        }

    def ready(self) -> bool:
        """Whether each model has a site that answers, as far as is known; sites that nobody asks are looked at."""
        known = [balancer.look() for _, _, balancer in self._all()]  # at each of them
        return all(known)

    def close(self) -> None:
        for _, _, balancer in self._all():
            balancer.close()

    def _all(self) -> list[tuple[str, str, Balancer[Any]]]:
        """Every balancer, with its protocol and the model that it is for; of texts those that were asked for."""
        calls = self.calls.balancers if self.calls else {}
        kinds: dict[str, Mapping[str, Balancer[Any]]] = {
            "v2": self._balancers,
            "grpc": calls,
            "v1": self._texts.balancers,
        }
        return [
            (kind, name, one)
            for kind, named in kinds.items()
            for name, one in named.items()
            if kind != "v1" or one.counts.requests
        ]

    async def _relay(self, way: _Way, body: bytes, arrived_s: float) -> bytes:
        deadline_s = arrived_s + (way.within_s if way.within_s is not None else self._routes.deadline_s)

        def write(route: Route) -> bytes:
            left_ms = int(1e3 * (deadline_s - time.monotonic())) if way.within_s is not None else None
            return way.write(route, body, left_ms)

        with self.room:
            sent = await way.balancer.send(write, deadline_s)
        return passed_back(sent.answer.status, sent.answer.headers, sent.answer.body)

    def _way(self, head: Head) -> _Way:
        """Raises `NotFound`, `NotAllowed`."""
        parts = head.path.rstrip("/").split("/")
        kind = parts.pop() if parts[-1] in ("infer", "ready") and len(parts) in (5, 7) else ""
        if parts[:3] != ["", "v2", "models"] or len(parts) not in (4, 6) or parts[4:5] not in ([], ["versions"]):
            raise NotFound(
                f"{head.path[:80]} is not relayed: a gateway knows /v2/models/NAME, its versions, infer and ready, and "
                "texts of /v1; ask the site itself."
            )
        method = method_of(head, (METHOD[kind],))
        model = unquote(parts[3])
        balancer = self._balancers.get(model) or self._balancers.get(ANY)
        if balancer is None:
            raise NotFound(self._routes.without(model, self._balancers))
        after = "".join(f"/{part}" for part in (*parts[4:], kind) if part)
        after += f"?{head.query.decode('latin-1')}" if head.query else ""
        passed, asked = passed_on(head), parts[3]

        def write(route: Route, body: bytes, left_ms: int | None) -> bytes:
            name = quote(route.model, safe="") if route.model else asked
            return written(method, f"/v2/models/{name}{after}", route, passed, body, left_ms)

        return _Way(balancer, write, timeout_s(head), model)

    def _fixed(self, path: str) -> tuple[int, bytes]:
        """What is answered without a site."""
        if path == "/v2":
            return 200, orjson.dumps({"name": "airserve-gateway", "version": "", "extensions": ["binary_tensor_data"]})
        if path == "/v2/health/live":
            return 200, b'{"live":true}'
        if self.ready():
            return 200, b'{"ready":true}'
        return 503, orjson.dumps({"error": "a model has no site that answers."})

    def _open(self, route: Route, manner: Manner) -> Upstream:
        tls = self._tls if (route.host, route.port) in self._routes.secure else None
        return Upstream(route, manner.connections, manner.connect_s, tls)

    def _url(self, route: Route, protocol: str) -> str:
        secure = (route.host, route.port) in self._routes.secure
        scheme = "grpc" if protocol == "grpc" else "https" if secure else "http"
        return f"{scheme}://{route.host}:{route.port}"


FIXED = frozenset(("/v2", "/v2/health/live", "/v2/health/ready"))
OWN_PATHS = frozenset(("/gateway", "/metrics"))


def _exposed(balancers: Sequence[tuple[str, str, Balancer[Any]]]) -> bytes:
    """Prometheus' text format of what the balancers have done."""
    lines: list[str] = []

    def say(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
        lines.extend((f"# HELP airserve_gateway_{name} {text}", f"# TYPE airserve_gateway_{name} {kind}"))
        lines.extend(f"airserve_gateway_{name}{{{labels}}} {value:.17g}" for labels, value in samples)

    counted = [(f'model="{escaped(name)}",protocol="{protocol}"', one.counts) for protocol, name, one in balancers]
    for field, text in (
        ("requests", "Requests that came."),
        ("retries", "Requests that were sent again."),
        ("hedges", "Requests of which a second copy was sent."),
        ("ejections", "Times that a site was found dead."),
        ("mirrored", "Copies that a mirror answered."),
        ("unmirrored", "Copies that a mirror did not answer, or did not get."),
    ):
        say(f"{field}_total", "counter", text, [(of, getattr(counts, field)) for of, counts in counted])
    sites: dict[str, list[Placed]] = {}  # several where a model's routes name a site twice
    for (of, _), (_, name, balancer) in zip(counted, balancers, strict=True):
        for place in balancer.places:
            at, there = f"{escaped(place.route.host)}:{place.route.port}", escaped(place.route.model or name)
            sites.setdefault(f'{of},site="{at}",site_model="{there}"', []).append(place)

    def each(number: Callable[[Placed], float], of_all: Callable[[Iterable[float]], float] = sum) -> Any:
        return [(of, of_all(map(number, places))) for of, places in sites.items()]

    say("site_up", "gauge", "Whether a site is asked now.", each(lambda place: not place.out, max))
    say("site_answered_total", "counter", "Answers of a site.", each(lambda place: place.answered))
    say("site_failed_total", "counter", "Requests that a site lost.", each(lambda place: place.failed))
    say("site_under_way", "gauge", "Requests that a site has.", each(lambda place: place.waiting))
    return ("\n".join(lines) + "\n").encode()


async def run(routes: Routes, say: Callable[[str], None]) -> None:
    """Relays until SIGTERM or SIGINT, then finishes what has begun. Raises `RoutesError`.

    `say` is told once, when it answers.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gateway = Gateway(routes)
    if not (loopback(routes.host) and (routes.grpc is None or loopback(routes.grpc[0]))):
        await _ask_for_keys(gateway, routes)
    recording.record(routes.access_log)
    answer = recording.recorded(gateway.answer, error_response) if routes.access_log else gateway.answer
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if routes.tls_cert else None
    listeners: list[_listening.Listener] = []
    calls: Calls | None = None
    try:
        certificate = None
        if tls is not None:
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
            tls.load_cert_chain(routes.tls_cert, routes.tls_key)
            certificate = (Path(routes.tls_key).read_bytes(), Path(routes.tls_cert).read_bytes())
        listeners.append(await _listening.listen(answer, error_response, routes.host, routes.port, tls=tls))
        if routes.watch is not None:
            listeners.append(await _listening.listen(gateway.own, error_response, *routes.watch))
        if gateway.calls is not None and routes.grpc is not None:
            calls = gateway.calls.listen(*routes.grpc, certificate)
    except ssl.SSLError as error:
        raise RoutesError(f"{routes.tls_cert} and {routes.tls_key} are no certificate and its key ({error}).") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RoutesError(f"the gateway cannot listen ({reason}); free the address or choose another.") from None
    gateway.ready()  # whether its sites answer is found out from now on
    watch = f" watch http://{routes.watch[0]}:{listeners[1].port}" if routes.watch else ""
    scheme = "https" if tls else "http"
    also = f" grpc://{routes.grpc[0]}:{calls.port}" if calls is not None and routes.grpc is not None else ""
    say(f"ready gateway {scheme}://{routes.host}:{listeners[0].port}{also} {' '.join(routes.routes)}{watch}")
    await stop.wait()
    await asyncio.gather(
        *(one.drain(DRAIN_S) for one in listeners), *([calls.drain(DRAIN_S)] if calls is not None else [])
    )
    gateway.close()
    await asyncio.sleep(0.05)  # for the connections and probes that it has ended


async def _ask_for_keys(gateway: Gateway, routes: Routes) -> None:
    """Raises `RoutesError` where a site answers whoever asks: through the gateway that would be anybody."""
    for route in {(r.host, r.port): r for places in routes.routes.values() for r in places}.values():
        site = gateway._open(route, Manner(connections=1))
        request = f"GET /v2 HTTP/1.1\r\nHost: {route.host}:{route.port}\r\n\r\n".encode()
        try:
            answer, _ = await site.exchange(request, time.monotonic() + 1.0)
        except OSError:  # it is not there yet
            continue
        finally:
            site.close()
        if answer.status != 401:
            raise _without_keys(route, routes)
    if gateway.calls is not None and (open_ := await gateway.calls.without_keys()) is not None:
        raise _without_keys(open_, routes)


def _without_keys(route: Route, routes: Routes) -> RoutesError:
    reached = routes.grpc[0] if routes.grpc is not None and loopback(routes.host) else routes.host
    return RoutesError(
        f"{route.host}:{route.port} answers without a key, and {reached} can be reached from outside; give that site "
        "keys."
    )


def _trusted(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise RoutesError(f"ca: {ca} holds no certificates ({error}).") from None


def status(url: str) -> dict[str, Any]:
    """What a gateway tells of itself. Raises `RoutesError`."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        one = kind(parts.hostname or "", parts.port, timeout=5)
        one.request("GET", "/gateway")
        answer = one.getresponse()
        body = answer.read()
        one.close()
        if answer.status != 200:
            raise ValueError(f"it answers {answer.status}")
        return dict(json.loads(body))
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RoutesError(f"{url} tells no status ({reason}); see that a gateway answers there.") from None
