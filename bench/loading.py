"""Loads for servers, in a process of their own: closed, as wrk's, and open, at moments set beforehand.

    python bench/loading.py closed HOST:PORT REQUEST_FILE... [--connections 8] [--seconds 3] [--grpc METHOD]
    python bench/loading.py open HOST:PORT REQUEST_FILE... --rate-hz 100 [--arrivals poisson|even] [--seconds 3]

Closed: keep-alive connections with a request always waiting; prints how many were answered. Open: each request is sent
when it is due, whatever the answers do, on a connection that is free then; latency counts from that moment (seconds,
printed in order of sending). All print JSON. A file's request is sent as it is; of several, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

INFER = "/inference.GRPCInferenceService/ModelInfer"
LUA = """
local requests, at = {{}}, 0
for k = 0, {} do
  local file = io.open("{}/" .. k, "rb")
  requests[k] = file:read("*all")
  file:close()
end
request = function() at = (at + 1) % ({} + 1); return requests[at] end
"""


def closed(
    address: str,
    requests: list[bytes],
    seconds: float,
    *,
    connections: int = 8,
    channels: int | None = None,
    grpc: str = "",
    metadata: tuple[tuple[str, str], ...] = (),
) -> int:
    """Answers that a server gave to another process that asked for `seconds`; fails where one was not 200."""
    wrk = None if grpc else shutil.which("wrk")
    with tempfile.TemporaryDirectory() as folder:
        for k, request in enumerate(requests):
            (Path(folder) / str(k)).write_bytes(request)
        if wrk:
            script = Path(folder) / "wrk.lua"
            script.write_text(LUA.format(len(requests) - 1, folder, len(requests) - 1))
            lasts_s = max(1, round(seconds))
            command = [wrk, "-t1", f"-c{connections}", f"-d{lasts_s}", "--timeout", "30", "-s", str(script)]
            said = subprocess.run([*command, f"http://{address}/"], check=True, capture_output=True, text=True).stdout
            assert "Non-2xx" not in said, said
            return int(said.partition(" requests in")[0].split()[-1])
        files = [str(Path(folder) / str(k)) for k in range(len(requests))]
        command = [sys.executable, __file__, "closed", address, *files, "--seconds", str(seconds)]
        command += ["--connections", str(connections), "--grpc", grpc, "--metadata", json.dumps(metadata)]
        command += ["--channels", str(channels or connections)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert not found["failed"], found
    return int(found["answered"])


def opened(address: str, requests: list[bytes], due_s: list[float]) -> list[float]:
    """Latencies in seconds from when each request was due, another process having sent them."""
    with tempfile.TemporaryDirectory() as folder:
        for k, request in enumerate(requests):
            (Path(folder) / str(k)).write_bytes(request)
        (Path(folder) / "due").write_text(json.dumps(due_s))
        files = [str(Path(folder) / str(k)) for k in range(len(requests))]
        command = [sys.executable, __file__, "open", address, *files, "--due", f"{folder}/due"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return list(found)


def load(address: tuple[str, int], requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """Asks for `seconds` with a request always waiting on each connection; the counts."""
    selector = selectors.DefaultSelector()
    sent = 0
    for _ in range(connections):
        one = _connected(address)
        one.sendall(requests[sent % len(requests)])
        sent += 1
        selector.register(one, selectors.EVENT_READ, bytearray())
    answered = failed = 0
    begun_s = time.monotonic()
    until_s = begun_s + seconds
    while (now_s := time.monotonic()) < until_s:
        for key, _ in selector.select(1.0):
            one, held = key.fileobj, key.data
            assert isinstance(one, socket.socket)
            held += one.recv(1 << 20)
            while (end := _end(held)) and len(held) >= end:
                answered += 1
                failed += not held.startswith(b"HTTP/1.1 200")
                del held[:end]
                one.sendall(requests[sent % len(requests)])
                sent += 1
    for key in list(selector.get_map().values()):
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()
    return {"answered": answered, "failed": failed, "seconds": now_s - begun_s}


def load_open(address: tuple[str, int], requests: list[bytes], due_s: list[float]) -> list[float]:
    """Sends request k at `due_s[k]` from now on and waits for all; latencies in seconds, in order of sending."""
    epoll, free = selectors.EpollSelector(), deque[socket.socket]()
    begun_s, latencies = time.monotonic() + 0.2, [0.0] * len(due_s)
    waiting: dict[socket.socket, tuple[int, bytearray]] = {}
    for _ in range(8):
        one = _connected(address)
        epoll.register(one, selectors.EVENT_READ)
        free.append(one)
    next_, done = 0, 0
    while done < len(due_s):
        now_s = time.monotonic() - begun_s
        while next_ < len(due_s) and due_s[next_] <= now_s:
            if not free:
                one = _connected(address)
                epoll.register(one, selectors.EVENT_READ)
                free.append(one)
            one = free.popleft()
            waiting[one] = (next_, bytearray())
            one.sendall(requests[next_ % len(requests)])
            next_ += 1
            now_s = time.monotonic() - begun_s
        left_s = due_s[next_] - now_s if next_ < len(due_s) else 1.0
        # A millisecond before the next is due it is awaited awake: timers are late by more than an answer takes.
        for key, _ in epoll.select(0 if left_s < 1e-3 else left_s - 1e-3):
            one = key.fileobj  # type: ignore[assignment]
            k, held = waiting[one]
            held += one.recv(1 << 20)
            if (end := _end(held)) and len(held) >= end:
                latencies[k] = time.monotonic() - begun_s - due_s[k]
                assert held.startswith(b"HTTP/1.1 200"), bytes(held[:200])
                del waiting[one]
                free.append(one)
                done += 1
    for one in free:
        one.close()
    return latencies


def load_grpc(
    address: str, method: str, requests: list[bytes], connections: int, channels: int, seconds: float, metadata: Any
) -> dict[str, float]:
    """The closed load over gRPC: `connections` calls under way on `channels` channels, their messages as bytes."""
    import threading

    import grpc

    answered: list[int] = []
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]))
            for _ in range(channels)
        ]
        calls = [channel.unary_unary(method) for channel in opened]
        until_s = time.monotonic() + seconds

        def ask(k: int) -> None:
            count, call = 0, calls[k % channels]
            while time.monotonic() < until_s:
                call(requests[(k + count) % len(requests)], metadata=metadata)
                count += 1
            answered.append(count)

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"answered": sum(answered), "failed": connections - len(answered), "seconds": seconds}


def _connected(address: tuple[str, int]) -> socket.socket:
    one = socket.create_connection(address)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def _end(held: bytearray) -> int:
    """Where the first answer ends; 0 while that is not known."""
    head = held.find(b"\r\n\r\n")
    if head < 0:
        return 0
    lower = bytes(held[:head]).lower()
    return head + 4 + int(lower.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])


def arrivals(kind: str, rate_hz: float, seconds: float, seed: int = 0) -> list[float]:
    """Moments of sending in seconds: Poisson, or evenly spaced."""
    count = round(rate_hz * seconds)
    if kind == "even":
        return list(np.arange(count) / rate_hz)
    return list(np.cumsum(np.random.default_rng(seed).exponential(1 / rate_hz, count)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("closed", "open"))
    parser.add_argument("address")
    parser.add_argument("requests", type=Path, nargs="+")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--channels", type=int, default=8, help="of gRPC")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--grpc", default="", help=f"a method, such as {INFER}")
    parser.add_argument("--metadata", default="[]", help="of gRPC calls: JSON, a list of names and values")
    parser.add_argument("--rate-hz", type=float, default=100.0)
    parser.add_argument("--arrivals", choices=("poisson", "even"), default="poisson")
    parser.add_argument("--due", type=Path, help="a JSON file of moments, in place of --rate-hz")
    given = parser.parse_args()
    requests = [file.read_bytes() for file in given.requests]
    host, _, port = given.address.rpartition(":")
    if given.kind == "open":
        due_s = (
            json.loads(given.due.read_text()) if given.due else arrivals(given.arrivals, given.rate_hz, given.seconds)
        )
        print(json.dumps(load_open((host, int(port)), requests, due_s)))
    elif given.grpc:
        metadata = [(name, value) for name, value in json.loads(given.metadata)]
        found = load_grpc(
            given.address, given.grpc, requests, given.connections, given.channels, given.seconds, metadata
        )
        print(json.dumps(found))
    else:
        print(json.dumps(load((host, int(port)), requests, given.connections, given.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
