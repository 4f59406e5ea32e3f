"""Texts with classes as data, and what a net must beat on them: TF-IDF with logistic regression."""

from collections.abc import Iterable, Sequence

import numpy as np

from airserve.learn.tasks import Baseline, Data, Split
from airserve.learn.words import encode, tokens, vocabulary
from airserve.model import Array


def once(found: Iterable[tuple[str, int]], length: int) -> tuple[list[str], Array]:
    """Texts and their labels, int64 (n,): of those that are alike to who sees their first `length` words, the first.

    One that comes with two labels is left out: nobody can learn it. So no split has a text of another's.

    >>> once([("Hi @ann", 0), ("hi  @bob", 0), ("42 times", 0), ("7 times", 1), ("", 0)], 3)
    (['Hi @ann'], array([0]))
    """
    texts: dict[tuple[str, ...], str] = {}
    labels: dict[tuple[str, ...], set[int]] = {}
    for text, label in found:
        seen = tuple(tokens(text)[:length])
        texts.setdefault(seen, text)
        labels.setdefault(seen, set()).add(label)
    kept = [seen for seen in texts if seen and len(labels[seen]) == 1]
    return [texts[seen] for seen in kept], np.array([label for seen in kept for label in labels[seen]], np.int64)


def parts(rows: int, validation: int, test: int) -> list[Array]:
    """Rows of the validation, the test and the train split, in an order drawn once for all."""
    return np.split(np.random.default_rng(0).permutation(rows), [validation, validation + test])


def with_classes(
    name: str, classes: tuple[str, ...], texts: Sequence[str], labels: Array, rows: list[Array], length: int
) -> Data:
    """Ids of words, (n, length), split as `parts` says. The vocabulary is that of the train split alone."""
    validation, test, train = rows
    words = vocabulary(texts[row] for row in train)

    def split(of: Array) -> Split:
        return Split(encode([texts[row] for row in of], words, length), labels[of])

    return Data(name, classes, split(train), split(validation), split(test), ids=(len(words),), words=words)


def tf_idf(texts: Sequence[str], labels: Array, rows: list[Array], strength: float, most_words: int = 1) -> Baseline:
    """Logistic regression (C = `strength`) on TF-IDF of 1 to `most_words` words in a row, on the test rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    _, test, train = rows
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, most_words), sublinear_tf=True), LogisticRegression(C=strength, max_iter=300)
    )
    classifier.fit([texts[row] for row in train], labels[train])
    found = classifier.predict([texts[row] for row in test])
    return Baseline("TF-IDF and logistic regression", float(np.mean(found == labels[test])))
