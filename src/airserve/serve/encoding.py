"""Sentence encoders in ONNX: one vector a text. Reimers and Gurevych 2019, Sentence-BERT, arXiv:1908.10084.

The mean of the last layer over a text's tokens, padding left out, at length 1; a graph that pools by itself
(`sentence_embedding`) is taken at its word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

from airserve.model import Array, ModelError
from airserve.serve.served import BadInput
from airserve.serve.tokenizing import HuggingFace

POOLED, LAYERS = "sentence_embedding", ("last_hidden_state", "token_embeddings")
TAKES = {"input_ids", "attention_mask", "token_type_ids"}
TOGETHER = 16  # texts of like length in one run
WIDEST = 100  # characters of a token, at most, for a text that is worth reading
CONTEXT = 512  # tokens of a text, where the model does not say; BERT's


class Embedded(NamedTuple):
    """Vectors of shape (texts, size), float32, each of length 1, and the tokens of all texts."""

    vectors: Array
    tokens: int


def is_encoder(session: Any) -> bool:
    """Whether a graph takes tokens, no cache, and gives what can be pooled."""
    inputs, outputs = ({v.name for v in values} for values in (session.get_inputs(), session.get_outputs()))
    return "input_ids" in inputs and inputs <= TAKES and bool(outputs & {POOLED, *LAYERS})


@final
class Encoder:
    """A graph and its tokenizer. Raises `ModelError` where it fails on a text."""

    def __init__(self, name: str, session: Any, tokenizer: HuggingFace, context: int | None) -> None:
        self.name, self.tokenizer, self.context = name, tokenizer, context or CONTEXT
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
        self._output = next(name for name in (POOLED, *LAYERS) if name in outputs)
        try:
            self.size = self.embed(["a"]).vectors.shape[1]
        except BadInput as error:
            raise ModelError(str(error)) from None
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"{name} fails on a text: {str(error).strip().splitlines()[0][:160]}") from None

    def tokens(self, text: str) -> list[int]:
        """A text's tokens. Raises `BadInput` for a text that is too long."""
        wide = len(text) > WIDEST * self.context  # not worth the time to count its tokens
        tokens = [] if wide else self.tokenizer.encode(text)
        if wide or len(tokens) > self.context:
            said = f"{len(text)} characters" if wide else f"{len(tokens)} tokens"
            raise BadInput(
                f"the text {text[:40]!r} has {said}; {self.name} takes {self.context} tokens: send its parts."
            )
        return tokens

    def check(self, tokens: Sequence[int]) -> Sequence[int]:
        """A text that came as tokens. Raises `BadInput` for one that is too long or holds what is no token."""
        wrong = next((token for token in tokens if not 0 <= token < self.tokenizer.tokens), None)
        if wrong is not None or len(tokens) > self.context:
            said = f"a token {wrong}" if wrong is not None else f"{len(tokens)} tokens"
            raise BadInput(
                f"a text has {said}; {self.name} takes {self.context} tokens from 0 to {self.tokenizer.tokens - 1}."
            )
        return tokens

    def embed(self, texts: Sequence[str]) -> Embedded:
        """The vectors of texts. Raises `BadInput` for a text that is too long, and what the engine raises."""
        return self.embed_tokens([self.tokens(text) for text in texts])

    def embed_tokens(self, texts: Sequence[Sequence[int]]) -> Embedded:
        """The vectors of texts that are tokens already."""
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        vectors: list[Array] = [np.zeros(0)] * len(texts)
        for at in range(0, len(order), TOGETHER):
            some = order[at : at + TOGETHER]
            for k, vector in zip(some, self._run([texts[k] for k in some]), strict=True):
                vectors[k] = vector
        return Embedded(np.stack(vectors).astype(np.float32), sum(map(len, texts)))

    def close(self) -> None:
        """Nothing is held besides the engine."""

    def _run(self, texts: Sequence[Sequence[int]]) -> Array:
        lengths = np.array([len(text) for text in texts])
        ids = np.zeros((len(texts), int(lengths.max())), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        mask = (np.arange(ids.shape[1])[None] < lengths[:, None]).astype(np.int64)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (found,) = self._session.run([self._output], {name: given[name] for name in self._inputs})
        if self._output != POOLED:
            found = (found * mask[..., None]).sum(axis=1) / lengths[:, None]
        made: Array = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return made
