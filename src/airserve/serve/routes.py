"""What a gateway is told: where it listens, and which sites answer for which models, as a YAML file says or plain URLs.

listen: 127.0.0.1:8080
routes:
  "*": [http://10.0.0.1:8000, http://10.0.0.2:8000]                    # models that have no routes of their own
  digits:
    - {url: http://10.0.0.1:8000, weight: 9}
    - {url: http://10.0.0.2:8000, weight: 1, model: digits-int8}     # a canary: one request in ten
    - {url: http://10.0.0.3:8000, mirror: 0.1}                       # copies, whose answers nobody waits for
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airserve import documents
from airserve.contract import Route
from airserve.errors import UserError
from airserve.serve.balancing import Manner
from airserve.serve.configuration import loopback

ANY = "*"  # the routes of models that have none of their own
KEYS = (
    "listen", "listen_grpc", "routes", "retries", "hedge_ms", "deadline_s", "tls_cert", "tls_key", "ca", "keys",
    "watch", "access_log",
)  # fmt: skip
PLACE = ("url", "grpc", "weight", "mirror", "model")
RETRIES = ("attempts", "share", "reserve")


class RoutesError(UserError):
    """Routes that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Routes:
    """A gateway. A Route's `model` is "" where the site has the model under the name that is asked for."""

    routes: Mapping[str, tuple[Route, ...]]
    host: str = "127.0.0.1"
    port: int = 8080
    calls: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)  # as `routes`, to the sites' ports of gRPC
    grpc: tuple[str, int] | None = None  # where it listens for gRPC
    watch: tuple[str, int] | None = None  # where status and metrics are; None: beside the rest, on loopback alone
    manner: Manner = field(default_factory=Manner)
    deadline_s: float = 30.0  # where a request names none
    secure: frozenset[tuple[str, int]] = frozenset()  # the places that are asked by https
    ca: str = ""  # who vouches for them; "": whom the system trusts
    tls_cert: str = ""
    tls_key: str = ""
    sites_check_keys: bool = False
    access_log: bool = False

    def without(self, model: str, known: Iterable[str]) -> str:
        """The sentence for a model without a route; it names others where whoever asks may know them."""
        others = f"there are routes to {', '.join(known)}" if not self.sites_check_keys else "ask for another"
        return f"there is no route to a model {model[:80]!r}; {others}."

    def check(self) -> None:
        """Raises `RoutesError`."""
        for host in (self.host, *([self.grpc[0]] if self.grpc else [])):
            if loopback(host) or self.sites_check_keys:
                continue
            raise RoutesError(
                f"{host} can be reached from outside; say `keys: sites` where each site asks for keys, which are "
                "passed on, or listen at 127.0.0.1."
            )
        if self.watch is not None and not loopback(self.watch[0]):
            raise RoutesError(f"watch: {self.watch[0]} can be reached from outside; name an address of this machine.")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise RoutesError("TLS needs both a certificate and its key; give tls_cert and tls_key.")


def to_sites(urls: Sequence[str]) -> Routes:
    """All models on all of these sites, in equal parts. Raises `RoutesError`."""
    return _routes({"routes": {ANY: list(urls)}}, "the command line")


def read(path: Path) -> Routes:
    """The routes in a YAML file. Raises `RoutesError`: what, where and what would be right."""
    try:
        data, _ = documents.parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise RoutesError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except UnicodeDecodeError:
        raise RoutesError(f"{path}: not YAML: it is no text.") from None
    except documents.DocumentError as error:
        raise RoutesError(str(error)) from None
    if not isinstance(data, dict) or "routes" not in data:
        raise RoutesError(f"{path} holds no routes; it has `routes:` and below it models with their sites.")
    return _routes(data, str(path))


def address(text: Any, where: str) -> tuple[str, int]:
    """
    >>> address("127.0.0.1:80", "f"), address("[::1]:80", "f")
    (('127.0.0.1', 80), ('::1', 80))
    """
    host, _, port = str(text).rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise RoutesError(f"{where}: {str(text)[:60]!r} is no address; write HOST:PORT, such as 127.0.0.1:8080.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _routes(data: dict[str, Any], file: str) -> Routes:
    _known(data, KEYS, file)
    given, secure = data["routes"], set[tuple[str, int]]()
    made, calls = dict[str, tuple[Route, ...]](), dict[str, tuple[Route, ...]]()
    if not isinstance(given, dict) or not given:
        raise RoutesError(f"{file}: routes has no models; write MODEL: [URL, ...], or {ANY!r} for all models.")
    for name, places in given.items():
        where = f"{file}: routes of {str(name)[:60]}"
        if not isinstance(places, list) or not places:
            raise RoutesError(f"{where}: a list of sites is wanted, each a URL or {{url: ..., weight: ...}}.")
        found = [_place(place, f"{where}, site {k}") for k, place in enumerate(places, 1)]
        made[str(name)] = tuple(route for route, _, _ in found)
        asked = tuple(replace(route, port=grpc) for route, _, grpc in found if grpc)
        if data.get("listen_grpc") is not None:
            calls[str(name)] = asked
        elif asked:
            raise RoutesError(f"{where}: say where the gateway listens for gRPC: `listen_grpc: 127.0.0.1:8081`.")
        for places_ in (made, calls):
            if str(name) in places_ and all(route.mirror for route in places_[str(name)]):
                how = " over gRPC: give its port, `grpc: 8001`" if places_ is calls else ""
                raise RoutesError(f"{where}: one site at least is to answer{how}, and not be a mirror.")
        for route, https, grpc in found:
            secure |= {(route.host, port) for port in (route.port, grpc) if https and port}
    retries = data.get("retries") or {}
    if not isinstance(retries, dict):
        raise RoutesError(f"{file}: retries has {', '.join(RETRIES)}.")
    _known(retries, RETRIES, f"{file}: retries")
    usual, hedge_ms = Manner(), data.get("hedge_ms")
    manner = replace(
        usual,
        attempts=int(_number(retries.get("attempts", usual.attempts), f"{file}: attempts", least=1)),
        ratio=_number(retries.get("share", usual.ratio), f"{file}: share", most=1),
        reserve=int(_number(retries.get("reserve", usual.reserve), f"{file}: reserve")),
        hedge_s=None if hedge_ms is None else _number(hedge_ms, f"{file}: hedge_ms") / 1e3,
    )
    if data.get("keys") not in (None, "sites"):
        raise RoutesError(f"{file}: keys is {str(data['keys'])[:40]!r}; `keys: sites` says that the sites check them.")
    host, port = address(data.get("listen", "127.0.0.1:8080"), f"{file}: listen")
    watch, grpc_at = data.get("watch"), data.get("listen_grpc")
    routes = Routes(
        made,
        host,
        port,
        calls=calls,
        grpc=address(grpc_at, f"{file}: listen_grpc") if grpc_at is not None else None,
        watch=address(watch, f"{file}: watch") if watch is not None else None,
        manner=manner,
        deadline_s=_number(data.get("deadline_s", Routes.deadline_s), f"{file}: deadline_s", least=0.001),
        secure=frozenset(secure),
        ca=str(data.get("ca") or ""),
        tls_cert=str(data.get("tls_cert") or ""),
        tls_key=str(data.get("tls_key") or ""),
        sites_check_keys=data.get("keys") == "sites",
        access_log=data.get("access_log") is True,
    )
    routes.check()
    return routes


def _place(given: Any, where: str) -> tuple[Route, bool, int]:
    """A Route, whether it is asked by https, and its port of gRPC, 0 where none is named."""
    place = given if isinstance(given, dict) else {"url": given}
    _known(place, PLACE, where)
    url = str(place.get("url", ""))
    try:
        parts = urlsplit(url)
        https, port = parts.scheme == "https", parts.port
    except ValueError:
        parts, https, port = urlsplit(""), False, None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
        raise RoutesError(f"{where}: {url[:80]!r} is no site's URL; write http://HOST:PORT.")
    if "mirror" in place and "weight" in place:
        raise RoutesError(f"{where}: a mirror has no weight; `mirror` is its part of the requests, 0 to 1.")
    mirror = "mirror" in place
    weight = _number(place.get("mirror" if mirror else "weight", 1), where, most=1 if mirror else 1e6)
    model = str(place.get("model") or "")
    grpc = place.get("grpc", 0)
    if type(grpc) is not int or not 0 <= grpc <= 65_535:
        raise RoutesError(f"{where}: grpc is {str(grpc)[:20]!r}; the site's port of gRPC is wanted, such as 8001.")
    return Route(parts.hostname, port or (443 if https else 80), model, weight=weight, mirror=mirror), https, grpc


def _number(given: Any, where: str, least: float = 0.0, most: float = 1e6) -> float:
    if type(given) not in (int, float) or not least <= given <= most:
        raise RoutesError(f"{where}: {str(given)[:40]!r} is not a number from {least:g} to {most:g}.")
    return float(given)


def _known(given: Mapping[Any, Any], keys: Collection[str], where: str) -> None:
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, 1)
            hint = f"perhaps {near[0]!r}?" if near else f"it has {', '.join(keys)}."
            raise RoutesError(f"{where} has no {str(key)[:40]!r}; {hint}")
