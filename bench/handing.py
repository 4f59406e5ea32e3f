"""One gRPC channel with 8 calls in flight against two workers: the rate, beside two cores' raw rate with onnxruntime.

    python bench/handing.py [--seconds 6] [--rounds 5] [--json]

A channel is one connection, which comes to one worker; that hands costly requests to its sibling when it is idle. REAL
is ResNet-18 at 224. In every round, one after the other: two processes that call onnxruntime in a loop, the service
with two workers, and a service with one worker for what a single core gives. Rates by the clock, so on a quiet machine;
the CPU time of each worker says how the work was divided on any. Medians of the rounds; ends with 1 under 90 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from graphs import REAL_INPUT, real
from loading import INFER, closed
from processes import ENVIRONMENT, Server, airserve, cpu_s, tree
from serving import grpc_request, rows_of

WANTED = 0.90
RAW = """
import sys, time, numpy as np
from airserve.model import Engine
engine, seconds = Engine(sys.argv[1]), float(sys.argv[2])
x = np.random.default_rng(1).random([1, *engine.signature.inputs[0].shape[1:]], dtype=np.float32)
for _ in range(3): engine.run([x])
print("warm", flush=True)
sys.stdin.readline()
begun_s, runs = time.monotonic(), 0
while time.monotonic() < begun_s + seconds:
    engine.run([x])
    runs += 1
print(runs / (time.monotonic() - begun_s))
"""


def raw_hz(path: Path, seconds: float, processes: int) -> float:
    """Rows a second of as many processes at once, which begin together."""
    command = [sys.executable, "-c", RAW, str(path), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    running = [subprocess.Popen(command, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
    for one in running:
        one.stdout.readline()
    for one in running:
        one.stdin.write("go\n")
        one.stdin.flush()
    return sum(float(one.communicate()[0]) for one in running)


def served_hz(server: Server, requests: list[bytes], seconds: float) -> tuple[float, list[float]]:
    """Answers a second over one channel, and the CPU seconds of each process meanwhile."""
    before = {pid: cpu_s(pid) for pid in tree(server.pid)[1:]}
    sent = (("authorization", f"Bearer {server.key}"),)
    answered = closed(server.grpc, requests, seconds, connections=8, channels=1, grpc=INFER, metadata=sent)
    return answered / seconds, [cpu_s(pid) - spent for pid, spent in before.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    raw: list[float] = []
    two: list[float] = []
    one: list[float] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        path = real(folder / "real.onnx")
        requests = [grpc_request("real", x) for x in rows_of(REAL_INPUT.shape, 4)]
        with (
            airserve(folder, str(path), "--workers", "2", "--grpc-port", "0") as service,
            airserve(folder, str(path), "--grpc-port", "0") as alone,
        ):
            for _ in range(given.rounds):
                raw.append(raw_hz(path, given.seconds, 2))
                hz, spent_s = served_hz(service, requests, given.seconds)
                two.append(hz)
                shares.append(min(spent_s) / sum(spent_s))
                one.append(served_hz(alone, requests, given.seconds)[0])
    ratio = float(np.median(np.divide(two, raw)))
    figures = {
        "raw_hz": raw, "two_workers_hz": two, "one_worker_hz": one, "two_over_raw": ratio,
        "lesser_worker_cpu_share": float(np.median(shares)),
    }  # fmt: skip
    if given.json:
        print(json.dumps(figures))
    else:
        print(f"two cores, raw onnxruntime         {np.median(raw):6.1f} a second")
        print(f"one channel, two workers           {np.median(two):6.1f} a second, {ratio:.3f} of it, wanted {WANTED}")
        print(f"one channel, one worker            {np.median(one):6.1f} a second")
        print(f"the lesser worker's share of CPU   {np.median(shares):6.2f}")
    return ratio < WANTED


if __name__ == "__main__":
    sys.exit(main())
