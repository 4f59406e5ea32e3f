"""What pydantic finds wrong in a description, as one sentence: the line, what stands there, and what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from airserve import documents

Where = tuple[str | int, ...]
PATTERNS = {  # of texts, in words
    r"^[a-z0-9][a-z0-9-]*$": "takes the letters a to z, digits and hyphens, and does not begin with a hyphen",
    r"^[0-9A-Fa-f]{6}$": "takes six hexadecimal digits",
}
KINDS = {"tuple_type": "should be a list", "model_type": "should have keys, each with a value"}


def sentence(path: Path, model: type[BaseModel], data: Any, tree: documents.Node | None, error: ValidationError) -> str:
    """About the first of the errors in the data of a file that is read as `model`.

    A misspelt key is also a missing one: the misspelling is the better thing to say. What can be of several types is
    wrong for each: the error that lies deeper, or is not of the type, is of the type that was meant.
    """
    found = [(_plain(data, one["loc"]), one) for one in error.errors()]
    found = [(at, one) for at, one in found if not any(_meant(at, one["type"], *other) for other in found)]
    where, first = min(found, key=lambda one: one[1]["type"] != "extra_forbidden")
    wrong = first.get("ctx", {}).get("error")
    if isinstance(wrong, ValueError):
        where = getattr(wrong, "where", None) or (_quoted(data, str(wrong)) if where == ("network",) else where)
        said = str(wrong).rstrip(".")
        return f"{path}, line {documents.line(tree, where)}: {said}{'' if said.endswith('?') else '.'}"
    key = where[-1] if where else ""
    spot = f"{path}, line {documents.line(tree, where)}"
    inside = _dotted(where[:-1]) or "the file"
    match first["type"]:
        case "extra_forbidden":
            known = _keys(model, where[:-1])
            near = get_close_matches(str(key), known, n=2, cutoff=0.5) or known
            return f"{spot}: unknown key {key!r} in {inside}; perhaps {', '.join(near)}?"
        case "missing" if isinstance(key, int):
            lacking = sum(one["type"] == "missing" and at[:-1] == where[:-1] for at, one in found)
            return f"{spot}: {inside} is {_shown(first['input'])}: it takes {key + lacking} values."
        case "missing":
            return f"{spot}: {inside} lacks the key {key!r}; add it."
        case "string_pattern_mismatch" if first["ctx"]["pattern"] in PATTERNS:
            message = PATTERNS[first["ctx"]["pattern"]]
        case kind:
            message = KINDS.get(kind) or re.sub("^(Input|String|Tuple) | after validation", "", first["msg"])
    return f"{spot}: {_dotted(where)} is {_shown(first['input'])}: it {message}."


def _plain(data: Any, where: Sequence[str | int]) -> Where:
    """A path without the names that pydantic gives to the types that a value may have.

    >>> _plain({"carriers": [{"tdd": 1}]}, ("carriers", "tuple[Carrier, ...]", 0, "tdd"))
    ('carriers', 0, 'tdd')
    >>> _plain({"carriers": 0}, ("carriers", "constrained-int"))
    ('carriers',)
    """
    plain: list[str | int] = []
    for part in where:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) and part < len(data) else None
        elif isinstance(data, dict) and (part in data or part.isidentifier()):
            data = data.get(part)
        else:
            continue
        plain.append(part)
    return tuple(plain)


def _meant(where: Where, kind: str, at: Where, other: ErrorDetails) -> bool:
    """Whether another error lies deeper, or at the same place and is not that the value is of another type."""
    deeper = where == at[: len(where)] != at
    return deeper or (where == at and kind.endswith("_type") and not other["type"].endswith("_type"))


def _dotted(where: Where) -> str:
    return ".".join(map(str, where))


def _quoted(data: dict[str, Any], said: str) -> Where:
    """Where the last of the things stands that the first half of a sentence about a Network names."""
    said = said.partition(";")[0]
    kind = next((key for key in ("rules", "slices", "sites", "cells") if key[:-1] in said), None)
    if kind is None or kind not in data["network"]:
        return ("network",)
    words = set(re.findall(r"[a-z0-9][a-z0-9-]*", said))
    texts = [{value for value in one.values() if isinstance(value, str)} for one in data["network"][kind]]
    named = [k for k, mine in enumerate(texts) if words & mine]
    return ("network", kind, *named[-1:])


def _shown(value: Any) -> str:
    """What stands in the file, as JSON where it can be: YAML has dates as keys, and lists that hold themselves."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text.encode(errors="backslashreplace").decode()  # halves of surrogate pairs cannot be printed


def _keys(model: type[BaseModel], where: Where) -> list[str]:
    """The keys that a place in the data of a model may have."""
    for part in where:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models(hint: Any) -> Iterator[type[BaseModel]]:
    """The models in a type, however deep: of `tuple[Site, ...] | None` it is Site."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for part in get_args(hint):
        yield from _models(part)
