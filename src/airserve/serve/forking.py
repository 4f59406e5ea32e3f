"""A process forked to work for this one, and the line that leads to it: messages as JSON, one a line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

from airserve.linux import die_with_parent

STOP = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 0.5  # for a worker that has closed its line, and answers nobody any more


@final
class Worker:
    """A forked worker and its parent's end of the line. Raises `OSError` where the system has no process for it.

    `work` is called in the child with its end of the line, and gives the status with which it ends; it inherits none
    of the lines `others`.
    """

    def __init__(
        self, number: int, generation: int, work: Callable[[socket.socket], int], others: Iterable[Worker]
    ) -> None:
        self.number, self.generation = number, generation
        self.begun_s = time.monotonic()
        self.joined = False  # listens, or is about to: it takes part in changes
        self.ready = False
        self._held = b""
        self.line, theirs = socket.socketpair()
        parent = os.getpid()
        with theirs:
            try:
                with _unstopped():  # the child is not to meet a signal with our handlers
                    self.pid = os.fork()
                    if self.pid == 0:
                        _be(work, theirs, parent, [self, *others])
            except OSError:
                self.line.close()
                raise

    def say(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone is noticed when its line ends
            self.line.sendall(json.dumps(message).encode() + b"\n")

    def heard(self) -> list[dict[str, Any]] | None:
        """The messages that came; None where the line has ended."""
        try:
            data = self.line.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self._held = (self._held + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """Ask it to finish what has begun, and to end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def ended(self, within_s: float = GRACE_S) -> str:
        """How it ended, in a word or two; killed where it does not `within_s`."""
        self.line.close()
        until_s = time.monotonic() + within_s
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return _how(status)
            if time.monotonic() > until_s:
                os.kill(self.pid, signal.SIGKILL)
                return _how(os.waitpid(self.pid, 0)[1])
            time.sleep(0.005)


@contextlib.contextmanager
def _unstopped() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def _be(work: Callable[[socket.socket], int], line: socket.socket, parent: int, others: Iterable[Worker]) -> None:
    """Be the child; it does not come back."""
    status = 1
    try:
        for worker in others:
            worker.line.close()
        for handled in STOP:
            signal.signal(handled, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        die_with_parent(parent)
        status = work(line)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"status {os.WEXITSTATUS(status)}"
