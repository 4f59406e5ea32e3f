"""`airserve serve` as it is mostly written, read without what the other commands need: half of the time of its start.

What is not plain (help, an unknown option, a value that it does not take, a model that is imported first) is left to
the full reading, which has the words for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields

from airserve.serve.configuration import Configuration
from airserve.serve.starting import imported_first

RANGES = {
    "port": (0, 65_535), "workers": (1, math.inf), "grpc_port": (-1, 65_535), "queue": (1, math.inf),
    "deadline_s": (0.001, math.inf), "running": (1, math.inf), "cache_mb": (1, math.inf),
}  # fmt: skip
OPTIONS = {
    f"--{field.name.replace('_', '-')}": (field.name, type(field.default))
    for field in fields(Configuration)
    if field.default is not MISSING and field.name != "name"
}


def plain(words: Sequence[str]) -> Configuration | None:
    """What the words after `serve` say; None where they are not plain.

    >>> plain(["my.onnx", "--port", "0", "--access-log"]).port, plain(["my.onnx", "--prot", "0"])
    (0, None)
    """
    sources, given, rest = [], dict[str, str | int | float](), iter(words)
    for word in rest:
        if not word.startswith("-"):
            sources.append(word)
            continue
        option, equals, value = word.partition("=")
        name, kind = OPTIONS.get(option, ("", str))
        if not name or (kind is bool and equals):
            return None
        if kind is bool:
            given[name] = True
            continue
        if not equals and (value := next(rest, "")) == "":
            return None
        if kind is str:
            given[name] = value
        elif (number := _number(value, kind)) is not None and RANGES[name][0] <= number <= RANGES[name][1]:
            given[name] = number
        else:
            return None
    if not sources or any(imported_first(source) for source in sources):
        return None
    return Configuration(tuple(sources), **given)  # type: ignore[arg-type]


def _number(text: str, kind: type[int | float]) -> int | float | None:
    """A number in plain digits; None for any other way to write one."""
    digits = text.removeprefix("-")
    if kind is float:
        digits = digits.replace(".", "", 1)
    return kind(text) if digits.isascii() and digits.isdecimal() and len(digits) < 16 else None
