"""Passages of a document, and those that are nearest in meaning to a question.

Lewis et al. 2020, arXiv:2005.11401: what is found is put before the language model with the question.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence

import numpy as np

from airserve.model import Array

SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n\s*\n")
WORDS = re.compile(r"\S+\s*")


def passages(text: str, size: int, count: Callable[[str], int]) -> list[str]:
    """A text in pieces of at most `size` by `count`, cut between sentences, then words, then characters.

    >>> passages("One two. Three four five. Six.", 3, lambda text: len(text.split()))
    ['One two.', 'Three four five.', 'Six.']
    """
    made: list[str] = []
    for part in SENTENCE.split(text):
        made += _fitting(part.strip(), size, count, made)
    return [piece for piece in made if piece]


def _fitting(part: str, size: int, count: Callable[[str], int], made: list[str]) -> list[str]:
    """A sentence as new pieces, or none where it was put behind the last of those that are there."""
    if not part:
        return []
    if made and count(joined := f"{made[-1]} {part}") <= size:
        made[-1] = joined
        return []
    if count(part) <= size:
        return [part]
    words = WORDS.findall(part)
    if len(words) < 2:
        half = len(part) // 2
        return [part] if half == 0 else [*passages(part[:half], size, count), *passages(part[half:], size, count)]
    half = len(words) // 2
    sides = "".join(words[:half]).strip(), "".join(words[half:]).strip()
    return [piece for side in sides for piece in ([side] if count(side) <= size else _fitting(side, size, count, []))]


def rows(text: str) -> list[str]:
    r"""The rows of a table with a header, each as a text. Raises `csv.Error`.

    >>> rows("part,torque\nbolt,12 Nm\n")
    ['part: bolt; torque: 12 Nm']
    """
    found = csv.DictReader(io.StringIO(text), strict=True)
    return ["; ".join(f"{name}: {value}" for name, value in row.items() if name and value) for row in found]


def nearest(question: Array, vectors: Array, count: int) -> Sequence[int]:
    """The rows of `vectors`, shape (n, size), each of length 1, that are nearest to a question's, the nearest first.

    >>> nearest(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]), 2)
    [2, 1]
    """
    order: list[int] = np.argsort(-(vectors @ question), kind="stable")[:count].tolist()
    return order
