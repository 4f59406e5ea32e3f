"""A gateway's requests of the OpenAI protocol: the body names the model, and an answer may come in parts."""

from __future__ import annotations

import ssl
import time
from typing import Any, final

import orjson

from airserve import wire
from airserve.contract import Route
from airserve.serve.balancing import Balancer, Manner
from airserve.serve.passing import OWN, lines_back, passed_back, passed_on, written
from airserve.serve.protocols._entry import NotFound, method_of, timeout_s
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._streaming import Stream
from airserve.serve.protocols.openai import error_response
from airserve.serve.room import Room
from airserve.serve.routes import ANY, Routes
from airserve.serve.service import UnknownEndpoint
from airserve.serve.streams import Streams
from airserve.tensors import WireError

MODELS = "/v1/models"
METHOD = {"/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/embeddings": "POST", MODELS: "GET"}
WRITTEN = OWN | {b"content-encoding"}  # a body goes on as it was read
HERE = OWN | {b"content-type", b"cache-control"}  # that a stream says of itself


@final
class Texts:
    """The texts of a gateway. Made inside a running loop."""

    def __init__(self, routes: Routes, tls: ssl.SSLContext | None, room: Room) -> None:
        self._routes, self._tls, self._room = routes, tls, room
        self.balancers: dict[str, Balancer[bytes]] = {
            name: Balancer(places, routes.manner, opens=self._open) for name, places in routes.routes.items()
        }

    async def answer(self, head: Head, body: bytes, arrived_s: float) -> bytes | Stream:
        """The answer to a request under /v1; errors are said as the protocol says them."""
        try:
            return await self._relay(head, body, arrived_s)
        except Exception as error:
            return error_response(error, head)

    def _open(self, route: Route, manner: Manner) -> Streams:
        tls = self._tls if (route.host, route.port) in self._routes.secure else None
        return Streams(route, manner.connect_s, tls)

    async def _relay(self, head: Head, body: bytes, arrived_s: float) -> bytes | Stream:
        known = METHOD.get(head.path.rstrip("/"))
        if known is None:
            raise NotFound(f"{head.path[:80]} is not relayed: a gateway knows {', '.join(METHOD)}.")
        method = method_of(head, (known,))
        if method == "GET" and ANY not in self.balancers:
            if self._routes.sites_check_keys:  # which models a key may know of is known to its site alone
                raise NotFound(f"{MODELS} is not told here, for the sites check keys; ask for a model by its name.")
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "airserve"} for name in self.balancers]
            return wire.http_response(200, orjson.dumps({"object": "list", "data": listed}))
        head.costly = method == "POST"  # a client that has closed its side is taken to have gone
        asked, body = ({}, b"") if method == "GET" else _read(head, body)
        model = str(asked.get("model", ""))
        balancer = self.balancers.get(model) or self.balancers.get(ANY)
        if balancer is None:
            raise UnknownEndpoint(self._routes.without(model, self.balancers))
        within_s, passed = timeout_s(head), passed_on(head, WRITTEN)
        deadline_s = arrived_s + (within_s if within_s is not None else self._routes.deadline_s)

        def write(route: Route) -> bytes:
            left_ms = int(1e3 * (deadline_s - time.monotonic())) if within_s is not None else None
            whole = orjson.dumps({**asked, "model": route.model}) if route.model and asked else body
            return written(method, head.path, route, passed, whole, left_ms)

        self._room.enter()
        try:
            answer = (await balancer.send(write, deadline_s)).answer
        except BaseException:
            self._room.leave()
            raise
        if answer.rest is None:
            self._room.leave()
            return passed_back(answer.status, answer.headers, answer.body)
        media = answer.headers.get("content-type", "application/octet-stream")
        stream = Stream(answer.rest.parts, media=media, extra=lines_back(answer.headers, HERE))
        stream.ended += [answer.rest.end, self._room.leave]
        return stream


def _read(head: Head, body: bytes) -> tuple[dict[str, Any], bytes]:
    """A request's JSON, and its bytes. Raises `WireError`."""
    plain = wire.decompress(body, head.headers.get(b"content-encoding", b"").decode("latin-1"))
    try:
        asked = orjson.loads(plain)
    except orjson.JSONDecodeError as error:
        raise WireError(f"the JSON is malformed: {str(error)[:100]}.") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("model"), str):
        raise WireError('the request names no model; send {"model": NAME, ...}.')
    return asked, plain
