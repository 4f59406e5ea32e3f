"""What is asked of Linux, where the system itself shows whether it was done."""

import ctypes
import re
import sys
from pathlib import Path

import pytest

from airserve.linux import give_back


def resident_kb():
    return int(re.search(r"^VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone keeps what was freed"
)
def test_what_was_freed_below_what_lives_goes_back_to_the_system():
    """Blocks too small to be mapped one by one; the last of them stays, so that the heap cannot shrink from its top."""
    give_back()  # what earlier tests have freed would hold some of the blocks
    before_kb = resident_kb()
    blocks = [b"x" * 60_000 for _ in range(500)]
    last = b"x" * 60_000
    grown_kb = resident_kb() - before_kb
    assert grown_kb > 20_000
    del blocks
    give_back()
    assert resident_kb() - before_kb < grown_kb / 2
    assert len(last) == 60_000
