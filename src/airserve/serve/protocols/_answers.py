"""Answers of one form: all that answers with outputs of the same shapes have in common, written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import orjson

from airserve import wire
from airserve.model import Array, Tensor
from airserve.tensors import DATATYPE, NUMPY


@final
class Template:
    """Writes what `wire.infer_response` writes, byte for byte, for outputs of numbers in these shapes.

    `binary` says of each output whether it travels as binary or as JSON; times are seconds.
    """

    __slots__ = ("_between", "_binary", "_only", "_start", "_tail", "_texts", "shapes")

    def __init__(
        self,
        site: str,
        header: dict[str, Any],
        tensors: Sequence[Tensor],
        shapes: list[tuple[int, ...]],
        binary: Sequence[bool],
    ) -> None:
        self.shapes = shapes
        self._binary = binary
        texts = [orjson.dumps(header)[:-1] + b',"outputs":[']
        raw_bytes = 0
        for k, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            one: dict[str, Any] = {"name": tensor.name, "datatype": DATATYPE[tensor.dtype], "shape": shape}
            comma = b"," if k else b""
            if binary[k]:
                size_bytes = int(np.prod(shape)) * NUMPY[DATATYPE[tensor.dtype]].itemsize
                raw_bytes += size_bytes
                texts[-1] += comma + orjson.dumps({**one, "parameters": {"binary_data_size": size_bytes}})
            else:
                texts[-1] += comma + orjson.dumps(one)[:-1] + b',"data":'
                texts.append(b"}")
        texts[-1] += b"]}"
        self._texts = texts
        start = f"HTTP/1.1 200 OK\r\nContent-Type: {wire.BINARY if any(binary) else wire.JSON}\r\n"
        self._tail = b""
        if all(binary):  # then even the lengths are known
            start += f"Inference-Header-Content-Length: {len(texts[0])}\r\n"
            self._tail = b"%d\r\n\r\n%b" % (len(texts[0]) + raw_bytes, texts[0])
        self._only = len(tensors) == 1 and bool(self._tail)
        self._start = start.encode()
        desc = b';desc="' + site.encode() + b'"'
        self._between = (b"Server-Timing: queue;dur=", desc + b", compute;dur=", desc + b"\r\nContent-Length: ")
        if self._tail:
            one_, two, three = self._between
            self._between = (self._start + one_, two, three + self._tail)

    def write_alike(self, outputs: Sequence[Array], queues_s: Sequence[float], compute_s: float) -> list[bytes]:
        """The answers of a batch, whose rows follow one another in `outputs`."""
        count = len(queues_s)
        one, two, three = self._between
        if len(outputs) > 1:
            ends = [len(array) // count for array in outputs]
            return [
                self.write([a[k * end : (k + 1) * end] for a, end in zip(outputs, ends, strict=True)], one_s, compute_s)
                for k, one_s in enumerate(queues_s)
            ]
        rest = b"%b%.3f%b" % (two, 1e3 * compute_s, three)
        if self._only:
            raw = outputs[0].tobytes()
            size = len(raw) // count
            return [
                b"%b%.3f%b%b" % (one, 1e3 * queue_s, rest, raw[k * size : (k + 1) * size])
                for k, queue_s in enumerate(queues_s)
            ]
        # The lists of all in one go: [[1,2],[3,4]] is cut where one ends and the next begins.
        flat = np.ascontiguousarray(outputs[0]).reshape(count, -1)
        lists = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
        begins, ends_ = self._texts[0] + b"[", b"]" + self._texts[1]
        around, start = len(begins) + len(ends_), self._start + one
        return [
            b"%b%.3f%b%d\r\n\r\n%b%b%b" % (start, 1e3 * queue_s, rest, around + len(its), begins, its, ends_)
            for queue_s, its in zip(queues_s, lists, strict=True)
        ]

    def write(self, outputs: Sequence[Array], queue_s: float, compute_s: float) -> bytes:
        one, two, three = self._between
        if self._only:
            return b"%b%.3f%b%.3f%b%b" % (one, 1e3 * queue_s, two, 1e3 * compute_s, three, outputs[0].tobytes())
        timing = b"%b%.3f%b%.3f%b" % (one, 1e3 * queue_s, two, 1e3 * compute_s, three)
        if self._tail:
            return b"".join((timing, *[array.tobytes() for array in outputs]))
        parts, raws, k = [self._texts[0]], [], 1
        for array, as_binary in zip(outputs, self._binary, strict=True):
            if as_binary:
                raws.append(array.tobytes())
            else:
                flat = np.ascontiguousarray(array).reshape(-1)
                parts += (orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY), self._texts[k])
                k += 1
        text = b"".join(parts)
        length = b"Inference-Header-Content-Length: %d\r\n" % len(text) if raws else b""
        body = b"".join((text, *raws))
        return b"%b%b%b%d\r\n\r\n%b" % (self._start, length, timing, len(body), body)
