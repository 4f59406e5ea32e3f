"""Compile the MAC and the twin before they are wanted: `python -m airserve.network.warming`.

The first run after an installation takes about a minute of compilation, and the first of several cells as much again,
which can pass beside work that uses one core. As a program it compiles both, each in a process of its own.
"""

import subprocess
import sys

import numpy as np

from airserve.network import twin
from airserve.network.cell import Cell
from airserve.network.mac import Mac
from airserve.network.topology import Network, Site, Slice
from airserve.network.traffic import Flow

SEVERAL = "--several-cells"


def warm(*, cells: int = 1) -> None:
    """Run a request through the twin, and in one cell a packet through a MAC, as the planner and the relay will."""
    network = Network(
        cells=(Cell(name="cell", trps=cells),), slices=(Slice(name="slice"),), sites=(Site(name="site", kind="edge"),)
    )
    one = np.ones(1)
    flow = Flow(
        "warm",
        "slice",
        1,
        10.0,
        site="site",
        bytes_up=np.array([100]),
        bytes_down=np.array([100]),
        site_seconds=one / 1e3,
    )
    twin.run(network, [flow], until_s=0.5, seed=0)
    if cells > 1:
        return
    mac = Mac(network, [0], seed=0)
    mac.offer(0, 1, 100, 0.0)
    mac.run(0.1)


if __name__ == "__main__":
    if SEVERAL in sys.argv:
        warm(cells=2)
    else:
        beside = subprocess.Popen([sys.executable, "-m", "airserve.network.warming", SEVERAL])
        warm()
        sys.exit(beside.wait())
