"""Choosing: which of some replies answers a question; the question and its replies are one text, with marks between.

What is said is retrieval's (answering.py), but a net that chooses is trained, by questions and replies of which the
validation and the test split have none.
"""

from collections.abc import Sequence

import numpy as np

from airserve.learn.answering import Questions
from airserve.learn.tasks import Baseline, Data, Split
from airserve.learn.words import CHOICE, END, UNKNOWN, tokens, vocabulary
from airserve.model import Array

CHOICES = 4
MOST = 24  # words of a question or a reply that are read
HELD = 0.15, 0.25  # parts of the questions that validate and that test
TIMES = 8, 4, 4  # rows of each question in the train, the validation and the test split, with other wrong replies


def choices(name: str, data: Questions) -> Data:
    """Ids of a question's words and, each behind a mark, of four replies, one of them right: int32 (n, 5 x 25).

    The wrong ones are drawn from the same split. No question and no reply is in two splits.
    """
    split = divided(data)
    train = split[0]
    texts = [data.questions[row] for row in train] + [data.answers[k] for k in replies(data, train)]
    common = vocabulary(texts)[2:]
    words = (END, UNKNOWN, CHOICE, *(word for word in common if word != CHOICE))
    known = {word: k for k, word in enumerate(words)}

    def ids(text: str) -> list[int]:
        return [known.get(token, 1) for token in tokens(text)[:MOST]]

    asked, said = [ids(text) for text in data.questions], [ids(text) for text in data.answers]

    def rows(of: Sequence[int], times: int, seed: int) -> Split:
        drawn, labels = draw(data, of, times, seed)
        found = np.zeros((len(labels), (1 + CHOICES) * (1 + MOST)), np.int32)
        for row, (question, *four) in enumerate(drawn.tolist()):
            text = [*asked[question], *(each for k in four for each in (known[CHOICE], *said[k]))]
            found[row, : len(text)] = text
        return Split(found, labels)

    fitted, stopped, scored = (rows(of, times, seed) for seed, (of, times) in enumerate(zip(split, TIMES, strict=True)))
    classes = tuple(f"reply {k + 1}" for k in range(CHOICES))
    return Data(name, classes, fitted, stopped, scored, ids=(len(words),), words=words)


def baseline(data: Questions) -> Baseline:
    """The reply nearest to the question by TF-IDF of words of the train split, on the rows of the test split."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, _, test = divided(data)
    vectors = TfidfVectorizer(sublinear_tf=True)
    vectors.fit([data.questions[row] for row in train] + [data.answers[k] for k in replies(data, train)])
    asked, said = vectors.transform(data.questions), vectors.transform(data.answers)
    return Baseline("TF-IDF, cosine", nearest(data, test, (asked @ said.T).toarray()))


def nearest(data: Questions, test: Sequence[int], scores: Array) -> float:
    """Accuracy of choosing by scores (questions, answers) on the rows of the test split."""
    drawn, labels = draw(data, test, TIMES[2], 2)
    found = scores[drawn[:, :1], drawn[:, 1:]].argmax(1)
    return float(np.mean(found == labels))


def draw(data: Questions, of: Sequence[int], times: int, seed: int) -> tuple[Array, Array]:
    """Numbers of a question and its choices, (n, 1 + choices), and which is right, (n,): `times` of each question."""
    rng = np.random.default_rng(seed)
    others = np.array(replies(data, of))
    rows, labels = [], []
    for question in of:
        right = data.right[question][data.right[question] >= 0]
        wrong = np.setdiff1d(others, right)
        for _ in range(times):
            label = int(rng.integers(CHOICES))
            four = rng.choice(wrong, CHOICES, replace=False)
            four[label] = rng.choice(right)
            rows.append([question, *four])
            labels.append(label)
    return np.array(rows, np.int64), np.array(labels, np.int64)


def replies(data: Questions, of: Sequence[int]) -> list[int]:
    """Numbers of all answers that are right for some of these questions."""
    return sorted({int(k) for row in of for k in data.right[row] if k >= 0})


def divided(data: Questions) -> list[list[int]]:
    """Questions of the train, the validation and the test split, in an order drawn once for all.

    Questions that share a reply, or that differ in case and marks alone, are in one split.
    """
    first: dict[object, int] = {}
    group = list(range(len(data.questions)))

    def root(k: int) -> int:
        while group[k] != k:
            k = group[k]
        return k

    for row, question in enumerate(data.questions):
        for key in (" ".join(tokens(question)).strip(" ?!."), *(int(k) for k in data.right[row] if k >= 0)):
            group[root(row)] = root(first.setdefault(key, row))
    members: dict[int, list[int]] = {}
    for row in range(len(group)):
        members.setdefault(root(row), []).append(row)
    whole = sorted(members.values(), key=len, reverse=True)
    splits: list[list[int]] = [[], [], []]
    order = np.random.default_rng(0).permutation(len(whole))
    splits[0] += whole[0]  # replies such as "No." answer many
    for k in order[order != 0]:
        room = [share * len(group) - len(split) for share, split in zip(HELD, splits[1:], strict=True)]
        splits[1 if room[0] > 0 else 2 if room[1] > 0 else 0] += whole[k]
    return splits
