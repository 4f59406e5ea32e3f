"""Answer questions by finding the answer: the Debian FAQ, 146 sections, of the package debian-faq. No training.

A question is the title of a section, without its number; among the texts of all sections its own is to be found.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airserve.learn.tasks import Baseline, TaskError, folders
from airserve.model import Array, Engine

USUAL = "/usr/share/doc/debian/FAQ"
TITLE = re.compile(r'<h[23][^>]*><a id="[^"]*"></a>(.*?)</h[23]>', re.DOTALL)
INLINE = re.compile(r"</?(?:a|acronym|code|em|span|strong|tt)\b[^>]*>")
NUMBER = re.compile(r"^[\d.]+\s*")


@dataclass(frozen=True)
class Questions:
    """Questions, the texts among which their answers are, and which text each one's answer is, shape (questions,)."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    right: Array

    def hits(self, scores: Array, best: int) -> float:
        """Share of the questions whose answer is among the `best` of its row of scores (questions, answers)."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :best]
        return float(np.mean((order == self.right[:, None]).any(axis=1)))


def questions() -> Questions:
    """All sections whose title asks something. Raises `TaskError` when the files are absent."""
    sections = read(folder())
    asked = [k for k, (title, _) in enumerate(sections) if "?" in title]
    return Questions(
        tuple(sections[k][0] for k in asked), tuple(text for _, text in sections), np.array(asked, np.int64)
    )


def baseline(data: Questions, best: int = 1) -> Baseline:
    """TF-IDF of words, cosine."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, stop_words="english")
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


def folder() -> Path:
    """Where the pages are. Raises `TaskError` when they are absent."""
    found = next((path for path in folders("debian-faq", USUAL) if any(path.glob("*.en.html"))), None)
    if found is None:
        raise TaskError(
            "the questions come with a package of Debian: `apt-get install debian-faq`; or put its pages in "
            "AIRSERVE_DATA/debian-faq."
        )
    return found


def read(path: Path) -> list[tuple[str, str]]:
    """Titles and texts of the sections of all pages; a section ends where the next one begins."""
    sections = []
    for file in sorted(path.glob("*.en.html")):
        parts = TITLE.split(file.read_text(encoding="utf-8", errors="replace"))
        sections += [
            (NUMBER.sub("", plain(title)), plain(text)) for title, text in zip(parts[1::2], parts[2::2], strict=True)
        ]
    if not sections:
        raise TaskError(f"the pages in {path} have no sections; install debian-faq again.")
    return sections


def plain(marked: str) -> str:
    """A piece of HTML as text on one line.

    >>> plain("How do I <code>dpkg&nbsp;-i</code><br/> it?")
    'How do I dpkg -i it?'
    """
    joined = re.sub(r"<[^>]*>", " ", INLINE.sub("", marked))
    return " ".join(html.unescape(joined).split())
