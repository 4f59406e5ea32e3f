"""The devices of a deployment as one open loop: every request leaves at its time, whatever was answered before it.

Schroeder, Wierman, Harchol-Balter, "Open versus closed: a cautionary tale", NSDI 2006: a client that waits for its
answer asks less just when the system is slow, and so hides it. Requests of a device share one kept-alive connection
and wait on it in order (HTTP/1.1 pipelining, RFC 9112 9.3.2).
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from airserve import answers, arrivals, wire
from airserve.contract import Asker, Deployment
from airserve.errors import UserError
from airserve.linux import wait
from airserve.model import Array, Signature, Tensor, open_function
from airserve.samples import Samples, load_samples
from airserve.serve.connecting import Answer, AnswerReader
from airserve.tensors import WireError
from airserve.timing import AirBytes

READ_BYTES = 1 << 16
CONNECT_S = 2.0
DRAIN_S = 10.0  # after the last request, for answers that are still to come


class AskError(UserError):
    """A deployment that cannot be asked; the message is one sentence for the user."""


@dataclass
class Asked:
    """The requests of one service as columns, in the order of their intended times (seconds from the start)."""

    sent_s: Array  # intended
    device: Array
    row: Array  # of the held samples
    late_s: Array  # from the intended time to the actual
    done_s: Array  # the whole answer has come; NaN where none did
    answer: Array  # as answers.read gives it; -1 where there is none
    timing: list[str] = field(default_factory=list)  # Server-Timing, "" where there is no answer
    bytes_at: list[AirBytes | None] = field(default_factory=list)  # on the device's own connection
    failures: dict[str, int] = field(default_factory=dict)  # sentence -> count
    numbers: bool = False  # whether an answer is a number, not a class

    @property
    def answered(self) -> int:
        return int(np.isfinite(self.done_s).sum())

    def fail(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1


def schedule(asker: Asker, rows: int, seconds: float, seed: Sequence[int]) -> Asked:
    """When each device of a service asks and with which of `rows` samples: all of them before any comes again."""
    rng = np.random.default_rng(seed)
    sent_s, device = arrivals.times(asker.arrival, len(asker.addresses), asker.rate_hz, seconds, rng)
    n = len(sent_s)
    row = np.resize(rng.permutation(rows), n)
    return Asked(
        sent_s, device, row, np.zeros(n), np.full(n, np.nan), np.full(n, -1.0), [""] * n, [None] * n
    )  # fmt: skip


@final
class Voice:
    """What a service's devices say: the request for each held sample, as bytes."""

    def __init__(self, deployment: Deployment, asker: Asker) -> None:
        if not asker.samples:
            raise AskError(
                f"service {asker.service} has no samples to ask with; import its model again with --samples FILE.npz."
            )
        self.asker = asker
        self.samples: Samples = load_samples(Path(asker.samples)).held()
        self.tensor = _input(deployment, asker)
        self.targets = _targets(deployment, asker)
        self._made: dict[int, bytes] = {}
        if not self.rows:
            raise AskError(f"service {asker.service} has no samples but those that calibrated; import some more.")
        try:
            self.request(0, 0)
        except WireError as error:
            raise AskError(f"the samples of {asker.service} are not what {asker.model} takes: {error}") from None

    @property
    def rows(self) -> int:
        return len(self.samples.inputs)

    def request(self, row: int, device: int) -> bytes:
        """The whole HTTP request of a device for a sample."""
        host, port = self.targets[device]
        if self.asker.to == "device":  # every device is another host
            return self._build(row, f"{host}:{port}")
        if row not in self._made:
            self._made[row] = self._build(row, f"{host}:{port}")
        return self._made[row]

    def _build(self, row: int, host: str) -> bytes:
        if self.asker.encoded:
            assert self.samples.encoded is not None
            value: Array = np.array([self.samples.encoded[row], None], dtype=object)[:1]
        else:
            value = self.samples.inputs[row : row + 1]
        return wire.infer_request(self.asker.model, [(self.tensor, value)], host=host, compress=self.asker.compress)


@final
class Line:
    """A device's connection: requests go out at once, answers come back in their order."""

    def __init__(self, voice: Voice, asked: Asked, device: int, epoll: select.epoll, lines: dict[int, Line]) -> None:
        self.voice, self.asked, self.device = voice, asked, device
        self._epoll, self._lines = epoll, lines
        self._sock: socket.socket | None = None
        self._waiting: deque[tuple[int, int, int]] = deque()  # request, its bytes on the connection
        self._out = bytearray()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def open(self) -> None:
        """Connect; raises `OSError` where nobody listens."""
        host, port = self.voice.targets[self.device]
        source = self.voice.asker.addresses[self.device]
        self._sock = socket.create_connection((host, port), CONNECT_S, source_address=(source, 0))
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = self._sock.getsockname()[1]
        self._sent = self._received = 0
        self._reader = AnswerReader()
        self._lines[self._sock.fileno()] = self
        self._epoll.register(self._sock, select.EPOLLIN)

    def send(self, request: int, data: bytes) -> None:
        """Send a request; where the connection is gone and cannot be made again, it has failed."""
        if self._sock is None:
            try:
                self.open()
            except OSError as error:
                self.asked.fail(f"it cannot be reached ({error.strerror or error})")
                return
        self._waiting.append((request, self._sent, self._sent + len(data)))
        self._sent += len(data)
        self._out += data
        self._flush()

    def ready(self, events: int, began_s: float) -> None:
        """Read and write what can be."""
        if events & select.EPOLLOUT:
            self._flush()
        if self._sock is None or not events & ~select.EPOLLOUT:
            return
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"the connection was lost ({error.strerror or error})")
            return
        now_s = time.monotonic() - began_s
        try:
            answers = self._reader.feed(data)
        except WireError as error:
            self.close(str(error))
            return
        for answer in answers:
            self._answered(answer, now_s)
        if not data:
            self.close("the connection was closed")

    def close(self, why: str) -> None:
        """End the connection; what waits on it has failed."""
        for _ in self._waiting:
            self.asked.fail(why)
        self._waiting.clear()
        self._out.clear()
        if self._sock is not None:
            self._epoll.unregister(self._sock)
            del self._lines[self._sock.fileno()]
            self._sock.close()
            self._sock = None

    def _answered(self, answer: Answer, now_s: float) -> None:
        if not self._waiting:
            self.close("it answers what was not asked")
            return
        request, up0, up1 = self._waiting.popleft()
        down0 = self._received
        self._received += answer.size_bytes
        asked = self.asked
        if answer.status != 200:
            asked.fail(f"it answers {answer.status}: {wire.parse_error(answer.body)}")
            return
        length = answer.headers.get("inference-header-content-length")
        try:
            _, value = wire.parse_response(answer.body, int(length) if length else None).outputs[0]
        except (ValueError, IndexError) as error:
            asked.fail(f"its answer cannot be read: {error}")
            return
        asked.done_s[request] = now_s
        if value.size and value.dtype != object:
            (read,) = answers.read(value[None])
            asked.answer[request] = read
            asked.numbers = asked.numbers or read.dtype.kind == "f"
        asked.timing[request] = answer.headers.get("server-timing", "")
        asked.bytes_at[request] = AirBytes(self._port, (up0, up1), (down0, self._received))

    def _flush(self) -> None:
        assert self._sock is not None
        try:
            del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(f"the connection was lost ({error.strerror or error})")
            return
        self._epoll.modify(self._sock, select.EPOLLIN | (select.EPOLLOUT if self._out else 0))


def ask(
    voices: Sequence[Voice],
    asked: Sequence[Asked],
    *,
    seconds: float,
    progress: Callable[[float], None] | None = None,
) -> float:
    """Send every request at its time and gather the answers into `asked`; returns the start on time.monotonic().

    Ends when all is answered, at the latest some seconds after the last request. `progress` is told the seconds that
    have passed, once in each. Raises `AskError` where a device cannot connect at the start.
    """
    epoll = select.epoll()
    by_fd: dict[int, Line] = {}
    lines = [
        [Line(voice, one, device, epoll, by_fd) for device in range(len(voice.targets))]
        for voice, one in zip(voices, asked, strict=True)
    ]
    try:
        for line in (line for row in lines for line in row):
            _open(line)
        return _loop(voices, asked, lines, epoll, by_fd, seconds, progress)
    finally:
        for line in (line for row in lines for line in row):
            line.close("no answer came before the run ended")
        epoll.close()


def _loop(
    voices: Sequence[Voice],
    asked: Sequence[Asked],
    lines: Sequence[Sequence[Line]],
    epoll: select.epoll,
    by_fd: dict[int, Line],
    seconds: float,
    progress: Callable[[float], None] | None,
) -> float:
    service = np.repeat(np.arange(len(asked)), [len(one.sent_s) for one in asked])
    request = np.concatenate([np.arange(len(one.sent_s)) for one in asked])
    at_s = np.concatenate([one.sent_s for one in asked])
    order = np.argsort(at_s, kind="stable")
    todo = deque(zip(at_s[order].tolist(), service[order].tolist(), request[order].tolist(), strict=True))
    began_s = time.monotonic() + 0.05
    end_s, told_s = began_s + seconds + DRAIN_S, 0.0
    while todo or any(line.waiting for row in lines for line in row):
        next_s = began_s + todo[0][0] if todo else end_s
        ready = wait(epoll, min(next_s, began_s + told_s + 1, end_s))
        for fd, events in ready:
            if fd in by_fd:
                by_fd[fd].ready(events, began_s)
        now_s = time.monotonic() - began_s
        while todo and todo[0][0] <= now_s:
            intended_s, s, k = todo.popleft()
            device = int(asked[s].device[k])
            data = voices[s].request(int(asked[s].row[k]), device)
            now_s = time.monotonic() - began_s
            asked[s].late_s[k] = now_s - intended_s
            lines[s][device].send(k, data)
        if now_s >= told_s + 1:
            told_s = float(int(now_s))
            if progress is not None:
                progress(told_s)
        if now_s >= end_s - began_s:
            break
    return began_s


def _open(line: Line) -> None:
    host, port = line.voice.targets[line.device]
    try:
        line.open()
    except OSError as error:
        raise AskError(
            f"device {line.device} of {line.voice.asker.service} cannot reach {host}:{port} "
            f"({error.strerror or error}); is the deployment up?"
        ) from None


def _input(deployment: Deployment, asker: Asker) -> Tensor:
    """What the endpoint that is asked takes. Raises `AskError` where it takes more than one tensor, or is not there."""
    for process in deployment.processes:
        for endpoint in process.endpoints:
            if endpoint.name == asker.model:
                signature: Signature = open_function(endpoint.functions[0])[0]
                if len(signature.inputs) != 1:
                    raise AskError(
                        f"{asker.model} takes {len(signature.inputs)} inputs; samples hold one. Drive it by its API."
                    )
                return signature.inputs[0]
    raise AskError(f"no process of deployment {deployment.name} answers to {asker.model}; plan it again.")


def _targets(deployment: Deployment, asker: Asker) -> list[tuple[str, int]]:
    """Where each device sends its requests."""
    if asker.to == "device":
        ports = {process.host: process.port for process in deployment.processes if process.device >= 0}
        return [(address, ports[address]) for address in asker.addresses]
    assert deployment.air is not None
    site = next(site for site in deployment.air.sites if site.name == asker.site)
    return [(site.host, site.port)] * len(asker.addresses)
