"""What the relay writes and the driver reads: bytes that crossed the air, PRBs that were used, and how late it was.

Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share, so that logs join without a handshake.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from airserve.errors import UserError
from airserve.model import Array

LOG = "air.log"
USAGE_LOG = "usage.log"
STATUS = "air.json"

RECORD = np.dtype(
    [
        ("device", "<u4"),  # index in Air.devices
        ("connection", "<u4"),  # number of the connection since the relay began
        ("port", "<u2"),  # local TCP port of the device's end
        ("site", "u1"),  # index in Air.sites
        ("direction", "u1"),  # 0 down, 1 up
        ("nbytes", "<u4"),
        ("end", "<u8"),  # bytes of this direction of the connection up to and with this record
        ("arrived_s", "<f8"),  # when the radio had the bytes: downlink bytes have crossed the site's delay before
        ("granted_s", "<f8"),  # start of the first transmission
        ("delivered_s", "<f8"),  # when the radio had carried the last byte
        ("released_s", "<f8"),  # when the relay wrote them on; NaN where the connection was gone
    ]
)
PACKED = struct.Struct("<IIHBBIQdddd")  # the same layout, quicker to write one by one

USAGE = np.dtype(
    [
        ("until_s", "<f8"),  # end of the second that the row counts
        ("slice", "<u4"),
        ("direction", "<u4"),  # 0 down, 1 up
        ("prbs_used", "<f8"),
        ("prbs", "<f8"),  # of the whole carrier in that time
        ("nbytes", "<f8"),
    ]
)


class AirLogError(UserError):
    """A relay's log that is missing or cannot be used."""


def size(run_dir: Path, name: str = LOG) -> int:
    """Bytes of a log so far, 0 where there is none: what `read` skips."""
    path = run_dir / name
    return path.stat().st_size if path.exists() else 0


def read(run_dir: Path, name: str = LOG, since: int = 0) -> Array:
    """The whole records of a log after its first `since` bytes, shape (n,) of RECORD or USAGE.

    Raises `AirLogError` where there is no log.
    """
    dtype = RECORD if name == LOG else USAGE
    try:
        with open(run_dir / name, "rb") as file:
            file.seek(since)
            data = file.read()
    except OSError as error:
        raise AirLogError(
            f"the relay's log {run_dir / name} cannot be read ({error.strerror}); is the deployment up?"
        ) from None
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)


def status(run_dir: Path) -> dict[str, Any]:
    """The relay's status, as of its last second. Raises `AirLogError` where there is none."""
    try:
        found: dict[str, Any] = json.loads((run_dir / STATUS).read_bytes())
    except (OSError, ValueError) as error:
        raise AirLogError(f"the relay's status {run_dir / STATUS} cannot be read ({error}).") from None
    return found
