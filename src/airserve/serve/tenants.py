"""Tenants: who may ask, and the file that says so. A key is 256 random bits, so its SHA-256 hides it well enough."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airserve.contract import from_plain, to_plain
from airserve.serve.configuration import ConfigurationError


@dataclass(frozen=True)
class Tenant:
    """Somebody who asks. `models` none: all; a rate or concurrency of 0: no limit."""

    name: str
    keys: tuple[str, ...] = ()  # SHA-256 in hexadecimal
    models: tuple[str, ...] = ()
    rate_hz: float = 0.0
    burst: int = 10  # requests that may come at once, above the rate
    concurrency: int = 0
    admin: bool = False  # may load and unload models
    slice: str = ""  # on which its devices come, where that is known: a label of what is counted

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


def new_key(path: Path, name: str, **limits: Any) -> str:
    """Make a key for a tenant and keep its hash in a file, with new limits where they are given; the key itself.

    Raises `ConfigurationError`.
    """
    tenants = {tenant.name: tenant for tenant in read_tenants(path)} if path.exists() else {}
    key = f"as_{secrets.token_urlsafe(32)}"
    known = to_plain(tenants.get(name, Tenant(name)))
    known.update({limit: value for limit, value in limits.items() if value is not None})
    known["keys"] = [*known["keys"], hashlib.sha256(key.encode()).hexdigest()]
    tenants[name] = from_plain(Tenant, known)
    text = json.dumps({"tenants": [to_plain(tenant) for tenant in tenants.values()]}, indent=1)
    try:
        _write(path, text + "\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"{path} cannot be written ({reason}); name a file in a folder of yours.") from None
    return key


def _write(path: Path, text: str) -> None:
    """Written aside and put in place whole: a disk that fills takes nobody's key. A new file is its owner's alone."""
    path = path.resolve()
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    file, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(file, "w", encoding="utf-8") as aside:
            aside.write(text)
        os.chmod(name, mode)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


def read_tenants(path: Path) -> list[Tenant]:
    """The tenants of a keys file. Raises `ConfigurationError`."""
    try:
        tenants = [from_plain(Tenant, one) for one in json.loads(path.read_text(encoding="utf-8"))["tenants"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} holds no tenants ({str(error)[:100]}); `airserve key NAME --to {path}` makes one."
        ) from None
    for tenant in tenants:
        if (wrong := _wrong(tenant)) is not None:
            raise ConfigurationError(f"{path}: {wrong} of the tenant {str(tenant.name)[:40]!r} is of a wrong kind.")
        if any(len(key) != 64 or set(key) - set("0123456789abcdef") for key in tenant.keys):
            raise ConfigurationError(f"{path}: a key of {tenant.name} is not hashed; `airserve key` makes a new one.")
    if len({tenant.name for tenant in tenants}) < len(tenants):
        raise ConfigurationError(f"{path} names a tenant twice.")
    return tenants


def _wrong(tenant: Tenant) -> str | None:
    """The field that is not of its type, as JSON may have it."""
    for name, value in vars(tenant).items():
        default = getattr(Tenant, name, "")
        if isinstance(default, tuple):
            sound = type(value) is tuple and all(type(one) is str for one in value)
        elif type(default) in (int, float):
            sound = type(value) in (int, type(default)) and 0 <= value < math.inf
        else:
            sound = type(value) is type(default)
        if not sound or (type(value) is str and not value.isprintable()):
            return name
    return None
