"""A small network and radios that stay as they are, so that what a cell does can be worked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from airserve.network.radio import Trace
from airserve.network.topology import Network

ALL = ({"name": "all"},)


@pytest.fixture
def network() -> Callable[..., Network]:
    """A network of one cell, with keys of the cell, `slices` and `sites` as wanted."""

    def make(slices: Any = ALL, sites: Any = ({"name": "mast", "kind": "edge"},), **cell: Any) -> Network:
        return Network.model_validate({"cells": [{"name": "hall", **cell}], "slices": slices, "sites": sites})

    return make


@pytest.fixture
def flat() -> Callable[..., Trace]:
    """A trace whose SNR is the same always: per position in dB, on one layer only."""

    def make(*snr_db: float) -> Trace:
        snr = np.array(snr_db or (60,), np.float32)[:, None, None]
        return Trace("inf-dh", 0.01, snr, snr, np.zeros((len(snr), 3), np.float32), {})

    return make
