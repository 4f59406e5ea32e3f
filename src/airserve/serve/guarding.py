"""Who may ask, and how much: tenants with API keys or signed tokens, their models, rates and concurrency.

Keys are known by their SHA-256, compared in constant time. Tokens are JSON Web Tokens (RFC 7519) of an OpenID issuer,
checked against its public keys in a JWKS file (RFC 7517). Both files may change while the service runs. Rates are the
generic cell rate algorithm (ITU-T I.371 annex A) in memory that all workers share: one limit, whichever worker is
asked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import mmap
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, final

import numpy as np

from airserve.serve.configuration import Configuration, ConfigurationError
from airserve.serve.rereading import Reread
from airserve.serve.tenants import Tenant, read_tenants

ASYMMETRIC = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
RECHECK_S = 60.0  # a token that was accepted is looked at again after so long, or when it expires
HOLDS_S = 2.0  # as a key is, which may have been taken away
PLACES = 256  # of tenants in the shared memory, where there are fewer at the start
LOCK_S = 0.05
ANYBODY = Tenant("*")  # for those whom only a token names, where the keys file has no tenant of that name
log = logging.getLogger(__name__)


class Unauthorized(PermissionError):
    """No key or token, or one that is not known; the message is one sentence."""


class Forbidden(PermissionError):
    """A tenant asks for what it may not have; the message is one sentence."""


class TooMany(RuntimeError):
    """A tenant asks more than its limits allow; the message is one sentence, `retry_s` when to ask again."""

    def __init__(self, sentence: str, retry_s: float) -> None:
        super().__init__(sentence)
        self.retry_s = retry_s


@final
class _Known:
    """The tenants of a keys file and the place of each in the shared memory; `without` are names that have none."""

    def __init__(self, tenants: list[Tenant], places: list[int]) -> None:
        self.without = {tenant.name for tenant, place in zip(tenants, places, strict=True) if place < 0}
        self.tenants = [tenant for tenant in tenants if tenant.name not in self.without]
        self.places = [place for place in places if place >= 0]
        self.by_name = {tenant.name: k for k, tenant in enumerate(self.tenants)}
        self.hashes = [(bytes.fromhex(key), k) for k, tenant in enumerate(self.tenants) for key in tenant.keys]


class Admitted(NamedTuple):
    """A tenant and its place in the shared table; `until_s` of time.monotonic."""

    tenant: Tenant
    place: int
    until_s: float
    known: _Known | None = None  # while these are the tenants, the same key is the same one's


@final
class Guard:
    """The tenants of a service and what each has used; made before the workers are forked.

    Raises `ConfigurationError`.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._c = c = configuration
        self._tokens = _Tokens(c) if c.jwks else None
        count = self._count = PLACES + (len(read_tenants(Path(c.keys))) if c.keys else 0)
        self._shared = mmap.mmap(-1, 8 * count * (1 + c.workers) + 8)
        self._cells: memoryview[float] = memoryview(self._shared).cast("d")
        self._workers = c.workers
        # What each thread of each worker has counted of every tenant: asked, and refused for its limits.
        self._counts = np.frombuffer(mmap.mmap(-1, 8 * 4 * count * c.workers)).reshape(2 * c.workers, 2, count)
        self._names = np.frombuffer(mmap.mmap(-1, 16 * count), "S16")  # whose each place is, by a digest of the name
        self.lock = Lock(self._cells[-1:])
        self._maker = os.getpid()
        self._known = Reread(c.keys, self._read)

    def _read(self) -> tuple[_Known, bool]:
        """The tenants that have a place, and whether those are all. Raises `ConfigurationError`."""
        tenants = read_tenants(Path(self._c.keys)) if self._c.keys else []
        if self._tokens is not None and ANYBODY.name not in [tenant.name for tenant in tenants]:
            tenants.append(ANYBODY)
        known = _Known(tenants, self._places([tenant.name for tenant in tenants]))
        return known, not known.without or bool(self._names[-1])

    def _places(self, names: list[str]) -> list[int]:
        """The place of each, the same in all processes; -1 of who has none yet.

        Only the process that made this gives places, so that no two give the same one; workers find them later.
        """
        taken = {name: place for place, name in enumerate(self._names.tolist()) if name}
        places = []
        for name in names:
            own = hashlib.blake2b(name.encode(), digest_size=15).digest() + b"#"  # numpy drops zeros at the end
            place = taken.get(own, -1)
            if place < 0 and os.getpid() == self._maker:
                if (place := len(taken)) < self._count:
                    self._names[place], taken[own] = own, place
                else:
                    place = -1
                    log.warning("%s is left out: %d tenants were named; start the service anew.", name, self._count)
            places.append(place)
        return places

    def follow(self) -> None:
        """Look whether the file has changed: workers that start anew know what it says, and new tenants get places."""
        self._known.now()

    def admit(self, headers: Mapping[bytes, bytes], before: Admitted | None = None) -> Admitted:
        """Who sends these headers: `Authorization: Bearer ...` or `X-API-Key: ...`. Raises `Unauthorized`.

        `before` is what it was for the same headers.
        """
        known = self._known.now()
        if before is not None and before.known is known:
            return before._replace(until_s=time.monotonic() + HOLDS_S)
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not given:
            raise Unauthorized("no key was sent; send it as `Authorization: Bearer KEY`.")
        digest, found = hashlib.sha256(given).digest(), -1
        for one, k in known.hashes:  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, one):
                found = k
        if found >= 0:
            return Admitted(known.tenants[found], known.places[found], time.monotonic() + HOLDS_S, known)
        if self._tokens is not None and given.count(b".") == 2:
            name, left_s = self._tokens.read(given.decode("latin-1"))
            until_s = time.monotonic() + min(left_s, HOLDS_S if self._c.keys else RECHECK_S)
            if (k := known.by_name.get(name, -1)) >= 0:
                return Admitted(known.tenants[k], known.places[k], until_s)
            if name in known.without or (k := known.by_name.get(ANYBODY.name, -1)) < 0:
                raise Unauthorized(f"{name[:40]} cannot be counted yet; ask again later.")
            # Counted with all whom only a token names, and known by its own name.
            return Admitted(replace(known.tenants[k], name=name, keys=()), known.places[k], until_s)
        raise Unauthorized("the key is not known; ask whoever runs this service for one.")

    def counted(self) -> list[tuple[Tenant, int, int]]:
        """Every tenant, the requests that it made since the service began, and those refused for its limits."""
        known, total = self._known.now(), self._counts.sum(axis=0).astype(int)
        return [(t, *total[:, place].tolist()) for t, place in zip(known.tenants, known.places, strict=True)]

    def allowance(self, admitted: Admitted, worker: int, aside: bool = False) -> Allowance:
        """What a tenant may still ask of this worker; it is counted, by the loop's thread or `aside` of it another."""
        tenant, place = admitted.tenant, admitted.place
        counts: Any = memoryview(self._counts[2 * worker + aside].reshape(-1))[place :: self._count]
        under_way = self._cells[self._count + place : self._count * (1 + self._workers) : self._count]
        return Allowance(tenant, self._cells, place, under_way, self._count * (1 + worker) + place, self.lock, counts)

    def bury(self, worker: int, pid: int) -> None:
        """Forget what a worker that died had under way, and free the lock where it held it."""
        for k in range(self._count):
            self._cells[self._count * (1 + worker) + k] = 0.0
        self.lock.bury(pid)


@final
class Lock:
    """Held for some microseconds by one worker; one that dies with it is known by its process."""

    __slots__ = ("_lock", "_owner")

    def __init__(self, owner: memoryview[float]) -> None:
        self._lock, self._owner = get_context("fork").Lock(), owner

    def hold(self, pid: float) -> bool:
        """Without the lock a count may be off by one; better than a service that stands still."""
        if self._lock.acquire(False) or self._lock.acquire(True, LOCK_S):
            self._owner[0] = pid
            return True
        return False

    def free(self, held: bool) -> None:
        if held:
            self._owner[0] = 0.0
            self._lock.release()

    def bury(self, pid: int) -> None:
        if self._owner[0] == pid:
            self.free(True)


@final
class Allowance:
    """What a tenant may still ask, counted for all workers, as one of them asks it."""

    __slots__ = (
        "_cells", "_counts", "_each_s", "_lock", "_own", "_pid", "_place", "_spare_s", "_tenant", "_under_way", "limit"
    )  # fmt: skip

    def __init__(
        self,
        tenant: Tenant,
        cells: memoryview[float],
        place: int,
        under_way: memoryview[float],
        own: int,
        lock: Lock,
        counts: memoryview[float],
    ) -> None:
        self._counts = counts  # requests, and those refused
        self._tenant, self._cells, self._place, self._lock = tenant, cells, place, lock
        self._under_way, self._own = under_way, own  # what each worker counts, and where this one does
        self._pid = float(os.getpid())  # a system call, which costs more than the rest of a request's counting
        self.limit = tenant.concurrency  # of requests under way, 0: none
        self._each_s = 1 / tenant.rate_hz if tenant.rate_hz else 0.0
        self._spare_s = (max(1, tenant.burst) - 1) * self._each_s + 1e-9

    def take(self, now_s: float | None = None) -> None:
        """Count a request against the rate, now: others may have been counted since it arrived.

        Raises `TooMany`, also where as many are under way as may be.
        """
        cells = self._cells
        self._counts[0] += 1.0
        if self.limit and sum(self._under_way) >= self.limit:
            raise self._too_many()
        if each_s := self._each_s:
            place, spare_s, lock = self._place, self._spare_s, self._lock
            held = lock.hold(self._pid)
            if now_s is None:
                now_s = monotonic()
            due_s = cells[place]
            if (early_s := due_s - now_s) <= spare_s:
                cells[place] = (due_s if early_s > 0 else now_s) + each_s
                lock.free(held)
                return
            if early_s > spare_s + each_s + 1e-6:  # it was counted at a slower rate, which holds no longer
                early_s = spare_s + each_s
                cells[place] = now_s + early_s
            lock.free(held)
            self._counts[1] += 1.0
            sentence = f"{self._tenant.name} may ask {self._tenant.rate_hz:g} times a second; ask again later."
            raise TooMany(sentence, early_s - spare_s)

    def enter(self) -> None:
        """Count a request that is under way until `leave`. Raises `TooMany`."""
        if self.limit:
            held = self._lock.hold(self._pid)
            full = sum(self._under_way) >= self.limit
            if not full:
                self._cells[self._own] += 1.0
            self._lock.free(held)
            if full:
                raise self._too_many()

    def leave(self) -> None:
        if self.limit:
            self._cells[self._own] -= 1.0

    def left(self, response: bytes) -> bytes:
        """The response to a request that is under way no longer."""
        self.leave()
        return response

    def _too_many(self) -> TooMany:
        self._counts[1] += 1.0
        return TooMany(f"{self._tenant.name} may have {self.limit} requests under way; wait for an answer.", 0.1)


@final
class _Tokens:
    """JSON Web Tokens of one issuer."""

    def __init__(self, configuration: Configuration) -> None:
        try:
            import jwt
        except ImportError:
            raise ConfigurationError("tokens need the extra `jwt`: pip install 'airserve[jwt]'.") from None
        self._jwt, self._c = jwt, configuration
        self._keys = Reread(configuration.jwks, lambda: (self._read(), True))

    def _read(self) -> dict[str | None, Any]:
        """The keys of the file by their ids. Raises `ConfigurationError`."""
        jwt, file = self._jwt, self._c.jwks
        try:
            keys = jwt.PyJWKSet.from_dict(json.loads(Path(file).read_text(encoding="utf-8"))).keys
        except (OSError, ValueError, TypeError, AttributeError, jwt.PyJWTError) as error:  # PyJWT takes any JSON
            raise ConfigurationError(f"{file} holds no public keys ({str(error)[:80]}).") from None
        found = {key.key_id: key for key in keys if key.algorithm_name in ASYMMETRIC}
        if not found:  # a secret that both sides have is no key for others to check by
            raise ConfigurationError(f"{file} holds no public keys (only secrets).")
        return found

    def _key(self, kid: str | None) -> Any:
        """The key that a token names, else the first; issuers change theirs. Raises `Unauthorized`."""
        keys = self._keys.now()
        found = next(iter(keys.values())) if kid is None else keys.get(kid) or keys.get(None)
        if found is None:
            raise Unauthorized("the token is not accepted: its issuer has no such key; get a new one.")
        return found

    def read(self, token: str) -> tuple[str, float]:
        """Whom a token names (`tenant`, else `azp`, else `sub`) and how long it holds. Raises `Unauthorized`."""
        jwt, c = self._jwt, self._c
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header.get("kid"))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],  # never what the token says of itself
                audience=c.audience or None,
                issuer=c.issuer or None,
                options={"require": ["exp"], "verify_aud": bool(c.audience)},
            )
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthorized(f"the token is not accepted: {str(error)[:100] or 'it cannot be read'}.") from None
        return str(claims.get("tenant") or claims.get("azp") or claims.get("sub") or "*"), claims["exp"] - time.time()
