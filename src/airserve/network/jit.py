"""Numba's compiler with a cache that one edit cannot make stale: its folder is named by a hash of this room's sources.

Numba watches only the file of the function that it caches, not the files of the functions that this one calls.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config

KEEP_DAYS = 14  # caches of other versions of the sources are removed after so many days


def digest(folder: Path) -> str:
    """A name for the sources and tables under a folder, the numba in use and the kind of processor.

    All sources: a constant of a file that compiles nothing is frozen into the code of those that import it.

    >>> len(digest(Path(__file__).parent))
    16
    """
    state = hashlib.sha256(f"{numba.__version__} {config.CPU_NAME} {config.OPT}".encode())
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        state.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return state.hexdigest()[:16]


def cache_folder(folder: Path) -> Path:
    """A folder to write compiled code to: NUMBA_CACHE_DIR, else the user's cache, else the temporary folder."""
    name = digest(folder)
    parents = [
        Path(os.environ["NUMBA_CACHE_DIR"]) if "NUMBA_CACHE_DIR" in os.environ else None,
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airserve" / "numba",
        Path(tempfile.gettempdir()) / f"airserve-numba-{os.getuid()}",
    ]
    for parent in filter(None, parents):
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(parent / name, os.W_OK):
            os.utime(parent / name)
            _forget(parent)
            return parent / name
    raise OSError(f"no folder for compiled code can be written, {parents[-1]} included; set NUMBA_CACHE_DIR to one.")


def _forget(parent: Path) -> None:
    for other in parent.iterdir():
        named = len(other.name) == 16 and set(other.name) <= set("0123456789abcdef")
        if named and other.stat().st_mtime < time.time() - KEEP_DAYS * 86_400:
            shutil.rmtree(other, ignore_errors=True)


CACHE = cache_folder(Path(__file__).parent)


def njit(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, free of the interpreter's lock, and keep the code in this room's cache.

    >>> from airserve.network.link import resource_elements  # one of them
    >>> resource_elements(14, 12)
    156
    """
    return _compiled(function, _nrt=True)


def inner(function: Callable[..., Any]) -> Any:
    """As `njit`, for a function that makes no arrays and that only compiled functions call: Python must not.

    It has no entry from Python, and borrows its arrays: entries took half of the time to compile, and counting
    references to arrays that the caller holds anyway two thirds of the time to run.
    """
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)


def _compiled(function: Callable[..., Any], **options: bool) -> Any:
    before = config.CACHE_DIR
    config.CACHE_DIR = str(CACHE)
    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    finally:
        config.CACHE_DIR = before
