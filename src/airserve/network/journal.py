"""What the relay did, for those who ask later: a log of its bytes, PRBs used by the second, and how late it was.

Files are written by a thread of their own: a disk that is busy must not hold the radio.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path
from typing import Self, final

import numpy as np

from airserve import airlog
from airserve.errors import UserError
from airserve.network.mac import Usage
from airserve.network.topology import Network

BIN_S = 1e-5  # of the histogram of release lateness
BINS = 20_000  # the last holds everything from 0.2 s


class JournalError(UserError):
    """A log that cannot be written; the message is one sentence for the user."""


@final
class Journal:
    """The relay's three files in a folder, brought up to date by `second`."""

    def __init__(self, run_dir: Path, network: Network, scheduling: str) -> None:
        self.run_dir, self.scheduling = run_dir, scheduling
        self.slices = [s.name for s in network.slices]
        self.began_s = 0.0  # the MAC's time 0
        self.slots = 0  # times that the MAC was run
        self.strangers = 0  # connections from addresses that are no device
        self.nbytes = [0, 0]  # by direction
        self._late = np.zeros(BINS, np.int64)
        self._latest_s = 0.0
        self._records: list[bytes] = []
        self._before: Usage | None = None
        self._failure: OSError | None = None
        self._todo: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="journal")

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._todo.put(None)
        self._writer.join()

    def record(self, packed: bytes, direction: int, nbytes: int) -> None:
        """One row of the log, packed as `airlog.PACKED`."""
        self._records.append(packed)
        self.nbytes[direction] += nbytes

    def lateness(self, late_s: float) -> None:
        """Count one release that came so long after it was due."""
        self._late[min(max(int(late_s / BIN_S), 0), BINS - 1)] += 1
        self._latest_s = max(self._latest_s, late_s)

    def second(self, usage: Usage, until_s: float, running: bool = True) -> None:
        """Hand what has happened until now to the disk. Raises `JournalError` where the disk refused the last."""
        if self._failure is not None:
            raise JournalError(
                f"the relay cannot write its log to {self.run_dir} ({self._failure.strerror}); make room there."
            )
        if self._records:
            self._todo.put((airlog.LOG, b"".join(self._records)))
            self._records.clear()
        self._todo.put((airlog.USAGE_LOG, self._rows(usage, until_s)))
        self._todo.put((airlog.STATUS, json.dumps(self._status(until_s, running)).encode()))

    def _rows(self, usage: Usage, until_s: float) -> bytes:
        before, self._before = self._before, usage
        rows = np.zeros((len(self.slices), 2), airlog.USAGE)
        rows["until_s"] = until_s
        rows["slice"], rows["direction"] = np.indices(rows.shape)
        for name, now in (("prbs_used", usage.prbs_used), ("nbytes", usage.nbytes), ("prbs", usage.prbs)):
            rows[name] = now if before is None else now - getattr(before, name)
        return rows.tobytes()

    def _status(self, until_s: float, running: bool) -> dict[str, object]:
        counted = np.cumsum(self._late)
        p50, p99 = (float(np.searchsorted(counted, q * counted[-1]) * BIN_S * 1e3) for q in (0.5, 0.99))
        return {
            "pid": os.getpid(),
            "running": running,
            "began_s": self.began_s,
            "until_s": until_s,
            "scheduling": self.scheduling,
            "lateness_ms": {"p50": p50, "p99": p99, "max": self._latest_s * 1e3, "releases": int(counted[-1])},
            "slots": self.slots,
            "bytes": {"down": self.nbytes[0], "up": self.nbytes[1]},
            "strangers": self.strangers,
        }

    def _write(self) -> None:
        while (item := self._todo.get()) is not None:
            name, data = item
            path = self.run_dir / name
            try:
                if name == airlog.STATUS:
                    path.with_suffix(".new").write_bytes(data)
                    path.with_suffix(".new").replace(path)
                else:
                    with open(path, "ab") as file:
                        file.write(data)
            except OSError as error:
                self._failure = error
