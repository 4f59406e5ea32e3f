"""What is asked of Linux, where the system itself shows whether it was done."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

from airserve.linux import LARGE_BYTES, give_back

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


def resident_kb():
    return int(re.search(r"^VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


@pytest.mark.skipif(not GLIBC, reason="glibc alone keeps what was freed")
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


@pytest.mark.skipif(not GLIBC, reason="glibc alone moves its limit")
@pytest.mark.parametrize("asked", [True, False])
def test_large_blocks_are_mapped_one_by_one_even_after_a_larger_one_was_freed(asked):
    """By mallinfo2(3): how many blocks are mapped, before and after one that is smaller than one that was freed."""
    text = f"""
import ctypes
from airserve.linux import map_large_blocks

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")]
    _fields_ += [(f"rest{{k}}", ctypes.c_size_t) for k in range(5)]

ask = ctypes.CDLL(None).mallinfo2
ask.restype = Info
if {asked}:
    map_large_blocks()
first = bytes(16 * {LARGE_BYTES})
del first
before = ask().hblks
second = bytes(2 * {LARGE_BYTES})
print(ask().hblks - before)
"""
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert found.stdout == f"{int(asked)}\n"
