"""One gRPC channel with 8 calls in flight against two workers: the rate, beside two cores' raw rate with onnxruntime.

    python bench/handing.py [--seconds 6] [--rounds 5] [--json]

A channel is one connection, which comes to one worker; that hands costly requests to its sibling when it is idle. REAL
is ResNet-18 at 224. In every round, one after the other: the service with two workers, one with one worker for what a
single core gives, and two processes that call onnxruntime in a loop. Rates by the clock, so on a quiet machine; CPU
time says on any how the work was divided, and what a hand-over costs. Medians; ends with 1 under 90 %.
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
begun_s, begun_cpu_s, runs = time.monotonic(), time.process_time(), 0
while time.monotonic() < begun_s + seconds:
    engine.run([x])
    runs += 1
print(runs / (time.monotonic() - begun_s), (time.process_time() - begun_cpu_s) / runs)
"""


def raw(path: Path, seconds: float, processes: int) -> tuple[float, float]:
    """Rows a second of as many processes at once, which begin together, and CPU seconds of a row."""
    command = [sys.executable, "-c", RAW, str(path), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    running = [subprocess.Popen(command, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
    for one in running:
        one.stdout.readline()
    for one in running:
        one.stdin.write("go\n")
        one.stdin.flush()
    hz, row_s = np.array([one.communicate()[0].split() for one in running], float).T
    return float(hz.sum()), float(row_s.mean())


def served(server: Server, requests: list[bytes], seconds: float) -> tuple[float, float, float]:
    """Answers a second over one channel, CPU seconds of an answer, and the lesser worker's part of them."""
    before = {pid: cpu_s(pid) for pid in tree(server.pid)[1:]}
    sent = (("authorization", f"Bearer {server.key}"),)
    answered = closed(server.grpc, requests, seconds, connections=8, channels=1, grpc=INFER, metadata=sent)
    spent_s = [cpu_s(pid) - spent for pid, spent in before.items()]
    return answered / seconds, sum(spent_s) / answered, min(spent_s) / sum(spent_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        path = real(folder / "real.onnx")
        requests = [grpc_request("real", x) for x in rows_of(REAL_INPUT.shape, 4)]
        with (
            airserve(folder, str(path), "--workers", "2", "--grpc-port", "0") as service,
            airserve(folder, str(path), "--grpc-port", "0") as alone,
        ):
            for _ in range(given.rounds):
                two, one = served(service, requests, given.seconds), served(alone, requests, given.seconds)
                found.append((*raw(path, given.seconds, 2), *two, *one[:2]))
    names = ("raw_hz", "raw_cpu_s", "two_hz", "two_cpu_s", "lesser_share", "one_hz", "one_cpu_s")
    columns = dict(zip(names, np.array(found).T, strict=True))
    ratio = float(np.median(columns["two_hz"] / columns["raw_hz"]))
    engine = float(np.median(columns["raw_cpu_s"] / columns["two_cpu_s"]))
    handed = float(np.median(columns["two_cpu_s"] / columns["one_cpu_s"]))
    middle = {name: float(np.median(column)) for name, column in columns.items()}
    if given.json:
        print(json.dumps({**middle, "two_over_raw": ratio, "engine_share_of_cpu": engine, "two_cpu_over_one": handed}))
    else:
        print(f"two cores, raw onnxruntime         {middle['raw_hz']:6.1f} a second")
        print(
            f"one channel, two workers           {middle['two_hz']:6.1f} a second, {ratio:.3f} of it, wanted {WANTED}"
        )
        print(f"one channel, one worker            {middle['one_hz']:6.1f} a second")
        print(f"the lesser worker's share of CPU   {middle['lesser_share']:6.2f}")
        print(f"raw CPU a row over CPU an answer   {engine:6.3f}")
        print(f"CPU an answer, two workers to one  {handed:6.3f}")
    return ratio < WANTED


if __name__ == "__main__":
    sys.exit(main())
