"""A request of CAMARA's Model as a Service as its work sees it, and how it is answered."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import orjson

from airserve import wire
from airserve.serve.encoding import Encoder
from airserve.serve.guarding import Forbidden
from airserve.serve.knowledge import Knowledge
from airserve.serve.protocols._camara_requests import Refused, read_id
from airserve.serve.protocols._entry import NotFound, allowed
from airserve.serve.protocols._head import Head
from airserve.serve.served import Served
from airserve.serve.service import Service

CORRELATOR = re.compile(rb"[a-zA-Z0-9\-_:;./<>{}]{0,256}")


def respond(head: Head | None, status: int, said: Any = None, extra: str = "") -> bytes:
    """An answer, with the request's correlator where it has one; JSON, or no body."""
    correlator = head.headers.get(b"x-correlator") if head is not None else None
    if correlator is not None and CORRELATOR.fullmatch(correlator):
        extra += f"x-correlator: {correlator.decode()}\r\n"
    if said is None:
        return f"HTTP/1.1 {status} {wire.REASON[status]}\r\n{extra}\r\n".encode("latin-1")
    return wire.http_response(status, orjson.dumps(said), extra=extra)


@final
class Asked:
    """A request: who asks, of what, and what the service knows."""

    def __init__(self, service: Service, head: Head, body: bytes, arrived_s: float, ids: Sequence[str]) -> None:
        self.service, self.head, self.body, self.arrived_s = service, head, body, arrived_s
        if not service.knowledge:
            raise NotFound("this service keeps no knowledge; start it with --knowledge FOLDER.")
        if CORRELATOR.fullmatch(head.headers.get(b"x-correlator", b"")) is None:
            raise Refused("x-correlator has characters that it may not have, or more than 256.")
        self.ids = [read_id(one, "the id in the path") for one in ids]
        self.known = _knowledge(service.knowledge)
        self.tenant = head.admitted.tenant.name if head.admitted else ""

    def base(self, identity: str) -> dict[str, Any]:
        """Raises `NotFound`."""
        return _one(self.known.bases(self.tenant, identity), "knowledge base", identity)

    def document(self) -> dict[str, Any]:
        self.base(self.ids[0])
        return _one(self.known.documents(self.ids[0], self.ids[1]), "document", self.ids[1])

    def assistant(self, identity: str) -> dict[str, Any]:
        return _one(self.known.assistants(self.tenant, identity), "assistant", identity)

    def model(self, name: str, kind: type) -> Served:
        """A model of a kind that this tenant may use. Raises `UnknownEndpoint`, `Forbidden`, `Refused`."""
        if not allowed(self.head, name):
            raise Forbidden(f"{self.tenant} may not use {name[:80]!r}.")
        served = self.service.endpoint(name)
        if not isinstance(served.language, kind):
            raise Refused(f"{name} is no model for this; choose another.")
        return served

    def encoder(self, before: Collection[str]) -> Served:
        """The sentence encoder that was used before, where it is served, else the first there is. Raises `Refused`."""
        found = [s for s in self.service.served if isinstance(s.language, Encoder) and allowed(self.head, s.name)]
        if not found:
            raise Refused("no sentence encoder is served, so nothing can be indexed; serve one.", 503, "UNAVAILABLE")
        return next((served for served in found if served.name in before), found[0])


@lru_cache(4)
def _knowledge(folder: str) -> Knowledge:
    return Knowledge(Path(folder))


def _one(found: list[dict[str, Any]], what: str, identity: str) -> dict[str, Any]:
    if not found:
        raise NotFound(f"there is no {what} {identity}.")
    return found[0]
