"""CPU time of the server per answered request, TINY (MLP 784-128-10), binary and JSON, as a ratio to bare onnxruntime.

    python bench/serving.py [--seconds 2] [--rounds 3] [--json]

Eight keep-alive connections with a request always waiting, asked by a process of its own (wrk where it is installed,
else bench/loading.py); CPU time of the server's whole process tree over the answers. The bare engine is measured
between the rounds, and so is the floor: a bare echo on uvloop and httptools that takes and gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from airserve import wire
from airserve.contract import Deployment, Endpoint, SiteProcess, to_plain
from airserve.model import Array, Engine, Function, Tensor

X = Tensor("x", "float32", (-1, 784))


def tiny(path: Path) -> Path:
    """The graph: two matrix products, random weights."""
    rng = np.random.default_rng(0)
    weights = {"w1": (784, 128), "b1": (128,), "w2": (128, 10), "b2": (10,)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
            helper.make_node("Relu", ["a"], ["h"]),
            helper.make_node("Gemm", ["h", "w2", "b2"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 784])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(rng.normal(size=s).astype("float32"), n) for n, s in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


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
    print("ready echo http://127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
uvloop.run(run())
"""
LUA = """
local file = io.open("{}", "rb")
local whole = file:read("*all")
request = function() return whole end
"""


INFER = "/inference.GRPCInferenceService/ModelInfer"


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_s(pid: int) -> float:
    """CPU time of a process and all below it, user and system, by their clocks."""
    return sum(time.clock_gettime((~one << 3) | 2) for one in tree(pid))  # clock_getcpuclockid(3) as Linux encodes it


def bare_us(path: Path, x: Array, requests: int) -> float:
    engine = Engine(path)
    for _ in range(100):
        engine.run([x])
    begun_s = time.process_time()
    for _ in range(requests):
        engine.run([x])
    return 1e6 * (time.process_time() - begun_s) / requests


def start(*command: str) -> tuple[subprocess.Popen[str], str]:
    """A server and its address, once it says that it is ready."""
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().split()[2].removeprefix("http://")


def server_us(pid: int, address: str, request: Path, seconds: float, connections: int = 8, method: str = "") -> float:
    """CPU time per answer of a server, its children included, under load."""
    wrk = "" if method else shutil.which("wrk")
    if wrk:
        script = request.with_suffix(".lua")
        script.write_text(LUA.format(request))
        command = [
            wrk,
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}",
            "-s",
            str(script),
            f"http://{address}/",
        ]
    else:
        command = [sys.executable, str(Path(__file__).with_name("loading.py")), address, str(request)]
        command += ["--seconds", str(seconds), "--connections", str(connections), "--grpc", method]
    begun_s = cpu_s(pid)
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    spent_s = cpu_s(pid) - begun_s
    if wrk:
        assert "Non-2xx" not in said, said
        answered = int(said.partition(" requests in")[0].split()[-1])
    else:
        found = json.loads(said)
        assert not found["failed"], said
        answered = int(found["answered"])
    return 1e6 * spent_s / answered


def grpc_request(x: Array) -> bytes:
    """A ModelInferRequest with raw contents."""
    from airserve.serve.protocols._messages import classes

    made = classes()["ModelInferRequest"](model_name="tiny", raw_input_contents=[x.tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return bytes(made.SerializeToString())


def answer_of(address: str, request: bytes) -> bytes:
    """The bytes of the third answer to a request: the first two learn its form."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as one:
        for _ in range(3):
            one.sendall(request)
            answer = one.recv(1 << 20)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load for each form in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    x = np.random.default_rng(1).random((1, 784), dtype=np.float32)
    as_json = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 784], "data": x[0].tolist()}]})
    post = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(as_json)}\r\n\r\n".encode()
    requests = {"binary": wire.infer_request("tiny", [(X, x)], host="h"), "JSON": post + as_json}
    measured: dict[str, list[float]] = {}
    bare = []
    with tempfile.TemporaryDirectory() as folder:
        path = tiny(Path(folder) / "tiny.onnx")
        process = SiteProcess("mast", "127.0.0.1", 0, 1, (Endpoint("tiny", (Function("tiny", "model", str(path)),)),))
        deployment = Path(folder) / "deployment.json"
        deployment.write_text(json.dumps(to_plain(Deployment("bench", (process,), None, ()))))
        begun_s = time.monotonic()
        server, address = start("-m", "airserve.serve.service", str(deployment), "mast", "--die-with-parent")
        ready_s, started_s = time.monotonic() - begun_s, cpu_s(server.pid)
        asked = [(form, Path(folder) / f"{form}.request") for form in requests]
        for form, file in asked:
            file.write_bytes(requests[form])
        (Path(folder) / "grpc.request").write_bytes(grpc_request(x))
        alone = subprocess.Popen(
            [sys.executable, "-m", "airserve.cli", "serve", str(path), "--port", "0", "--grpc-port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert alone.stdout is not None
        grpc_address = alone.stdout.readline().partition("grpc://")[2].split()[0]
        (Path(folder) / "answer").write_bytes(answer_of(address, requests["binary"]))
        echo, echo_address = start("-c", ECHO, f"{folder}/answer")
        for _ in range(given.rounds):
            bare.append(bare_us(path, x, 3000))
            for form, file in asked:
                measured.setdefault(form, []).append(server_us(server.pid, address, file, given.seconds))
            us = server_us(alone.pid, grpc_address, Path(folder) / "grpc.request", given.seconds, method=INFER)
            measured.setdefault("gRPC", []).append(us)
            floor = server_us(echo.pid, echo_address, asked[0][1], given.seconds)
            measured.setdefault("floor: echo of the binary bytes", []).append(floor)
        bare.append(bare_us(path, x, 3000))
        resident_mb = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
        for one in (server, echo, alone):
            one.terminate()
            one.wait()
    engine_us = float(np.median(bare))
    rows = [
        {
            "form": form,
            "server_us": float(np.median(us)),
            "least_us": min(us),
            "of_bare": float(np.median(us)) / engine_us,
        }
        for form, us in measured.items()
    ]
    figures = {"bare_us": bare, "rows": rows, "ready_s": ready_s, "ready_cpu_s": started_s, "resident_mb": resident_mb}
    if given.json:
        print(json.dumps(figures))
        return 0
    table = Table(title="CPU time of the server per answer, TINY (MLP 784-128-10)")
    for column in ("request", "server us", "least", "x bare onnxruntime"):
        table.add_column(column, justify="left" if column == "request" else "right")
    table.add_row("bare onnxruntime", f"{engine_us:.1f}", f"{min(bare):.1f}", "1.0")
    for row in rows:
        table.add_row(row["form"], f"{row['server_us']:.1f}", f"{row['least_us']:.1f}", f"{row['of_bare']:.1f}")
    Console().print(table)
    print(f"ready after {ready_s:.2f} s ({started_s:.2f} CPU-s), {resident_mb:.0f} MB resident")
    return 0


if __name__ == "__main__":
    sys.exit(main())
