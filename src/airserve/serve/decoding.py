"""Decoder-only language models in ONNX with a KV cache: many sequences of different length in one step of the engine.

Names of inputs and outputs are those that Optimum exports: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.{i}.key|value`; `logits`, `present.{i}.key|value`. Sequences that run together are padded on the left:
all grow at the right end, by the graph itself, so that a step copies nothing. Padding is masked, and positions count
from a sequence's own beginning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, final

import numpy as np

from airserve.model import Array, ModelError

PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
CONTEXT = 1024  # tokens of a sequence, where neither file nor graph says
CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder(Protocol):
    """What generates: sequences have places, which their owner deals out and frees."""

    vocabulary: int
    context: int  # tokens of a sequence, at most

    def cache_bytes(self, needs: Sequence[int]) -> int:
        """What the caches of sequences that grow to so many tokens take, side by side, while a step is made."""

    def extend(self, place: int, tokens: Sequence[int]) -> Array:
        """Takes in tokens of a sequence that does not run yet; the logits of the last, shape (vocabulary,)."""

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Array:
        """Takes in a token for each sequence that runs; logits of shape (len(places), vocabulary)."""

    def free(self, place: int) -> None:
        """Forgets a sequence."""


def is_decoder(session: Any) -> bool:
    """Whether a graph takes tokens and a cache."""
    names = {value.name for value in session.get_inputs()}
    return "input_ids" in names and any(PAST.fullmatch(name) for name in names)


@final
class OnnxDecoder:
    """A graph with its caches; a `context` that is not said is found out. Raises `ModelError` where a name lacks."""

    def __init__(self, session: Any, name: str, context: int | None) -> None:
        self._session = session
        inputs = {value.name: value for value in session.get_inputs()}
        outputs = {value.name: value for value in session.get_outputs()}
        past = sorted((name for name in inputs if PAST.fullmatch(name)), key=lambda name: int(name.split(".")[1]))
        self._past, self._present = past, [name.replace("past_key_values", "present") for name in past]
        for wanted in ("attention_mask", "position_ids"):
            if wanted not in inputs:
                raise ModelError(f"{name} has no input {wanted!r}, which sequences that run together need.")
        for wanted in ("logits", *self._present):
            if wanted not in outputs:
                raise ModelError(f"{name} has no output {wanted!r}; a language model gives its cache back.")
        if extra := set(inputs) - {"input_ids", "attention_mask", "position_ids", *past}:
            raise ModelError(f"{name} has an input {min(extra)!r} that a decoder-only language model has not.")
        shapes = [inputs[name].shape for name in past]
        if any(len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int) for shape in shapes):
            raise ModelError(f"{name}: {past[0]} has no shape (batch, heads, past, size) with heads and size fixed.")
        if any(inputs[name].type not in CACHE_TYPES for name in past):
            raise ModelError(f"{name}: {past[0]} is {inputs[past[0]].type}; a cache is float32 or float16.")
        self._rows = [(s[1], s[3], CACHE_TYPES[inputs[n].type]) for n, s in zip(past, shapes, strict=True)]
        self._ids = {n: np.int32 if inputs[n].type == "tensor(int32)" else np.int64 for n in inputs}
        self.token_bytes = sum(heads * size * np.dtype(kind).itemsize for heads, size, kind in self._rows)
        self._alone: dict[int, tuple[list[Any], int]] = {}  # caches of those that do not run yet, and their lengths
        self._order: list[int] = []  # who runs, in the order of the rows of `_batch`
        self._live: set[int] = set()  # of these, those that are not freed
        self._lengths: list[int] = []
        self._batch: list[Any] = []
        try:  # also finds out how many tokens there are
            self.vocabulary = len(self.extend(0, [0, 0]))
            self.step([0], [0])
        except ModelError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"{name} fails on its first tokens: {str(error).strip().splitlines()[0][:160]}") from None
        self.free(0)
        self.context = context or self._positions(CONTEXT)

    def cache_bytes(self, needs: Sequence[int]) -> int:
        each: int = max(needs) * self.token_bytes  # padded to the longest
        return 2 * len(needs) * each  # before the step, and after it

    def extend(self, place: int, tokens: Sequence[int]) -> Array:
        cache, length = self._alone.get(place) or (self._values([self._zeros(row, 1, 0) for row in self._rows]), 0)
        end = length + len(tokens)
        logits, cache = self._run(np.array([tokens]), np.ones((1, end), np.int64), np.arange(length, end)[None], cache)
        self._alone[place] = cache, end
        return logits[0, -1]  # type: ignore[no-any-return]

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Array:
        if list(places) != self._order or any(place in self._alone for place in places):
            self._gather(list(places))
        lengths = np.array(self._lengths)
        width = int(lengths.max()) + 1
        mask = (np.arange(width)[None] >= width - 1 - lengths[:, None]).astype(np.int64)
        logits, self._batch = self._run(np.array(tokens)[:, None], mask, lengths[:, None], self._batch)
        self._lengths = [length + 1 for length in self._lengths]
        return logits[:, -1]

    def free(self, place: int) -> None:
        self._alone.pop(place, None)
        self._live.discard(place)
        if not self._live:  # else its row goes with the next step
            self._order, self._lengths, self._batch = [], [], []

    def _gather(self, places: list[int]) -> None:
        """Make these the rows of the batch, as wide as the longest."""
        rows = {place: row for row, place in enumerate(self._order) if place not in self._alone}
        lengths = [self._lengths[rows[p]] if p in rows else self._alone[p][1] for p in places]
        width, before = max(lengths), [value.numpy() for value in self._batch]
        batch = []
        for k, row in enumerate(self._rows):
            made = self._zeros(row, len(places), width)
            for at, (place, length) in enumerate(zip(places, lengths, strict=True)):
                here = before[k][rows[place]] if place in rows else self._alone[place][0][k].numpy()[0]
                made[at, :, width - length :] = here[:, here.shape[1] - length :]
            batch.append(made)
        self._order, self._lengths, self._batch = places, lengths, self._values(batch)
        self._live = set(places)
        for place in places:
            self._alone.pop(place, None)

    def _run(
        self, tokens: Array, mask: Array, positions: Array, cache: list[Any], how: Any = None
    ) -> tuple[Array, list[Any]]:
        given = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        feed = {name: self._value(array.astype(self._ids[name], copy=False)) for name, array in given.items()}
        feed.update(zip(self._past, cache, strict=True))
        logits, *present = self._session.run_with_ort_values(["logits", *self._present], feed, how)
        return logits.numpy(), present

    def _positions(self, most: int) -> int:
        """How many positions the graph knows, up to `most`: a table of them has an end, beyond which it fails."""
        low, high = 3, most + 1
        if self._knows(most - 1):
            return most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._knows(middle - 1) else (low, middle)
        return low

    def _knows(self, position: int) -> bool:
        import onnxruntime as ort

        quiet = ort.RunOptions()
        quiet.log_severity_level = 4
        empty = self._values([self._zeros(row, 1, 0) for row in self._rows])
        try:
            self._run(np.zeros((1, 1)), np.ones((1, 1)), np.array([[position]]), empty, quiet)
        except Exception:  # onnxruntime's exceptions share no base class
            return False
        return True

    def _values(self, arrays: list[Array]) -> list[Any]:
        return [self._value(array) for array in arrays]

    def _value(self, array: Array) -> Any:
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def _zeros(self, row: tuple[int, int, Any], count: int, length: int) -> Array:
        heads, size, kind = row
        return np.zeros((count, heads, length, size), kind)
