"""The relay: bytes in are bytes out, the MAC's times are the MAC's, ends follow what came before them, idle is idle."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from airserve import airlog
from airserve.contract import Air, AirSite, Deployment, to_plain
from airserve.network.emulator import QUEUE_BYTES
from airserve.network.mac import Mac
from airserve.network.topology import Network

pytestmark = pytest.mark.realtime

DEVICES = ("127.1.9.1", "127.1.9.2", "127.1.9.3")
DELAY_MS = 3.0
SLOT_S = 5e-4
SEED = 5


def network(target_bler: float = 0.1) -> Network:
    return Network.model_validate(
        {
            "cells": [{"name": "hall", "target_bler": target_bler}],
            "slices": [{"name": "control", "dedicated": 10, "min": 20, "max": 60}, {"name": "video", "min": 30}],
            "sites": [{"name": "mast", "kind": "edge", "delay_ms": DELAY_MS}],
        }
    )


@dataclass
class RelayProcess:
    air: Air
    run_dir: Path
    process: subprocess.Popen[str]

    def log(self) -> np.ndarray:
        """All records, once the relay has written what happened until now."""
        now_s, until_s = time.monotonic(), time.monotonic() + 10
        while airlog.size(self.run_dir, airlog.STATUS) == 0 or airlog.status(self.run_dir)["until_s"] < now_s:
            assert time.monotonic() < until_s, "the relay writes no log"
            time.sleep(0.05)
        return airlog.read(self.run_dir)

    def connect(self, device: int, site: int = 0) -> socket.socket:
        target = self.air.sites[site]
        return socket.create_connection((target.host, target.port), 10, source_address=(DEVICES[device], 0))


class Server:
    """A TCP server on a free port of 127.0.0.1 that runs `answer(connection)` in a thread for each."""

    def __init__(self, answer) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.answer = answer
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with sock:
            self.answer(sock)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


def echo(sock: socket.socket) -> None:
    try:
        while data := sock.recv(1 << 16):
            sock.sendall(data)
    except ConnectionResetError:
        return


def free_port() -> int:
    with socket.create_server(("127.2.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def start(tmp: Path, upstreams: list[int], bler: float = 0.1) -> RelayProcess:
    port = free_port()
    sites = tuple(
        AirSite(f"site{s}", f"127.2.0.{s + 1}", port, "127.0.0.1", upstream, DELAY_MS)
        for s, upstream in enumerate(upstreams)
    )
    air = Air(network(bler).model_dump(mode="json"), DEVICES, (0, 0, 1), sites, SEED, 50.0)
    path = tmp / "deployment.json"
    path.write_text(json.dumps(to_plain(Deployment("test", (), air, ()))))
    process = subprocess.Popen(
        [sys.executable, "-m", "airserve.network.emulator", str(path), str(tmp)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready"), process.communicate()
    return RelayProcess(air, tmp, process)


def end(relay: RelayProcess) -> int:
    relay.process.terminate()
    relay.process.communicate(timeout=10)
    return relay.process.returncode


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    server = Server(echo)
    refused = free_port()
    process = start(tmp_path_factory.mktemp("relay"), [server.port, refused])
    yield process
    assert end(process) == 0
    server.close()


def receive(sock: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        part = sock.recv(1 << 16)
        if not part:
            break
        data += part
    return bytes(data)


def test_a_small_request_takes_what_the_mac_and_the_site_take(relay: RelayProcess) -> None:
    with relay.connect(0) as sock:
        port = sock.getsockname()[1]
        began_s = time.monotonic()
        sock.sendall(b"x" * 900)
        assert receive(sock, 900) == b"x" * 900
        ended_s = time.monotonic()
    log = relay.log()
    up, down = (log[(log["port"] == port) & (log["direction"] == way)][0] for way in (1, 0))
    assert (up["device"], up["site"], up["nbytes"], up["end"]) == (0, 0, 900, 900)
    times = [
        began_s, up["arrived_s"], up["granted_s"], up["delivered_s"], up["released_s"],
        down["arrived_s"], down["granted_s"], down["delivered_s"], down["released_s"], ended_s,
    ]  # fmt: skip
    assert (np.diff(times) >= 0).all()
    assert up["released_s"] - up["delivered_s"] >= DELAY_MS / 1e3
    assert down["arrived_s"] - up["released_s"] >= DELAY_MS / 1e3
    assert ended_s - began_s >= 2 * DELAY_MS / 1e3 + 2 * SLOT_S


def test_what_the_log_says_is_what_the_mac_alone_says(tmp_path: Path) -> None:
    """The same arrivals in a MAC of the same seed are granted and delivered at the same times."""
    server = Server(echo)
    relay = start(tmp_path, [server.port])
    rng = np.random.default_rng(2)
    socks = [relay.connect(device) for device in range(3)]
    expected = [0, 0, 0]
    for _ in range(60):
        device = int(rng.integers(3))
        size = int(rng.integers(1, 20_000))
        socks[device].sendall(bytes(size))
        expected[device] += size
        time.sleep(float(rng.exponential(0.01)))
    for sock, nbytes in zip(socks, expected, strict=True):
        assert len(receive(sock, nbytes)) == nbytes
        sock.close()
    log = relay.log()
    assert end(relay) == 0
    server.close()
    assert log["nbytes"].sum() == 2 * sum(expected)
    # The MAC's clock began when the relay did, at an instant that is a whole number of slots from any boundary.
    log = log[np.argsort(log["arrived_s"], kind="stable")]
    began_s = json.loads((tmp_path / airlog.STATUS).read_bytes())["began_s"]
    mac = Mac(network(), (0, 0, 1), seed=SEED)
    numbers = [
        mac.offer(int(row["device"]), int(row["direction"]), int(row["nbytes"]), float(row["arrived_s"]) - began_s)
        for row in log
    ]
    done = np.sort(mac.run(float(log["delivered_s"].max()) - began_s + 1), order="id")
    assert done["id"].tolist() == numbers
    assert done["granted_s"] == pytest.approx(log["granted_s"] - began_s, abs=1e-6)
    assert done["delivered_s"] == pytest.approx(log["delivered_s"] - began_s, abs=1e-6)


def test_bytes_in_are_bytes_out_under_loss(tmp_path: Path) -> None:
    """Megabytes both ways on several connections at once, with every second block lost at first."""
    server = Server(echo)
    relay = start(tmp_path, [server.port], bler=0.5)
    rng = np.random.default_rng(1)
    payloads = [rng.bytes(2_000_000) for _ in range(2)]
    digests = {}

    def exchange(device: int) -> None:
        with relay.connect(device) as sock:
            sender = threading.Thread(target=lambda: (sock.sendall(payloads[device]), sock.shutdown(socket.SHUT_WR)))
            sender.start()
            digests[device] = hashlib.sha256(receive(sock, 1 << 30)).hexdigest()  # until the end has come back
            sender.join()

    threads = [threading.Thread(target=exchange, args=(device,)) for device in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    status = end(relay)
    server.close()
    assert status == 0
    assert digests == {device: hashlib.sha256(data).hexdigest() for device, data in enumerate(payloads)}
    log = airlog.read(tmp_path)
    for way in (0, 1):
        assert log["nbytes"][log["direction"] == way].sum() == 4_000_000
    for device in range(2):
        mine = log[(log["device"] == device) & (log["direction"] == 1)]
        assert (mine["end"] == np.cumsum(mine["nbytes"])).all()
        assert (np.diff(mine["released_s"]) >= 0).all()
    usage = airlog.read(tmp_path, airlog.USAGE_LOG)
    assert usage["nbytes"].sum() == 8_000_000
    assert (usage["prbs_used"] <= usage["prbs"] + 1e-9).all()


def test_half_close_comes_after_the_bytes_before_it(relay: RelayProcess) -> None:
    with relay.connect(1) as sock:
        sock.sendall(b"a" * 50_000)
        sock.shutdown(socket.SHUT_WR)
        assert len(receive(sock, 1 << 20)) == 50_000  # recv ends with the echo's own half-close


def test_reset_reaches_the_other_side(tmp_path: Path) -> None:
    seen: list[str] = []
    gone = threading.Event()

    def note(sock: socket.socket) -> None:
        try:
            while sock.recv(1 << 16):
                pass
            seen.append("eof")
        except ConnectionResetError:
            seen.append("reset")
        gone.set()

    server = Server(note)
    relay = start(tmp_path, [server.port])
    sock = relay.connect(0)
    sock.sendall(b"hello")
    time.sleep(0.1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
    assert gone.wait(5)
    assert seen == ["reset"]
    assert end(relay) == 0
    server.close()


def test_a_site_that_is_down_resets_and_a_stranger_is_refused(relay: RelayProcess) -> None:
    with pytest.raises(ConnectionResetError), relay.connect(0, site=1) as sock:
        sock.recv(1)
    target = (relay.air.sites[0].host, relay.air.sites[0].port)
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(target, 5, source_address=("127.1.77.1", 0)) as sock,
    ):
        sock.recv(1)
    relay.log()
    assert airlog.status(relay.run_dir)["strangers"] == 1


def test_the_relay_reads_no_more_than_a_queue_holds(tmp_path: Path) -> None:
    """A site that takes nothing stops the sender; when it takes again, nothing is missing."""
    go, got = threading.Event(), []

    def later(sock: socket.socket) -> None:
        go.wait(20)
        got.append(len(receive(sock, 1 << 30)))

    server = Server(later)
    relay = start(tmp_path, [server.port])
    with relay.connect(2) as sock:
        sock.setblocking(False)
        sent, quiet_s = 0, time.monotonic()
        while time.monotonic() - quiet_s < 1.0 and sent < 64 << 20:
            _, writable, _ = select.select([], [sock], [], 0.1)
            if writable:
                sent += sock.send(bytes(1 << 16))
                quiet_s = time.monotonic()
        assert sent < 32 << 20, "the sender was never stopped"
        assert relay.log()["nbytes"].sum() < 4 * QUEUE_BYTES + (8 << 20)  # the kernel's own buffers hold some
        go.set()
        sock.setblocking(True)
        sock.shutdown(socket.SHUT_WR)
        until_s = time.monotonic() + 20
        while not got and time.monotonic() < until_s:
            time.sleep(0.05)
    assert got == [sent]
    assert end(relay) == 0
    server.close()


def test_idle_costs_no_cpu(relay: RelayProcess) -> None:
    def cpu_s() -> float:
        fields = Path(f"/proc/{relay.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with relay.connect(0) as sock:  # an open connection is no work
        before_s = cpu_s()
        time.sleep(2)
        assert cpu_s() - before_s <= 0.06
        assert sock.fileno() >= 0


def test_status_says_how_late_and_by_which_class(relay: RelayProcess) -> None:
    with relay.connect(0) as sock:
        sock.sendall(b"y" * 100)
        receive(sock, 100)
    relay.log()
    status = airlog.status(relay.run_dir)
    assert status["pid"] == relay.process.pid
    assert status["scheduling"].startswith("SCHED_")
    late = status["lateness_ms"]
    assert late["releases"] > 0
    assert 0 <= late["p50"] <= late["p99"] <= late["max"] + 0.011


def test_a_port_in_use_is_one_sentence_and_status_2(relay: RelayProcess, tmp_path: Path) -> None:
    path = tmp_path / "deployment.json"
    path.write_text(json.dumps(to_plain(Deployment("test", (), relay.air, ()))))
    done = subprocess.run(
        [sys.executable, "-m", "airserve.network.emulator", str(path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Address already in use" in done.stderr
    assert f"127.2.0.1:{relay.air.sites[0].port}" in done.stderr


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    server = Server(echo)
    relay = start(tmp_path, [server.port])
    end(relay)
    command = [sys.executable, "-m", "airserve.network.emulator", str(tmp_path / "deployment.json"), str(tmp_path)]
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen({command!r}, stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until_s = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until_s:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    server.close()
