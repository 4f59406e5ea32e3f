"""The slice policies of network/slices/ as the MAC calls them: compiled one by one, called by address, held to account.

A policy is a plain function in a file of its own. It is compiled when a cell asks for it, so that a file which does not
compile harms nobody else; and the MAC's own compiled code does not depend on which policies there are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from airserve import catalog
from airserve.errors import UserError
from airserve.model import Array
from airserve.network.jit import inner, njit

SLICE = np.dtype(  # what a policy sees of one slice in one slot and direction
    [
        ("need", "i8"),  # PRBs that it would fill
        ("dedicated", "i8"),  # PRBs: TS 28.541 4.3.36
        ("minimum", "i8"),
        ("maximum", "i8"),
        ("window", "f8"),  # slots of this direction in which minimum and maximum hold on average; 1: in each
        ("used", "f8"),  # PRBs a slot of this direction, the mean over the window (exponential), less this slot's
        ("slot", "i8"),  # number of the slot
        ("turns", "f8"),  # part of the slots that have this direction
        ("waited_s", "f8"),  # age of the oldest record of which bytes wait to be sent for the first time
        ("budget_s", "f8"),  # delay budget on the radio
        ("priority", "i8"),  # level of its 5QI: the lower, the sooner
        ("carried", "i8"),  # not for policies: PRBs that it is owed, less than a resource block group
        ("fault", "i8"),  # not for policies: 1 where the policy broke the law, `granted` says by what
        ("granted", "i8"),
    ],
    align=True,
)
Promise = Literal["minimum", "dedicated", "maximum", "lent"]

ENTRY = types.Array(types.int64, 1, "C")(types.Array(numba.from_dtype(SLICE), 1, "C"), types.int64)  # of a policy


class PolicyError(UserError, ValueError):
    """A slice policy that cannot be used or gave what it had not; the message is one sentence for the user."""


def promises(name: str) -> frozenset[Promise]:
    """What a policy promises, of: minimum (on demand, over the window), dedicated (never lent), maximum (never passed
    over the window), lent (no PRB stays idle that a slice below its maximum could fill).

    >>> sorted(promises("ratio"))
    ['dedicated', 'lent', 'maximum', 'minimum']
    """
    stated: frozenset[Promise] = frozenset(getattr(catalog.slices[name], "PROMISES", ()))
    return stated


def address(name: str) -> int:
    """Where a policy's compiled code is, for `allocate`; compiled at the first call. Raises `PolicyError`."""
    return _compiled(name)[1]


@cache
def _compiled(name: str) -> tuple[Any, int]:
    """The compiled policy, which has to be kept, and the address of its entry from C."""
    policy = catalog.slices[name].allocate
    plain: Callable[..., Any] = getattr(policy, "py_func", policy)
    _try(name, plain)
    compiled = njit(plain)
    try:
        compiled.compile(ENTRY)
    except numba.core.errors.NumbaError as error:
        said = " ".join(str(error).split())
        raise PolicyError(
            f"slice policy {name} ({inspect.getfile(plain)}) cannot be compiled; keep to what numba knows of Python "
            f"and NumPy, and return an array of int64: {said[:300]}"
        ) from None
    made = compiled.get_compile_result(ENTRY)
    return compiled, int(made.library.get_pointer_to_function(made.fndesc.llvm_cfunc_wrapper_name))


def _try(name: str, policy: Callable[..., Any]) -> None:
    """Two slices of ten PRBs, once, in plain Python: what that finds needs no compiler's words."""
    try:
        grant = policy(sight(need=[20, 20], minimum=[5, 0], maximum=[10, 10]), 10)
    except Exception as error:
        raise PolicyError(
            f"slice policy {name} ({inspect.getfile(policy)}) fails: {type(error).__name__}: {error}; "
            "it is called as allocate(slices, blocks), see network/slicing.py."
        ) from None
    if not (isinstance(grant, np.ndarray) and grant.shape == (2,) and np.issubdtype(grant.dtype, np.integer)):
        raise PolicyError(
            f"slice policy {name} returns {grant!r} for two slices; it has to return an array of two whole numbers."
        )


def sight(need: Sequence[int], **other: Any) -> Array:
    """SLICE for some slices, as a policy sees them: shares 0, 0 and all, in every slot, unless given.

    >>> sight(need=[3, 4], minimum=[1, 2])["minimum"].tolist()
    [1, 2]
    """
    slices = np.zeros(len(need), SLICE)
    defaults = {"maximum": 10**6, "window": 1.0, "turns": 1.0, "budget_s": 0.3, "priority": 90}
    for key, value in {**defaults, "need": need, **other}.items():
        slices[key] = value
    return slices


@intrinsic
def _call(context: Any, at: Any, slices: Any, blocks: Any) -> Any:
    """Call a function of signature ENTRY by its address, as numba does with functions that are arguments."""

    def generate(target: Any, builder: Any, _: Any, arguments: Any) -> Any:
        values = [target.get_value_type(one) for one in (ENTRY.return_type, *ENTRY.args)]
        function = ir.FunctionType(values[0], values[1:])
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])

    return ENTRY.return_type(types.int64, *ENTRY.args), generate


@njit
def allocate(policy: int, slices: Array, blocks: int) -> Array:
    """Whole PRBs per slice, int64 (slices,), by the policy at an address; none where it gives what it has not.

    What it gave then stands in `slices` for `check`.
    """
    grant = _call(policy, slices, blocks)
    total, least = 0, -1 if grant.size != slices.size else 0
    for k in range(min(grant.size, slices.size)):
        total += grant[k]
        least = min(least, grant[k])
    if total > blocks or least < 0:
        slices[0].fault, slices[0].granted = 1, total if total > blocks else least
        return np.zeros(slices.size, np.int64)
    return grant


def check(policy: str, slices: Array, blocks: int) -> None:
    """Raise `PolicyError` where a policy has given what it had not in a run; `slices` is State.slices."""
    if slices["fault"].any():
        granted = int(slices["granted"][slices["fault"] > 0][0])
        raise PolicyError(
            f"slice policy {policy} granted {granted} PRBs in a slot that has {blocks}; "
            "a policy gives each slice 0 or more, and together at most what there is."
        )


@inner
def forget(slices: Array, slot: int) -> None:
    """Let the mean fade up to a slot."""
    for k in range(slices.size):
        one = slices[k]
        passed = (slot - one.slot) * one.turns
        one.used = one.used * (1 - 1 / one.window) ** passed if one.window > 1 else 0.0
        one.slot = slot


@inner
def settle(slices: Array, granted: Array, left: Array) -> None:
    """Count a slot in which slices were granted PRBs and left some over."""
    for k in range(slices.size):
        slices[k].used += (granted[k] - left[k]) / slices[k].window
