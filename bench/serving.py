"""CPU time of the server per answered request, TINY (MLP 784-128-10) and REAL (ResNet-18 at 224), beside onnxruntime.

    python bench/serving.py [--seconds 2] [--rounds 3] [--json]

As a user runs it: `airserve serve` with a key, its hash looked up among several, a rate, a concurrency limit, models of
its own, deadlines and metrics. Eight keep-alive connections with a request always waiting, thirty-two different rows,
asked by a process of its own (wrk where it is installed, else bench/loading.py); CPU time of the server's whole process
tree over the answers. Between the rounds, in processes of their own: bare onnxruntime, as many at once as there are
workers, and the floors, which take and give the same bytes and compute nothing: an echo on uvloop and httptools, and
grpcio's own server. Medians of the rounds; ends with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from graphs import REAL_INPUT, TINY_INPUT, real, tiny
from loading import INFER, closed
from processes import ENVIRONMENT, airserve, cpu_s
from rich.console import Console
from rich.table import Table

from airserve import wire
from airserve.model import Array, Engine

ROWS = 32
LIMITS_US = {"TINY, binary": 30.0, "TINY, JSON": 60.0, "TINY, gRPC": 330.0}
REAL_SHARE = 0.97  # of a REAL answer's time that the engine alone would take

BARE = """
import sys, time, numpy as np
from airserve.model import Engine
engine, seconds = Engine(sys.argv[1]), float(sys.argv[2])
x = np.random.default_rng(1).random([1, *engine.signature.inputs[0].shape[1:]], dtype=np.float32)
for _ in range(3): engine.run([x])
until_s, begun_s, runs = time.monotonic() + seconds, time.process_time(), 0
while time.monotonic() < until_s:
    for _ in range(int(sys.argv[3])): engine.run([x])
    runs += int(sys.argv[3])
print(1e6 * (time.process_time() - begun_s) / runs)
"""
ECHO = """
import asyncio, sys, httptools, uvloop
answer = open(sys.argv[1], "rb").read()
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.parser = transport, httptools.HttpRequestParser(self)
    def data_received(self, data):
        self.parser.feed_data(data)
    def on_message_complete(self):
        self.transport.write(answer)
async def run():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print("127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
uvloop.run(run())
"""
GRPC_ECHO = """
import sys, grpc
from concurrent.futures import ThreadPoolExecutor
answer = open(sys.argv[1], "rb").read()
server = grpc.server(ThreadPoolExecutor(1))
handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(lambda data, context: answer)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
print("127.0.0.1:%d" % server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def rows_of(shape: tuple[int, ...], count: int) -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.random((1, *shape[1:]), dtype=np.float32) for _ in range(count)]


def binary(model: str, tensor: Any, x: Array, key: str) -> bytes:
    return wire.infer_request(model, [(tensor, x)], host="h", extra=f"Authorization: Bearer {key}\r\n")


def as_json(model: str, x: Array, key: str) -> bytes:
    """The numbers as Python writes a list of them: all the digits of a double."""
    named = {"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
    body = orjson.dumps({"inputs": [named]})
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def grpc_request(model: str, x: Array) -> bytes:
    """A ModelInferRequest with raw contents."""
    from airserve.serve.protocols._messages import classes

    made = classes()["ModelInferRequest"](model_name=model, raw_input_contents=[x.tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return bytes(made.SerializeToString())


def bare_us(path: Path, seconds: float, processes: int, at_once: int) -> float:
    """CPU time of the engine per row, `processes` of them at once."""
    command = [sys.executable, "-c", BARE, str(path), str(seconds), str(at_once)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(processes)]
    return float(np.mean([float(one.communicate()[0]) for one in running]))


def spent_us(pid: int, address: str, requests: list[bytes], seconds: float, **how: Any) -> float:
    """CPU time of a server per answer under load."""
    begun_s = cpu_s(pid)
    answered = closed(address, requests, seconds, **how)
    return 1e6 * (cpu_s(pid) - begun_s) / answered


def floor(code: str, answer: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", code, str(answer)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def measure_tiny(folder: Path, seconds: float, rounds: int) -> dict[str, list[float]]:
    """us per answer of one worker, by what was asked."""
    path, found = tiny(folder / "tiny.onnx"), dict[str, list[float]]()
    rows = rows_of(TINY_INPUT.shape, ROWS)
    y = Engine(path).run([rows[0]])[0]
    (folder / "answer").write_bytes(wire.infer_response("tiny", "1", [(TINY_INPUT, y)], server_timing="x" * 64))
    (folder / "grpc").write_bytes(y.tobytes() + b"x" * 40)
    echo, echo_at = floor(ECHO, folder / "answer")
    bare_grpc, bare_grpc_at = floor(GRPC_ECHO, folder / "grpc")
    with airserve(folder, str(path), "--grpc-port", "0") as server:
        rest = [binary("tiny", TINY_INPUT, x, server.key) for x in rows]
        text = [as_json("tiny", x, server.key) for x in rows]
        calls = [grpc_request("tiny", x) for x in rows]
        sent = (("authorization", f"Bearer {server.key}"),)
        for _ in range(rounds):
            for name, us in {
                "bare onnxruntime": bare_us(path, seconds / 2, 1, 1000),
                "TINY, binary": spent_us(server.pid, server.http, rest, seconds),
                "echo of its bytes": spent_us(echo.pid, echo_at, rest, seconds),
                "TINY, JSON": spent_us(server.pid, server.http, text, seconds),
                "echo of the JSON": spent_us(echo.pid, echo_at, text, seconds),
                "TINY, gRPC": spent_us(server.pid, server.grpc, calls, seconds, grpc=INFER, metadata=sent),
                "echo by grpcio's server": spent_us(bare_grpc.pid, bare_grpc_at, calls, seconds, grpc=INFER),
            }.items():
                found.setdefault(name, []).append(us)
    for one in (echo, bare_grpc):
        one.kill()
        one.communicate()
    return found


def measure_real(folder: Path, seconds: float, rounds: int, workers: int = 2) -> dict[str, list[float]]:
    """us per answer of two workers, eight in flight."""
    path, found = real(folder / "real.onnx"), dict[str, list[float]]()
    with airserve(folder, str(path), "--workers", str(workers)) as server:
        requests = [binary("real", REAL_INPUT, x, server.key) for x in rows_of(REAL_INPUT.shape, 2)]
        for _ in range(rounds):
            found.setdefault("bare onnxruntime", []).append(bare_us(path, 2 * seconds, workers, 1))
            found.setdefault("REAL, binary", []).append(spent_us(server.pid, server.http, requests, 2 * seconds))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load for each form in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--only", choices=("tiny", "real"))
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        if given.only != "real":
            figures["tiny_us"] = measure_tiny(folder, given.seconds, given.rounds)
        if given.only != "tiny":
            figures["real_us"] = measure_real(folder, given.seconds, given.rounds)
    short = [
        name for name, us in figures.get("tiny_us", {}).items() if name in LIMITS_US and np.median(us) > LIMITS_US[name]
    ]
    if given.only != "tiny":
        ratios = np.divide(figures["real_us"]["bare onnxruntime"], figures["real_us"]["REAL, binary"])
        figures["real_share"] = float(np.median(ratios))
        short += ["REAL, binary"] * (figures["real_share"] < REAL_SHARE)
    figures["short"] = short
    if given.json:
        print(json.dumps(figures))
        return bool(short)
    table = Table(title="CPU time per answer: key, limits, deadlines and metrics on", box=None)
    for column in ("", "us", "least", "limit"):
        table.add_column(column, justify="left" if not column else "right")
    for name, us in figures.get("tiny_us", {}).items():
        limit = LIMITS_US.get(name)
        table.add_row(name, f"{np.median(us):.1f}", f"{min(us):.1f}", f"{limit:.0f}" if limit else "")
    for name, us in figures.get("real_us", {}).items():
        table.add_row(f"{name}, two at once", f"{np.median(us):.0f}", f"{min(us):.0f}", "")
    Console().print(table)
    if "real_share" in figures:
        print(f"REAL: raw CPU per row over server CPU per answer {figures['real_share']:.3f}, wanted {REAL_SHARE}")
    return bool(short)


if __name__ == "__main__":
    sys.exit(main())
