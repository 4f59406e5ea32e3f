"""The slice policies of network/slices/ as one compiled function that takes the number of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from airserve import catalog
from airserve.model import Array

NAMES = catalog.slices.names()
COMPILE = numba.njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # cached with what calls them


def _either(number: int, policy: Callable[..., Any], others: Any) -> Any:
    @COMPILE
    def allocate(chosen: int, need: Array, dedicated: Array, minimum: Array, maximum: Array, blocks: int) -> Array:
        if chosen == number:
            return policy(need, dedicated, minimum, maximum, blocks)
        return others(chosen, need, dedicated, minimum, maximum, blocks)

    return allocate


def _chain() -> Any:
    """Numba compiles calls to functions that it can see, not through a table of them: so one asks the next."""

    @COMPILE
    def nobody(chosen: int, need: Array, dedicated: Array, minimum: Array, maximum: Array, blocks: int) -> Array:
        return need * 0

    chain = nobody
    for number, name in enumerate(NAMES):
        chain = _either(number, catalog.slices[name], chain)
    return chain


allocate = _chain()  # (policy, need, dedicated, minimum, maximum, blocks) -> blocks per slice
