"""What requests of CAMARA's Model as a Service hold, checked as its specification says (release r2.1, 0.2.0-rc.1).

Unknown fields are refused (the specification's "request body strictness"), bounds have a code of their own.
"""

from __future__ import annotations

import email.parser
import email.policy
import uuid
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson

FORMATS = {".txt": "TXT", ".csv": "CSV"}
DOCUMENT_BYTES = 1 << 20
FORM_BYTES = DOCUMENT_BYTES + (64 << 10)  # with what stands around the document
LONGEST = {"name": 255, "description": 4096, "configurationPrompt": 8192, "openingRemarks": 4096, "prompt": 1000}
MODEL_LONGEST = 128


class Refused(ValueError):
    """A request that the specification has a status and a code for; the message is one sentence."""

    def __init__(self, sentence: str, status: int = 400, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(sentence)
        self.status, self.code = status, code


class Document(NamedTuple):
    """An uploaded file as text."""

    filename: str
    format: str
    text: str


def read_body(body: bytes, known: Mapping[str, type], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON object of known fields; where none is required, of at least one. Raises `Refused`."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused("the body is no JSON; send an object.") from None
    if not isinstance(found, dict) or not found:
        raise Refused("the body is no JSON object with a field.")
    for name, value in found.items():
        if name not in known:
            raise Refused(f"there is no field {name[:60]!r}; leave it out.")
        if not isinstance(value, known[name]):
            raise Refused(f"{name} is {str(value)[:60]!r}; wanted is {_kind(known[name])}.")
        if isinstance(value, str) and len(value) > LONGEST.get(name, 36):
            raise Refused(f"{name} has {len(value)} characters; {LONGEST.get(name, 36)} is most.", code="OUT_OF_RANGE")
    for name in required:
        if found.get(name) in (None, ""):
            raise Refused(f"the body has no {name}.")
    return found


def read_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """`largeModelParameters`. Raises `Refused`."""
    for name in given:
        if name not in ("model", "temperature", "maxTokens", "topP"):
            raise Refused(f"largeModelParameters has no field {name[:60]!r}; leave it out.")
    for name in ("model", "temperature", "maxTokens"):
        if name not in given:
            raise Refused(f"largeModelParameters has no {name}.")
    if not isinstance(given["model"], str) or not 0 < len(given["model"]) <= MODEL_LONGEST:
        raise Refused("largeModelParameters.model is no name of a model.")
    for name, low, high, kinds in (
        ("temperature", 0, 2, (int, float)), ("topP", 0, 1, (int, float)), ("maxTokens", 1, 128_000, (int,))
    ):  # fmt: skip
        value = given.get(name, low)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise Refused(f"largeModelParameters.{name} is {str(value)[:40]!r}; wanted is a number.")
        if not low <= value <= high:
            raise Refused(f"largeModelParameters.{name} is {value}; {low} to {high} is kept.", code="OUT_OF_RANGE")
    return given


def read_id(given: str, name: str) -> str:
    """A UUID in its usual form. Raises `Refused`."""
    try:
        return str(uuid.UUID(given)) if len(given) == 36 else _no_id(given, name)
    except ValueError:
        return _no_id(given, name)


def _no_id(given: str, name: str) -> str:
    raise Refused(f"{name} is {given[:40]!r}, no UUID.")


def read_page(query: bytes) -> tuple[int, int]:
    """`page` and `perPage` of a query. Raises `Refused`."""
    found = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    made = []
    for name, default, most in (("page", 1, 2**31 - 1), ("perPage", 20, 100)):
        value = found.get(name, [str(default)])[-1]
        if not (value.isascii() and value.isdecimal() and len(value) < 12 and 1 <= int(value) <= most):
            raise Refused(f"{name} is {value[:20]!r}; wanted is a number from 1 to {most}.")
        made.append(int(value))
    return made[0], made[1]


def read_upload(media: bytes, body: bytes) -> Document:
    """The field `document` of a form (RFC 7578). Raises `Refused`."""
    if not media.lower().startswith(b"multipart/form-data"):
        raise Refused("send the document as multipart/form-data.", 415, "UNSUPPORTED_MEDIA_TYPE")
    if len(body) > FORM_BYTES:  # the parser takes its time
        raise _too_long()
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    form = parser.parsebytes(b"Content-Type: " + media.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n\r\n" + body)
    parts = list(form.iter_parts()) if form.is_multipart() else []
    if len(parts) != 1 or parts[0].get_param("name", header="content-disposition") != "document":
        raise Refused("the form has other fields than one document.")
    # Some clients send a path; only its last part is a name.
    given = PureWindowsPath(PurePosixPath(str(parts[0].get_filename() or "")).name).name
    form_of = FORMATS.get(PurePosixPath(given).suffix.lower())
    if form_of is None or len(given) > LONGEST["name"]:
        raise Refused(f"{given[:60]!r} cannot be read; send a .txt or .csv file.", 415, "UNSUPPORTED_MEDIA_TYPE")
    content = parts[0].get_payload(decode=True)
    data = content if isinstance(content, bytes) else b""
    if len(data) > DOCUMENT_BYTES:
        raise _too_long()
    try:
        return Document(given, form_of, data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Refused(f"{given[:60]!r} is not UTF-8.") from None


def _too_long() -> Refused:
    return Refused(f"the document passes {DOCUMENT_BYTES} bytes; send it in parts.", code="OUT_OF_RANGE")


def _kind(wanted: type) -> str:
    return "a text" if wanted is str else "a list" if wanted is list else "an object"
