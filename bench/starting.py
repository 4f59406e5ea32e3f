"""From the start of `airserve serve` to its first answer, what an import of the core takes, and the memory it holds.

    python bench/starting.py [--rounds 5] [--json]

TINY, one worker; modules are compiled, as `pip install` leaves them, by a first start that does not count. Wall times
need a quiet machine; CPU times stand beside them. Memory is that of the supervisor and its worker, pages that they
share counted once. Ends with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from graphs import tiny
from processes import airserve, cpu_s, installed, resident_mb

LIMITS = {"ready_s": 1.0, "import_s": 0.4, "resident_mb": 140.0}


def imported(environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process that imports the core and ends."""
    begun_s = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", "import airserve.serve.service"], env=environment)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = status
    assert status == 0
    return time.monotonic() - begun_s, used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        path = tiny(folder / "tiny.onnx")
        compiled = installed(folder)
        with airserve(folder, str(path), environment=compiled):
            pass
        for _ in range(given.rounds):
            with airserve(folder, str(path), environment=compiled) as server:
                found.setdefault("ready_s", []).append(server.ready_s)
                found.setdefault("ready_cpu_s", []).append(cpu_s(server.pid))
                found.setdefault("resident_mb", []).append(resident_mb(server.pid))
            wall_s, spent_s = imported(compiled)
            found.setdefault("import_s", []).append(wall_s)
            found.setdefault("import_cpu_s", []).append(spent_s)
    medians = {name: float(np.median(values)) for name, values in found.items()}
    short = [name for name, limit in LIMITS.items() if medians[name] > limit]
    if given.json:
        print(json.dumps({**found, "short": short}))
        return bool(short)
    print(f"ready after {medians['ready_s']:.2f} s ({medians['ready_cpu_s']:.2f} CPU-s), wanted 1.0")
    print(f"core imported in {medians['import_s']:.2f} s ({medians['import_cpu_s']:.2f} CPU-s), wanted 0.4")
    print(f"{medians['resident_mb']:.0f} MB held, wanted 140")
    return bool(short)


if __name__ == "__main__":
    sys.exit(main())
