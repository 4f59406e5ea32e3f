"""What a service of its own is told: where it listens, what it serves, who may ask and how much."""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path

from airserve.errors import UserError


class ConfigurationError(UserError):
    """A service that cannot be started as asked; the message is one sentence."""


@dataclass(frozen=True)
class Bounds:
    """What a language model of a worker may hold."""

    running: int = 8  # sequences that share a step
    cache_bytes: int = 1 << 30  # of all caches, with the copy that a step makes
    waiting: int = 256  # sequences that have no place yet


@dataclass(frozen=True)
class Configuration:
    """One service: `sources` are what `offering.offers` reads; paths are files, "" where there is none."""

    sources: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    grpc_port: int = -1  # -1: no gRPC
    name: str = "serve"  # in Server-Timing
    keys: str = ""  # who may ask, with hashed keys
    jwks: str = ""  # the public keys of an OpenID issuer
    issuer: str = ""
    audience: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    queue: int = 256  # requests of a worker that may wait
    access_log: bool = False  # a line for every request
    otel: bool = False  # spans for OpenTelemetry, sent where its environment variables say
    deadline_s: float = 30.0  # where a request names none
    running: int = Bounds.running  # sequences that a language model of a worker generates side by side
    knowledge: str = ""  # a folder for knowledge bases and assistants
    cache_mb: int = Bounds.cache_bytes >> 20  # that they may take

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.running, self.cache_mb << 20, self.queue)

    @property
    def cores(self) -> int:
        """That each worker has to itself."""
        return max(1, len(os.sched_getaffinity(0)) // self.workers)

    def check(self) -> None:
        """Raises `ConfigurationError`."""
        if self.workers < 1:
            raise ConfigurationError(f"{self.workers} workers cannot answer; give 1 or more.")
        if not (self.keys or self.jwks) and not loopback(self.host):
            raise ConfigurationError(
                f"{self.host} can be reached from outside and no key is configured; give --keys FILE or --jwks FILE, "
                "or bind to 127.0.0.1."
            )
        try:
            if self.knowledge:
                Path(self.knowledge).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigurationError(f"{self.knowledge} cannot hold knowledge ({reason}); name a folder.") from None
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigurationError("TLS needs both a certificate and its key; give --tls-cert and --tls-key.")


def loopback(host: str) -> bool:
    """Whether an address is this machine's alone.

    >>> loopback("127.0.0.1"), loopback("localhost"), loopback("::1"), loopback("0.0.0.0"), loopback("")
    (True, True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read(path: Path) -> Configuration:
    """The configuration in a JSON file. Raises `ConfigurationError`."""
    from airserve.contract import from_plain  # brings numpy, which the command line does without

    try:
        return from_plain(Configuration, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no configuration ({str(error)[:100]}).") from None
