"""Latency of one worker under an open load of half its raw rate, REAL (ResNet-18 at 224), beside the queue's theory.

    python bench/latency.py [--seconds 60] [--json]

Requests are sent when they are due, whatever the answers do; latency counts from that moment. Poisson arrivals are held
to an M/D/1 queue: Lindley's recursion over the very same arrivals, each served in the time that bare onnxruntime takes
here (the median of its runs before and after). Evenly spaced ones never wait in theory: their 99th percentile is held
to their median. The floor of both: bare onnxruntime, in a process that runs it at the very same moments and does
nothing else. Health is asked every 20 ms beside a closed load of eight. Needs a quiet machine; ends with 1 where a
limit is passed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from graphs import REAL_INPUT, real
from loading import arrivals, closed, opened
from processes import ENVIRONMENT, airserve
from serving import binary, rows_of

from airserve.model import Array, Engine

LIMITS = {"poisson": 1.3, "even": 2.0}
HEALTH_MS = 50.0
PACED = """
import json, sys, time, numpy as np
from airserve.model import Engine
engine, due_s = Engine(sys.argv[1]), json.load(sys.stdin)
x = np.random.default_rng(1).random([1, *engine.signature.inputs[0].shape[1:]], dtype=np.float32)
for _ in range(3): engine.run([x])
begun_s, found = time.monotonic() + 0.2, []
for at_s in due_s:
    if (left_s := begun_s + at_s - time.monotonic()) > 0: time.sleep(left_s)
    engine.run([x])
    found.append(time.monotonic() - begun_s - at_s)
print(json.dumps(found))
"""


def service_s(path: Path, x: Array, runs: int = 20) -> float:
    """Wall time of one run of the bare engine."""
    engine, taken_s = Engine(path), []
    for _ in range(runs + 2):
        begun_s = time.perf_counter()
        engine.run([x])
        taken_s.append(time.perf_counter() - begun_s)
    return float(np.median(taken_s[2:]))


def paced(path: Path, due_s: list[float]) -> Array:
    """Latencies of the bare engine, run when each is due and no other is under way."""
    command = [sys.executable, "-c", PACED, str(path)]
    done = subprocess.run(command, input=json.dumps(due_s), capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return np.array(json.loads(done.stdout))


def queue_s(due_s: list[float], each_s: float) -> Array:
    """Times in an M/D/1 queue, or any single server that serves each in the same time (Lindley 1952).

    >>> queue_s([0.0, 1.0, 1.5], 1.0).tolist()
    [1.0, 1.0, 1.5]
    """
    free_s, times = 0.0, []
    for at_s in due_s:
        free_s = max(free_s, at_s) + each_s
        times.append(free_s - at_s)
    return np.array(times)


def health_ms(address: str, seconds: float) -> list[float]:
    host, _, port = address.rpartition(":")
    one, taken_ms, until_s = http.client.HTTPConnection(host, int(port), timeout=5), [], time.monotonic() + seconds
    while time.monotonic() < until_s:
        begun_s = time.monotonic()
        one.request("GET", "/v2/health/ready")
        assert one.getresponse().read()
        taken_ms.append(1e3 * (time.monotonic() - begun_s))
        time.sleep(0.02)
    one.close()
    return taken_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each open load: a percentile takes many")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        path = real(folder / "real.onnx")
        (x,) = rows_of(REAL_INPUT.shape, 1)
        with airserve(folder, str(path)) as server:
            request = [binary("real", REAL_INPUT, x, server.key)]
            for kind, limit in LIMITS.items():
                before_s = service_s(path, x)
                due_s = arrivals(kind, 0.5 / before_s, given.seconds)
                latencies_s = np.array(opened(server.http, request, due_s))
                each_s = float(np.mean([before_s, service_s(path, x)]))
                theory_s = queue_s(due_s, each_s)
                p50_s, p99_s = np.percentile(latencies_s, [50, 99])
                floor_p50_s, floor_p99_s = np.percentile(paced(path, due_s), [50, 99])
                against_s = np.percentile(theory_s, 99) if kind == "poisson" else p50_s
                found[kind] = {
                    "requests": len(due_s),
                    "bare_ms": 1e3 * each_s,
                    "p50_ms": 1e3 * p50_s,
                    "p99_ms": 1e3 * p99_s,
                    "against_ms": 1e3 * float(against_s),
                    "ratio": float(p99_s / against_s),
                    "limit": limit,
                    "floor_p50_ms": 1e3 * floor_p50_s,
                    "floor_p99_ms": 1e3 * floor_p99_s,
                }
            thread = threading.Thread(target=closed, args=(server.http, request, 5.0))
            thread.start()
            time.sleep(0.5)
            taken_ms = health_ms(server.http, 4.0)
            thread.join()
            found["health"] = {"asked": len(taken_ms), "p50_ms": float(np.median(taken_ms)), "worst_ms": max(taken_ms)}
    short = [kind for kind in LIMITS if found[kind]["ratio"] > LIMITS[kind]]
    short += ["health"] * (found["health"]["worst_ms"] > HEALTH_MS)
    if given.json:
        print(json.dumps({**found, "short": short}))
        return bool(short)
    for kind in LIMITS:
        f = found[kind]
        beside = "M/D/1 over the same arrivals" if kind == "poisson" else "its median"
        print(
            f"{kind}: {f['requests']} requests, median {f['p50_ms']:.1f} ms, p99 {f['p99_ms']:.1f} ms, "
            f"{f['ratio']:.2f} x {beside} ({f['against_ms']:.1f} ms; wanted {f['limit']}); "
            f"onnxruntime alone at these moments: median {f['floor_p50_ms']:.1f} ms, p99 {f['floor_p99_ms']:.1f} ms"
        )
    h = found["health"]
    print(f"health at full load: median {h['p50_ms']:.1f} ms, worst of {h['asked']} {h['worst_ms']:.1f} ms, wanted 50")
    return bool(short)


if __name__ == "__main__":
    sys.exit(main())
