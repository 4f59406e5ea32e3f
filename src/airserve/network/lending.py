"""Named tuples of arrays lent by their address: what compiled code then hands on in a call is one word.

Numba hands a tuple on by value, each of its arrays as seven words or more. State comes to some two hundred, written
anew for every call that is not inlined: a third to half of all the time of the MAC. A function that has a tuple of its
own lends it, `at = lend(state)`; those that it calls read the arrays through the address, as they would the tuple's.

What is lent lies on the lender's stack. It cannot be changed (its arrays can), and whoever borrows it must not return
it, nor an array of it.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, models, register_model


@final
class Lent(types.Type):
    """Numba's type of a named tuple that somebody has lent."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        name, digest = whole.instance_class.__name__, sha256(str(whole).encode()).hexdigest()[:12]
        super().__init__(f"Lent{name}{digest}")  # short, for it becomes part of the name of every function


@register_model(Lent)
class _Address(models.PrimitiveModel):
    def __init__(self, manager: Any, of: Lent) -> None:
        super().__init__(manager, of, manager.lookup(of.whole).get_value_type().as_pointer())


@infer_getattr
class _Attributes(AttributeTemplate):
    """A tuple within what is lent is lent too."""

    key = Lent

    def generic_resolve(self, lent: Lent, name: str) -> Any:
        if name not in lent.whole.fields:
            return None
        kind = lent.whole[lent.whole.fields.index(name)]
        return Lent(kind) if isinstance(kind, types.BaseNamedTuple) else kind


@lower_getattr_generic(Lent)
def _attribute(context: Any, builder: Any, lent: Lent, address: Any, name: str) -> Any:
    place = lent.whole.fields.index(name)
    kind, at = lent.whole[place], cgutils.gep_inbounds(builder, address, 0, place)
    if isinstance(kind, types.BaseNamedTuple):
        return at
    value = builder.load(at)
    if isinstance(kind, types.Array):  # without its owner: who lends it holds it, so nobody has to count references
        array = context.make_array(kind)(context, builder, value)
        for owner in ("meminfo", "parent"):
            setattr(array, owner, ir.Constant(getattr(array, owner).type, None))
        return array._getvalue()
    return value


@intrinsic
def lend(context: Any, whole: Any) -> Any:
    """Lend a named tuple: for compiled functions that have one of their own."""
    del context

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del target, signature
        return cgutils.alloca_once_value(builder, arguments[0])

    return Lent(whole)(whole), generate


@intrinsic
def owned(context: Any, tuple: Any) -> Any:
    """A tuple by value, lent or not: to make another of it. Only `jit.inner` functions may, for they count nothing."""
    del context
    lent = isinstance(tuple, Lent)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del target, signature
        return builder.load(arguments[0]) if lent else arguments[0]

    return (tuple.whole if lent else tuple)(tuple), generate
