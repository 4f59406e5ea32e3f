"""TINY (MLP 784-128-10) served by airserve and by others, side by side: the same rows as JSON, the same load.

    python bench/peers/run.py [--seconds 3] [--only litserve] [--cache FOLDER] [--json]

Each peer is installed in an environment of its own under the cache (some minutes, once) and runs `serve_PEER.py` with
one worker. Its answers are compared with the engine's before it is measured: CPU time of its whole process tree per
answer with eight connections, time until it answers, memory. airserve runs with a key, limits and metrics on.
To add a peer, add a file and a line to `PEERS`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from graphs import TINY_INPUT, tiny
from processes import ENVIRONMENT, airserve, leaving_nothing, resident_mb
from rich.console import Console
from rich.table import Table
from serving import as_json, bare_us, binary, rows_of, spent_us

from airserve.model import Array, Engine
from airserve.serve.connecting import AnswerReader

CACHE = Path.home() / ".cache" / "airserve" / "peers"
UP_S = 120.0


class Peer(NamedTuple):
    packages: tuple[str, ...]
    path: str
    body: Callable[[Array], Any]
    outputs: Callable[[Any], Any]  # of an answer's JSON


def _v2(x: Array) -> Any:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}]}


def _named(x: Array) -> Any:
    return {"x": x.tolist()}


PEERS = {
    "litserve": Peer(("litserve", "onnxruntime", "numpy"), "/predict", _named, lambda found: found["y"]),
    "mlserver": Peer(
        ("mlserver", "onnxruntime", "numpy"), "/v2/models/tiny/infer", _v2, lambda found: found["outputs"][0]["data"]
    ),
    "bentoml": Peer(("bentoml", "onnxruntime", "numpy"), "/predict", _named, lambda found: found),
}


def installed(name: str, cache: Path) -> Path:
    """The Python of a peer's environment, made where it is not there."""
    folder = cache / name
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing {name} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS[name].packages]
        subprocess.run(command, check=True)
        done.touch()
    return python


def request(peer: Peer, x: Array) -> bytes:
    body = json.dumps(peer.body(x)).encode()
    head = f"POST {peer.path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ask(address: str, asked: bytes) -> Any:
    """The JSON of an answer with status 200."""
    host, _, port = address.rpartition(":")
    read = AnswerReader()
    with socket.create_connection((host, int(port)), timeout=10) as one:
        one.sendall(asked)
        while not (got := read.feed(one.recv(1 << 16))):
            pass
    if got[0].status != 200:
        raise ConnectionError(f"{got[0].status}: {bytes(got[0].body)[:200]!r}")
    return json.loads(got[0].body)


@contextlib.contextmanager
def running(name: str, python: Path, model: Path, first: bytes) -> Iterator[tuple[int, str, float]]:
    """A peer that answers: its process, address, and seconds until its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), str(Path(__file__).with_name(f"serve_{name}.py")), str(port)]
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"} | {"MODEL": str(model)}
    with tempfile.TemporaryFile() as said, leaving_nothing():
        begun_s = time.monotonic()
        server = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        while True:
            try:
                ask(f"127.0.0.1:{port}", first)
                break
            except (OSError, ValueError) as error:
                if server.poll() is not None or time.monotonic() > begun_s + UP_S:
                    said.seek(0)
                    tail = said.read().decode("utf-8", "replace")[-2000:]
                    raise RuntimeError(f"{name} does not answer ({error}):\n{tail}") from None
                time.sleep(0.05)
        yield server.pid, f"127.0.0.1:{port}", time.monotonic() - begun_s


def measure(name: str, folder: Path, cache: Path, seconds: float) -> list[dict[str, Any]]:
    """Rows of the table for a server."""
    path, rows = tiny(folder / "tiny.onnx"), rows_of(TINY_INPUT.shape, 32)
    wanted = Engine(path).run([rows[0]])[0]
    if name == "airserve":
        with airserve(folder, str(path)) as server:
            found = []
            for form, make in (("JSON", as_json), ("binary", lambda _, x, key: binary("tiny", TINY_INPUT, x, key))):
                requests = [make("tiny", x, server.key) for x in rows]
                if form == "JSON":
                    _same(name, ask(server.http, requests[0])["outputs"][0]["data"], wanted)
                us = spent_us(server.pid, server.http, requests, seconds)
                found.append({"server": f"airserve, {form}", "us": us, "ready_s": server.ready_s})
            return [{**one, "mb": resident_mb(server.pid)} for one in found]
    peer = PEERS[name]
    requests = [request(peer, x) for x in rows]
    with running(name, installed(name, cache), path, requests[0]) as (pid, address, ready_s):
        _same(name, peer.outputs(ask(address, requests[0])), wanted)
        us = spent_us(pid, address, requests, seconds)
        return [{"server": f"{name}, JSON", "us": us, "ready_s": ready_s, "mb": resident_mb(pid)}]


def _same(name: str, found: Any, wanted: Array) -> None:
    if not np.allclose(np.ravel(found), wanted.ravel(), rtol=1e-4, atol=1e-5):
        raise RuntimeError(f"{name} answers something else than the engine.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", choices=tuple(PEERS), action="append")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found, missing = [], []
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        bare = bare_us(tiny(folder / "tiny.onnx"), 1.0, 1, 1000)
        for name in ("airserve", *(given.only or PEERS)):
            try:
                found += measure(name, folder, given.cache, given.seconds)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                missing.append(name)
                print(error, file=sys.stderr)
    if given.json:
        print(json.dumps({"bare_us": bare, "servers": found, "missing": missing}))
        return bool(missing)
    table = Table("server", "CPU us an answer", "share of the bare engine's rate", "ready s", "MB", box=None)
    for one in found:
        share = f"{100 * bare / one['us']:.1f} %"
        table.add_row(one["server"], f"{one['us']:.0f}", share, f"{one['ready_s']:.1f}", f"{one['mb']:.0f}")
    Console().print(table)
    print(f"bare onnxruntime: {bare:.1f} us a row, one at a time")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
