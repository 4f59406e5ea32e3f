"""The twin's TCP against the kernel's: 1 kB, 100 kB and 1 MB up to a site and 1 kB back, warm and on a new connection.

sudo python bench/transport.py

Two network namespaces, each with a TUN device; between them this script holds every packet for the delay and lets
packets pass at the rate. Both ends are the kernel's TCP; the link is ours (netem is not in every kernel). The twin's
radio is ideal, its site's link has the same rate, and the delay between the namespaces is half of the twin's own round
trip.
"""

import argparse
import ctypes
import fcntl
import heapq
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import threading
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from airserve.linux import die_with_parent, run_on_time
from airserve.network import twin
from airserve.network.radio import Trace
from airserve.network.topology import Network
from airserve.network.traffic import Flow

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
CLIENT, SERVER, PORT = "10.77.0.1", "10.77.0.2", 7777
ANSWER = 1000
TRANSPORTS = ("tcp-warm", "tcp-cold")


def namespace(address: str, peer: str, work) -> int:
    """Move this thread to a new network namespace with a TUN device, run `work` there; returns the device."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise SystemExit(f"a network namespace needs root ({os.strerror(ctypes.get_errno())}); sudo python {__file__}")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"air", IFF_TUN | IFF_NO_PI))
    for command in (f"addr add {address} peer {peer} dev air", "link set air mtu 1452 txqueuelen 10000 up"):
        subprocess.run(["ip", *command.split()], check=True)  # a segment carries 1,400 bytes, as in the twin
    work()
    return tun


def shape(tuns: list[int], delay_s: float, rate_bps: float) -> None:
    """Hand packets from one TUN device to the other, each way at a rate and after a delay, in a process of its own."""
    if os.fork():
        return
    die_with_parent(os.getppid())
    run_on_time(10)
    free_s, held, number = [0.0, 0.0], [], 0
    while True:
        wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
        for tun in select.select(tuns, [], [], wait_s)[0]:
            way = tuns.index(tun)
            while True:
                try:
                    packet = os.read(tun, 65536)
                except BlockingIOError:
                    break
                free_s[way] = max(free_s[way], time.monotonic()) + 8 * len(packet) / rate_bps
                number += 1
                heapq.heappush(held, (free_s[way] + delay_s, number, 1 - way, packet))
        while held and held[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(held)
            os.write(tuns[to], packet)


def serve(listener: socket.socket) -> None:
    """Answer every message: 8 bytes of length and so many bytes; back come ANSWER bytes."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while head := connection.recv(8, socket.MSG_WAITALL):
            left = struct.unpack("!Q", head)[0] - 8
            while left > 0:
                left -= len(connection.recv(min(left, 1 << 20)))
            connection.sendall(bytes(ANSWER))


def link(delay_s: float, rate_bps: float, control: str):
    """A link between two namespaces with a server behind it; returns how to open a socket at the client's end."""
    made: dict[str, object] = {}

    def listen() -> None:
        listener = socket.socket()
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
        listener.bind(("0.0.0.0", PORT))
        listener.listen(64)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()

    def client() -> None:
        made["tuns"] = [namespace(CLIENT, SERVER, lambda: None), made["server"]]
        made["ready"].set()
        while True:
            made["asked"].wait()
            made["asked"].clear()
            one = socket.socket()
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made["socket"] = one
            made["ready"].set()

    made["ready"], made["asked"] = threading.Event(), threading.Event()
    server = threading.Thread(target=lambda: made.update(server=namespace(SERVER, CLIENT, listen)))
    server.start()
    server.join()
    threading.Thread(target=client, daemon=True).start()
    made["ready"].wait()
    shape(made["tuns"], delay_s, rate_bps)

    def fresh() -> socket.socket:
        made["ready"].clear()
        made["asked"].set()
        made["ready"].wait()
        return made["socket"]

    return fresh


def exchange(connection: socket.socket, nbytes: int) -> None:
    connection.sendall(struct.pack("!Q", nbytes) + bytes(nbytes - 8))
    connection.recv(ANSWER, socket.MSG_WAITALL)


def measured_ms(fresh, nbytes: int, transport: str, runs: int) -> float:
    """Median of some exchanges; a warm connection has carried the same and idled for two seconds before each."""
    took = []
    if transport == "tcp-warm":
        with fresh() as connection:
            connection.connect((SERVER, PORT))
            exchange(connection, nbytes)
            for _ in range(runs):
                time.sleep(2)
                began_s = time.monotonic()
                exchange(connection, nbytes)
                took.append(time.monotonic() - began_s)
    else:
        for _ in range(runs):
            with fresh() as connection:
                began_s = time.monotonic()
                connection.connect((SERVER, PORT))
                exchange(connection, nbytes)
                took.append(time.monotonic() - began_s)
    return 1e3 * statistics.median(took)


def twin_ms(delay_ms: float, rate_mbps: float, nbytes: int, transport: str) -> float:
    """Median latency in the twin with one device, an ideal radio and the rate on the site's link."""
    site = {"name": "site", "kind": "edge", "cores": 8, "delay_ms": delay_ms, "rate_mbps": rate_mbps}
    hall = Network.model_validate({"cells": [{"name": "hall"}], "slices": [{"name": "all"}], "sites": [site]})
    snr = np.full((1, 1, 4), 60, np.float32)
    ideal = Trace("inf-dh", 0.01, snr, snr[..., :1], np.zeros((1, 3), np.float32), {})
    flow = Flow("a", "all", 1, 0.4, site="site", bytes_up=[nbytes], bytes_down=[ANSWER], transport=transport)
    run = twin.run(hall, [flow], until_s=60, seed=1, trace=ideal, grant="configured", processing=False)
    return float(np.median(run.readings["a"].latency_ms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=float, default=20.0, help="one way, of the twin's link")
    parser.add_argument("--rate-mbps", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--control", default="reno", help="the kernel's congestion control")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    trip_ms = twin_ms(args.delay_ms, 1e6, 1, "stream")
    fresh = link(trip_ms / 2e3, args.rate_mbps * 1e6, args.control)
    rows = []
    for nbytes in (1_000, 100_000, 1_000_000):
        for transport in TRANSPORTS:
            real = measured_ms(fresh, nbytes, transport, args.runs)
            said = twin_ms(args.delay_ms, args.rate_mbps, nbytes, transport)
            rows.append({"bytes": nbytes, "transport": transport, "kernel_ms": real, "twin_ms": said})
    if args.json:
        return print(json.dumps({"round_trip_ms": trip_ms, "control": args.control, "rows": rows}, indent=1))
    table = Table("bytes", "transport", f"kernel ({args.control}) ms", "twin ms", "twin / kernel", box=None)
    for one in rows:
        ratio = one["twin_ms"] / one["kernel_ms"]
        table.add_row(
            str(one["bytes"]), one["transport"], f"{one['kernel_ms']:.1f}", f"{one['twin_ms']:.1f}", f"{ratio:.3f}"
        )
    Console().print(f"{args.rate_mbps:g} Mbit/s, round trip {trip_ms:.1f} ms, median of {args.runs}", table, sep="\n")


if __name__ == "__main__":
    main()
