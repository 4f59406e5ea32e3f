"""CPU time of the server per request for a small MLP (784-128-10), binary and JSON, as a ratio to bare onnxruntime.

    python bench/serving.py [--requests 4000] [--json]

One client, requests one after another and pipelined by 32, on the same machine; CPU time of the server's process, so
that the client and other processes do not count. The bare engine is measured before and after, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
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
from airserve.serve.routing import AnswerReader

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


def cpu_s(pid: int) -> float:
    """CPU time of a process, user and system, by its clock."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3) as Linux encodes it


def bare_us(path: Path, x: Array, requests: int) -> float:
    engine = Engine(path)
    for _ in range(100):
        engine.run([x])
    begun_s = time.process_time()
    for _ in range(requests):
        engine.run([x])
    return 1e6 * (time.process_time() - begun_s) / requests


def server_us(pid: int, port: int, request: bytes, requests: int, depth: int) -> float:
    """CPU time per request of the server, with `depth` requests under way."""
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = AnswerReader()

        def ask(count: int) -> None:
            for _ in range(count // depth):
                one.sendall(request * depth)
                got = 0
                while got < depth:
                    for answer in reader.feed(one.recv(1 << 18)):
                        assert answer.status == 200, answer.body
                        got += 1

        ask(10 * depth)
        begun_s = cpu_s(pid)
        ask(requests)
        return 1e6 * (cpu_s(pid) - begun_s) / (requests // depth * depth)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    x = np.random.default_rng(1).random((1, 784), dtype=np.float32)
    as_json = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 784], "data": x[0].tolist()}]})
    post = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(as_json)}\r\n\r\n".encode()
    requests = {"binary": wire.infer_request("tiny", [(X, x)], host="h"), "JSON": post + as_json}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = tiny(Path(folder) / "tiny.onnx")
        process = SiteProcess("mast", "127.0.0.1", 0, 1, (Endpoint("tiny", (Function("tiny", "model", str(path)),)),))
        deployment = Path(folder) / "deployment.json"
        deployment.write_text(json.dumps(to_plain(Deployment("bench", (process,), None, ()))))
        command = [sys.executable, "-m", "airserve.serve.service", str(deployment), "mast", "--die-with-parent"]
        begun_s = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline().split()[2].rpartition(":")[2])
            ready_s, started_s = time.monotonic() - begun_s, cpu_s(server.pid)
            bare = [bare_us(path, x, given.requests)]
            measured = {
                (form, depth): server_us(server.pid, port, request, given.requests, depth)
                for form, request in requests.items()
                for depth in (1, 32)
            }
            bare.append(bare_us(path, x, given.requests))
            resident_mb = (
                int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
            )
            server.terminate()
        rows = [
            {"form": form, "under_way": depth, "server_us": us, "of_bare": us / np.mean(bare)}
            for (form, depth), us in measured.items()
        ]
    figures = {"bare_us": bare, "rows": rows, "ready_s": ready_s, "ready_cpu_s": started_s, "resident_mb": resident_mb}
    if given.json:
        print(json.dumps(figures))
        return 0
    table = Table(title="CPU time of the server per request, TINY (MLP 784-128-10)")
    for column in ("request", "under way", "server us", "x bare onnxruntime"):
        table.add_column(column, justify="left" if column == "request" else "right")
    table.add_row("bare onnxruntime", "-", f"{np.mean(bare):.1f}", "1.0")
    for row in rows:
        table.add_row(str(row["form"]), str(row["under_way"]), f"{row['server_us']:.1f}", f"{row['of_bare']:.1f}")
    Console().print(table)
    print(f"ready after {ready_s:.2f} s ({started_s:.2f} CPU-s), {resident_mb:.0f} MB resident")
    return 0


if __name__ == "__main__":
    sys.exit(main())
