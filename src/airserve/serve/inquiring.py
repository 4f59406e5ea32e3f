"""A question to the registry, put by a process of its own: a server does without its database, and need not wait.

The answer takes a second, most of which is that process's start; a supervisor goes on meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import final

from airserve.model import ModelError

WITHIN_S = 60.0


def question(reference: str) -> list[str]:
    """The command that asks the registry for a Model."""
    return [sys.executable, "-m", "airserve.cli", "models", "show", reference, "--json"]


@final
class Inquiry:
    """What the registry says of a reference, once it has. `ended` is a file descriptor that is readable then."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self._said, self._complaint = (os.memfd_create(f"registry-{name}") for name in ("answer", "complaint"))
        self._process = subprocess.Popen(question(reference), stdout=self._said, stderr=self._complaint)
        self.ended = os.pidfd_open(self._process.pid)
        self._until_s = time.monotonic() + WITHIN_S

    def done(self) -> bool:
        """Whether the answer is there; one that takes too long is there as a complaint."""
        if self._process.poll() is None and time.monotonic() > self._until_s:
            self._process.kill()
            self._process.wait()
        return self._process.returncode is not None

    def answer(self) -> bytes:
        """The answer, waited for; it can be had once. Raises `ModelError` where the registry has none."""
        try:
            status = self._process.wait(max(0.0, self._until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        said, complaint = _all(self._said), _all(self._complaint)
        self.close()
        if status:
            reason = complaint.decode(errors="replace").strip().removeprefix("airserve: ")
            if "/" in self.reference and not Path(self.reference).exists():
                reason = f"{self.reference} is not there, and {reason}"
            raise ModelError(reason or f"the registry does not tell of {self.reference}.")
        return said

    def close(self) -> None:
        """Ask no more."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for file in (self._said, self._complaint, self.ended):
            os.close(file)


def _all(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)
