"""Open Inference Protocol V2 as bytes: pure builders and parsers, so that planner, head, server and driver agree.

KServe open-inference-protocol, `required_api.md` and the binary tensor data extension of Triton.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
import zstandard

from airserve.model import Array, Tensor
from airserve.tensors import DATATYPE, DTYPE, NUMPY, WireError, from_list, listed, pack, unpack

VERSION = "1"  # of every model that a site answers to: a deployment replaces endpoints, it does not stack versions

REASON = {
    200: "OK", 201: "Created", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 413: "Content Too Large",
    415: "Unsupported Media Type", 422: "Unprocessable Content", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
JSON = "application/json"
BINARY = "application/octet-stream"
BODY_LIMIT_BYTES = 64 << 20


class TooLarge(WireError):
    """A body beyond the limit."""


class UnknownEncoding(WireError):
    """A Content-Encoding that is neither zstd, gzip, deflate nor identity."""


class Request(NamedTuple):
    """What an infer request asks. `requested` maps an output's name to whether it is wanted as binary; None: all."""

    inputs: dict[str, Array]
    id: str
    requested: dict[str, bool] | None
    binary: bool  # for the outputs that `requested` does not name
    timeout_s: float | None  # of the `timeout` parameter, which travels in microseconds


class Response(NamedTuple):
    """What an infer response holds."""

    model: str
    version: str
    id: str
    outputs: list[tuple[Tensor, Array]]


def infer_request(
    model: str,
    inputs: Sequence[tuple[Tensor, Array]],
    *,
    host: str,
    compress: bool = False,
    request_id: str = "",
    extra: str = "",
) -> bytes:
    """A whole HTTP request that asks `model` for all outputs as binary tensors.

    `host` is "address:port", `extra` whole header lines. The shape is the array's, the datatype is the Tensor's. With
    `compress` the body is one zstd frame, level 1.
    Raises `WireError` for an array that is not of its Tensor's type.

    >>> import numpy as np
    >>> data = infer_request("m", [(Tensor("x", "uint8", (-1, 2)), np.array([[7, 9]], np.uint8))], host="h:1")
    >>> head, _, body = data.partition(b"\\r\\n\\r\\n")
    >>> head.split(b"\\r\\n")[0], body[-2:]
    (b'POST /v2/models/m/infer HTTP/1.1', b'\\x07\\t')
    """
    header: dict[str, Any] = {"id": request_id} if request_id else {}
    described, parts = [], []
    for tensor, array in inputs:
        raw = pack(tensor, array)
        described.append(_describe(tensor, array.shape, len(raw)))
        parts.append(raw)
    header["inputs"] = described
    header["parameters"] = {"binary_data_output": True}
    text = orjson.dumps(header)
    body = b"".join((text, *parts))
    encoding = ""
    if compress:
        body, encoding = zstandard.ZstdCompressor(level=1).compress(body), "Content-Encoding: zstd\r\n"
    return (
        f"POST /v2/models/{quote(model)}/infer HTTP/1.1\r\nHost: {host}\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n{encoding}{extra}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def metadata_request(model: str, *, host: str) -> bytes:
    """A whole HTTP request for the signature of `model`."""
    return f"GET /v2/models/{quote(model)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def infer_response(
    model: str,
    version: str,
    outputs: Sequence[tuple[Tensor, Array]],
    *,
    binary: bool | Collection[str] = True,
    request_id: str = "",
    server_timing: str = "",
) -> bytes:
    """A whole HTTP response with the outputs; `binary` is all, none, or the names of those that travel as binary.

    Raises `WireError` where byte strings that are not UTF-8 are wanted as JSON.
    """
    header: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id:
        header["id"] = request_id
    described, parts = [], []
    for tensor, array in outputs:
        if binary is True or (binary is not False and tensor.name in binary):
            raw = pack(tensor, array)
            described.append(_describe(tensor, array.shape, len(raw)))
            parts.append(raw)
        else:
            datatype = DATATYPE[tensor.dtype]
            described.append(
                {"name": tensor.name, "datatype": datatype, "shape": array.shape, "data": listed(tensor, array)}
            )
    header["outputs"] = described
    text = orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY)
    if not parts:
        return http_response(200, text, server_timing=server_timing)
    return http_response(
        200,
        b"".join((text, *parts)),
        media=BINARY,
        extra=f"Inference-Header-Content-Length: {len(text)}\r\n",
        server_timing=server_timing,
    )


def http_response(status: int, body: bytes, *, media: str = JSON, extra: str = "", server_timing: str = "") -> bytes:
    """An HTTP/1.1 response; `extra` is whole header lines."""
    timing = f"Server-Timing: {server_timing}\r\n" if server_timing else ""
    return (
        f"HTTP/1.1 {status} {REASON[status]}\r\nContent-Type: {media}\r\n{extra}{timing}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode("latin-1") + body


def error_response(status: int, sentence: str, *, extra: str = "") -> bytes:
    """An HTTP response with an error in the protocol's form; `extra` is whole header lines."""
    return http_response(status, orjson.dumps({"error": sentence}), extra=extra)


def parse_request(body: bytes, json_bytes: int | None = None) -> Request:
    """An infer request from its decompressed body; `json_bytes` is Inference-Header-Content-Length, None without it.

    Raises `WireError`, one sentence with what is wrong and where.
    """
    header, binary = _split(body, json_bytes)
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise WireError('the request has no inputs; send {"inputs": [{"name", "shape", "datatype", "data"}]}.')
    arrays: dict[str, Array] = {}
    at = 0
    for item in inputs:
        name, _, array, at = _tensor(item, binary, at, "input")
        if name in arrays:
            raise WireError(f"input {name!r} is given twice; send it once.")
        arrays[name] = array
    if at != len(binary):
        raise WireError(f"{len(binary) - at} bytes follow the last binary input; binary_data_size does not add up.")
    parameters = header.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise WireError("parameters is not an object of names and values.")
    as_binary = parameters.get("binary_data_output") is True
    return Request(
        arrays,
        str(header.get("id") or ""),
        _requested(header.get("outputs"), as_binary),
        as_binary,
        _timeout_s(parameters.get("timeout")),
    )


def parse_response(body: bytes, json_bytes: int | None = None) -> Response:
    """An infer response (status 200) from its body; arrays are read-only views of it where they travelled as binary.

    Raises `WireError`.
    """
    header, binary = _split(body, json_bytes)
    listed = header.get("outputs")
    if not isinstance(listed, list):
        raise WireError("the response has no outputs.")
    outputs, at = [], 0
    for item in listed:
        name, datatype, array, at = _tensor(item, binary, at, "output")
        outputs.append((Tensor(name, DTYPE[datatype], array.shape), array))
    return Response(
        str(header.get("model_name", "")), str(header.get("model_version", "")), str(header.get("id") or ""), outputs
    )


def parse_error(body: bytes) -> str:
    """The sentence of an error response; of one that is not in the protocol's form, its first 200 characters."""
    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def decompress(body: bytes, encoding: str, limit_bytes: int = BODY_LIMIT_BYTES) -> bytes:
    """A body as its Content-Encoding says: zstd, gzip, deflate (zlib's form, as clients send it) or identity.

    Raises `TooLarge` before more than the limit is held, `UnknownEncoding`, and `WireError` for damaged data.
    """
    try:
        match encoding.strip().lower():
            case "" | "identity":
                plain = body
            case "zstd":
                size = zstandard.frame_content_size(body)
                if size > limit_bytes:
                    raise TooLarge(_too_large(size, limit_bytes))
                if size >= 0:
                    plain = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
                else:
                    with zstandard.ZstdDecompressor().stream_reader(body) as reader:
                        plain = reader.read(limit_bytes + 1)
            case "gzip" | "deflate":
                inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: either header
                plain = inflater.decompress(body, limit_bytes + 1)
                if not inflater.eof and len(plain) <= limit_bytes:
                    raise WireError(f"the {encoding} body ends too early.")
            case other:
                raise UnknownEncoding(f"Content-Encoding {other[:40]!r} is unknown; send zstd, gzip or deflate.")
    except (zstandard.ZstdError, zlib.error) as error:
        raise WireError(f"the {encoding.strip()} body is damaged: {str(error)[:80]}.") from None
    if len(plain) > limit_bytes:
        raise TooLarge(_too_large(len(plain), limit_bytes))
    return plain


def _describe(tensor: Tensor, shape: Sequence[int], size_bytes: int) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": DATATYPE[tensor.dtype],
        "shape": shape,
        "parameters": {"binary_data_size": size_bytes},
    }


def _split(body: bytes, json_bytes: int | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON object at the start of a body and the binary data after it."""
    if json_bytes is None:
        text: bytes | memoryview = body
        binary = memoryview(b"")
    else:
        if not 0 <= json_bytes <= len(body):
            raise WireError(f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes.")
        whole = memoryview(body)
        text, binary = whole[:json_bytes], whole[json_bytes:]
    try:
        header = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WireError(f"the JSON is malformed: {str(error)[:100]}.") from None
    if not isinstance(header, dict):
        raise WireError("the JSON is not an object.")
    return header, binary


def _tensor(item: Any, binary: memoryview, at: int, role: str) -> tuple[str, str, Array, int]:
    """Name, datatype, array and where the next binary tensor starts."""
    if not isinstance(item, dict) or not isinstance(name := item.get("name"), str):
        raise WireError(f"an {role} has no name; each is an object with name, shape and datatype.")
    named = f"{role} {name!r}"
    datatype, shape = item.get("datatype"), item.get("shape")
    if not isinstance(datatype, str) or datatype not in NUMPY:
        raise WireError(f"{named} has datatype {str(datatype)[:20]!r}; choose one of {', '.join(NUMPY)}.")
    if not isinstance(shape, list) or not all(type(axis) is int and 0 <= axis < 1 << 31 for axis in shape):
        raise WireError(f"{named} has shape {str(shape)[:60]}; a list of whole numbers is wanted.")
    parameters = item.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise WireError(f"{named}: parameters is not an object of names and values.")
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size < 0 or at + size > len(binary):
            raise WireError(f"{named}: binary_data_size is {str(size)[:20]}, {len(binary) - at} bytes are left.")
        return name, datatype, unpack(datatype, binary[at : at + size], shape, named), at + size
    refuse_parameters(named, parameters, "send the data")
    if not isinstance(data := item.get("data"), list):
        raise WireError(f"{named} has neither data nor binary_data_size.")
    return name, datatype, from_list(data, datatype, shape, named), at


def _requested(outputs: Any, as_binary: bool) -> dict[str, bool] | None:
    if not outputs:
        return None
    if not isinstance(outputs, list):
        raise WireError("outputs is not a list of objects with a name.")
    wanted = {}
    for item in outputs:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise WireError("a requested output has no name.")
        parameters = item.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise WireError(f"output {item['name']!r}: parameters is not an object of names and values.")
        refuse_parameters(f"output {item['name']!r}", parameters, "ask for the tensor")
        wanted[item["name"]] = bool(parameters.get("binary_data", as_binary))
    return wanted


def refuse_parameters(named: str, parameters: Container[str], instead: str) -> None:
    """Raises `WireError` for parameters of a tensor that change what is asked and are not served, over any protocol."""
    for key in ("classification", "shared_memory_region"):
        if key in parameters:
            raise WireError(f"{named}: {key} is not served; {instead}.")


def refuse_to_load_with(parameters: Iterable[str]) -> None:
    """Raises `WireError` for the parameters of a request to load or unload a model: but for one, none is taken."""
    if any(key != "unload_dependents" for key in parameters):
        raise WireError("no parameter is taken: a model is loaded as its source has it.")


def _timeout_s(microseconds: Any) -> float | None:
    if microseconds is None:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise WireError(f"timeout is {str(microseconds)[:20]}; a whole number of microseconds is wanted.")
    return microseconds / 1e6 if microseconds else None


def _too_large(size: int, limit_bytes: int) -> str:
    return f"the body has {size} bytes or more; at most {limit_bytes} are taken."
