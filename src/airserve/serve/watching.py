"""What a service does now: its own statistics, asked again and again, as a table that stays in its place."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from airserve.errors import UserError


class WatchError(UserError):
    """A service that cannot be watched; the message is one sentence."""


class Row(NamedTuple):
    """A version of a model since the last look; times are means."""

    model: str
    version: str
    per_s: float
    failed_per_s: float
    queue_ms: float
    compute_ms: float
    answered: int  # since the service began


Counts = dict[tuple[str, str], tuple[int, int, int, int]]
NOTHING = (0, 0, 0, 0)


def counts(url: str, key: str = "") -> Counts:
    """Answered, failed, queue and compute in ns of every version. Raises `WatchError`."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        one = kind(parts.hostname or "", parts.port, timeout=5)
        one.request("GET", "/v2/models/stats", headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = one.getresponse()
        body = answer.read()
        one.close()
        found = json.loads(body)
        if answer.status != 200:
            raise WatchError(f"{url} answers {answer.status}: {found.get('error', '')}")
        made: Counts = {}
        for model in found["model_stats"]:
            stats = model["inference_stats"]
            numbers = (
                stats["success"]["count"],
                stats["fail"]["count"],
                stats["queue"]["ns"],
                stats["compute_infer"]["ns"],
            )
            made[model["name"], model["version"]] = numbers
        return made
    except (OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise WatchError(f"{url} cannot be watched ({reason}); see that a service of V2 answers there.") from None


def rows(before: Counts, after: Counts, seconds: float) -> list[Row]:
    """What was done between two looks.

    >>> rows({("m", "1"): (5, 0, 0, 0)}, {("m", "1"): (15, 1, 20_000_000, 40_000_000)}, 2.0)
    [Row(model='m', version='1', per_s=5.0, failed_per_s=0.5, queue_ms=2.0, compute_ms=4.0, answered=15)]

    A service that was started again counts from nothing:

    >>> rows({("m", "1"): (500, 3, 0, 0)}, {("m", "1"): (4, 0, 4_000_000, 0)}, 2.0)
    [Row(model='m', version='1', per_s=2.0, failed_per_s=0.0, queue_ms=1.0, compute_ms=0.0, answered=4)]
    """
    made = []
    for (model, version), now in after.items():
        since = before.get((model, version), NOTHING)
        if any(a < b for a, b in zip(now, since, strict=True)):  # it has begun anew
            since = NOTHING
        answered, failed, queue_ns, compute_ns = (a - b for a, b in zip(now, since, strict=True))
        each = 1e-6 / answered if answered else 0.0
        made.append(
            Row(model, version, answered / seconds, failed / seconds, queue_ns * each, compute_ns * each, now[0])
        )
    return made


def watch(url: str, key: str, every_s: float) -> Iterator[list[Row]]:
    """Looks every `every_s` seconds, for ever. Raises `WatchError`."""
    before, begun_s = counts(url, key), time.monotonic()
    while True:
        time.sleep(every_s)
        after, now_s = counts(url, key), time.monotonic()
        yield rows(before, after, now_s - begun_s)
        before, begun_s = after, now_s
