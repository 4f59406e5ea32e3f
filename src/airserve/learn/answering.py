"""Answering: find the text that answers a question among many; no training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from airserve.learn.tasks import Baseline, TaskError
from airserve.model import Array, Engine


@dataclass(frozen=True)
class Questions:
    """Questions, the texts among which their answers are, which of them answer each, (questions, most), -1 for none."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    right: Array

    def hits(self, scores: Array, best: int) -> float:
        """Share of the questions whose answer is among the `best` of its row of scores (questions, answers)."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :best]
        return float(np.mean((order[:, :, None] == self.right[:, None]).any(axis=(1, 2))))


def baseline(data: Questions, best: int = 1, stop_words: str | None = "english") -> Baseline:
    """TF-IDF of words, cosine."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, stop_words=stop_words)
    known = vectors.fit_transform(data.answers)
    scores = (vectors.transform(data.questions) @ known.T).toarray()
    return Baseline(f"TF-IDF, hit@{best}", data.hits(scores, best))


def assess(encode: Callable[[Sequence[str]], Array], data: Questions) -> dict[str, float]:
    """hit@1 and hit@5 by the cosine of vectors that a sentence encoder gives texts, (n, size)."""
    asked, known = (unit(encode(texts)) for texts in (data.questions, data.answers))
    scores = asked @ known.T
    return {f"hit@{best}": data.hits(scores, best) for best in (1, 5)}


def unit(vectors: Array) -> Array:
    """Rows of length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def encoder(engine: Engine, tokenizer: str, longest: int = 256) -> Callable[[Sequence[str]], Array]:
    """A sentence encoder's graph with one input, `input_ids`, and its tokenizer (the text of a tokenizer.json).

    Texts are cut at `longest` pieces, as the encoder was trained.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise TaskError("texts are cut into pieces with the package tokenizers: `pip install tokenizers`.") from None
    cutter = Tokenizer.from_str(tokenizer)
    cutter.enable_truncation(longest)
    cutter.no_padding()

    def encode(texts: Sequence[str]) -> Array:
        rows = [np.array([each.ids], np.int64) for each in cutter.encode_batch(list(texts))]
        return np.concatenate([engine.run([row])[0] for row in rows])

    return encode
