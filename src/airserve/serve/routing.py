"""The way from a head to its tail: what it gives is sent on, to one place or to one of several, and answered for."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple, final
from urllib.parse import quote

import orjson

from airserve import wire
from airserve.contract import Route
from airserve.model import Array, ModelError, Tensor
from airserve.serve.balancing import Balancer, Manner, Sent, upstream
from airserve.serve.connecting import UpstreamFailed, UpstreamLate
from airserve.tensors import DTYPE
from airserve.timing import Timing, format_air

# A device has one connection over the air, asks again once, and puts no probe on the air for one place alone.
ALONE = Manner(attempts=2, connections=1, connect_s=float("inf"), probes=False)
SEVERAL = Manner(connections=1)
log = logging.getLogger(__name__)


class Onward(NamedTuple):
    """What the rest of the chain gave: outputs, the `air` entry, and the next site's own Server-Timing as it came."""

    outputs: list[tuple[Tensor, Array]]
    air: Timing
    server_timing: str


@final
class Router:
    """What a head does with its outputs: encode them, send them on, read what the rest of the chain answers.

    With several routes one of them is asked, another where it fails, and mirrors besides (`Balancer`). They all get
    the request as the first encodes it.
    """

    def __init__(self, routes: Sequence[Route], manner: Manner | None = None) -> None:
        self.route = routes[0]
        self.routes = tuple(routes)
        if any(not 0 <= route.weight < float("inf") for route in routes) or all(route.mirror for route in routes):
            raise ModelError("a route's weight is 0 or more, and one route at least is not a mirror.")
        self._manner = manner or (ALONE if len(routes) == 1 else SEVERAL)
        self._balancer: Balancer[bytes] | None = None
        self._outputs: tuple[Tensor, ...] | None = None

    @property
    def balancer(self) -> Balancer[bytes]:
        """Who asks; made inside a running loop."""
        if self._balancer is None:
            self._balancer = Balancer(self.routes, self._manner, opens=upstream)
        return self._balancer

    def encode(self, outputs: Sequence[tuple[Tensor, Array]], trace: str = "") -> bytes:
        """The request as it goes on the wire; the tail's inputs bear the names of the head's outputs."""
        route = self.route
        return wire.infer_request(
            route.model, outputs, host=f"{route.host}:{route.port}", compress=route.compress, extra=trace
        )

    async def ask(self, request: bytes, deadline_s: float, *, tell: bool = False) -> Onward:
        """The rest of the chain's answer; the `air` entry lasts from here until the whole response has come.

        With `tell` the next site learns the deadline (X-Request-Timeout-Ms): what is late it need not compute.

        Raises `UpstreamFailed`, `UpstreamLate`.
        """

        def write(route: Route) -> bytes:
            within_ms = int(1e3 * (deadline_s - time.monotonic())) if tell else None
            if within_ms is None and route is self.route:
                return request
            return addressed(request, route, within_ms)

        begun_s = time.monotonic()
        sent = await self.balancer.send(write, deadline_s)
        ended_s = time.monotonic()
        answer = sent.answer
        self._check(sent)
        length = answer.headers.get("inference-header-content-length")
        try:
            response = wire.parse_response(answer.body, int(length) if length else None)
        except ValueError as error:
            raise UpstreamFailed(f"{sent.route.model} answers what cannot be read: {error}") from None
        return Onward(
            response.outputs,
            Timing("air", 1e3 * (ended_s - begun_s), format_air(sent.air)),
            answer.headers.get("server-timing", ""),
        )

    async def outputs(self, deadline_s: float) -> tuple[Tensor, ...]:
        """What the rest of the chain gives, as the next site describes it; asked once.

        Raises `UpstreamFailed`, `UpstreamLate`.
        """
        if self._outputs is None:
            sent = await self.balancer.send(
                lambda route: wire.metadata_request(route.model, host=f"{route.host}:{route.port}"), deadline_s
            )
            self._check(sent)
            try:
                self._outputs = tuple(
                    Tensor(one["name"], DTYPE[one["datatype"]], tuple(one["shape"]))
                    for one in orjson.loads(sent.answer.body)["outputs"]
                )
            except (orjson.JSONDecodeError, KeyError, TypeError):
                raise UpstreamFailed(f"{sent.route.model} describes itself in a way that cannot be read.") from None
        return self._outputs

    def close(self) -> None:
        if self._balancer is not None:
            self._balancer.close()

    def _check(self, sent: Sent) -> None:
        if (answer := sent.answer).status != 200:
            kind = UpstreamLate if answer.status == 504 else UpstreamFailed
            log.debug("%s at %s:%d answers %d", sent.route.model, sent.route.host, sent.route.port, answer.status)
            raise kind(f"{sent.route.model} answers {answer.status}: {wire.parse_error(answer.body)}")


def addressed(request: bytes, route: Route, within_ms: int | None = None) -> bytes:
    """An infer request of `wire.infer_request`, to another place; `within_ms` is the time that is left for it.

    >>> request = b"POST /v2/models/m/infer HTTP/1.1\\r\\nHost: h:1\\r\\nContent-Length: 0\\r\\n\\r\\n"
    >>> addressed(request, Route("g", 2, "n"), 1234).split(b"\\r\\n")[:3]
    [b'POST /v2/models/n/infer HTTP/1.1', b'Host: g:2', b'X-Request-Timeout-Ms: 1200']
    """
    _, _, rest = request.split(b"\r\n", 2)
    left = "" if within_ms is None else time_left(within_ms)
    return (
        f"POST /v2/models/{quote(route.model)}/infer HTTP/1.1\r\nHost: {route.host}:{route.port}\r\n{left}".encode()
        + rest
    )


def time_left(within_ms: int) -> str:
    """The header line that says how long an answer is waited for.

    Rounded down to two digits: a server that has read the same header before need not read it again.

    >>> time_left(1234)
    'X-Request-Timeout-Ms: 1200\\r\\n'
    """
    digits = str(max(within_ms, 0))
    return f"X-Request-Timeout-Ms: {digits[:2].ljust(len(digits), '0')}\r\n"
