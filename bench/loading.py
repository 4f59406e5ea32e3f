"""A load for servers: keep-alive connections with a request always waiting, as wrk's, in a process of its own.

    python bench/loading.py HOST:PORT REQUEST_FILE [--connections 8] [--seconds 3] [--grpc METHOD]

Prints the requests that were answered, their seconds, and how many answers were not 200, as JSON. One system call to
send and one to receive per answer; the answers' lengths are taken from the first one of each connection's header.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from pathlib import Path


def load(address: tuple[str, int], request: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Asks for `seconds`; the counts."""
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        one = socket.create_connection(address)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.sendall(request)
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
                one.sendall(request)
    for key in list(selector.get_map().values()):
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()
    return {"answered": answered, "failed": failed, "seconds": now_s - begun_s}


def load_grpc(address: str, method: str, request: bytes, under_way: int, seconds: float) -> dict[str, float]:
    """The same over gRPC: calls under way on one channel each, their messages as bytes."""
    import threading

    import grpc

    until_s = time.monotonic() + seconds
    answered = []

    def ask() -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call, count = channel.unary_unary(method), 0
            while time.monotonic() < until_s:
                call(request)
                count += 1
            answered.append(count)

    threads = [threading.Thread(target=ask) for _ in range(under_way)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"answered": sum(answered), "failed": 0, "seconds": seconds}


def _end(held: bytearray) -> int:
    """Where the first answer ends; 0 while that is not known."""
    head = held.find(b"\r\n\r\n")
    if head < 0:
        return 0
    lower = bytes(held[:head]).lower()
    return head + 4 + int(lower.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("request", type=Path)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--grpc", default="", help="a method, such as /inference.GRPCInferenceService/ModelInfer")
    given = parser.parse_args()
    request = given.request.read_bytes()
    if given.grpc:
        print(json.dumps(load_grpc(given.address, given.grpc, request, given.connections, given.seconds)))
        return 0
    host, _, port = given.address.rpartition(":")
    print(json.dumps(load((host, int(port)), request, given.connections, given.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
