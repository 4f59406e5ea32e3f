"""Answer small talk: pairs of what is said and answered, of the package chatterbot-corpus. A reply often has no word of
what it replies to.

To find the reply among all is retrieval (`questions`, no training); to choose one of four is learnt (`load`).
Conversations of more than two turns are left out, for the corpus writes other answers to the same question as it writes
later turns.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import yaml

from airserve.learn import choosing
from airserve.learn.answering import Questions
from airserve.learn.tasks import Baseline, Data, TaskError, folders

PACKAGE = "chatterbot_corpus"


def load() -> Data:
    """A question and four replies of which one answers it; no question and no reply is in two splits."""
    return choosing.choices("chatterbot", questions())


def baseline(data: Data) -> Baseline:
    """The nearest reply by TF-IDF."""
    return choosing.baseline(questions())


def questions() -> Questions:
    """What is said, each once, and all that is answered. Raises `TaskError` when the files are absent."""
    pairs = read(folder())
    answers = {answer: k for k, answer in enumerate(dict.fromkeys(answer for _, answer in pairs))}
    right: dict[str, list[int]] = {}
    for question, answer in pairs:
        if answers[answer] not in (known := right.setdefault(question, [])):
            known.append(answers[answer])
    most = max(map(len, right.values()))
    padded = np.array([each + [-1] * (most - len(each)) for each in right.values()], np.int64)
    return Questions(tuple(right), tuple(answers), padded)


def read(path: Path) -> list[tuple[str, str]]:
    """All conversations of two turns in the folder's files. Raises `TaskError` for another file."""
    pairs = []
    for file in sorted(path.glob("*.yml")):
        try:
            talks = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
            found = [[" ".join(str(turn).split()) for turn in talk] for talk in talks]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:80]
            raise TaskError(f"{file} cannot be read: {reason}; install chatterbot-corpus again.") from None
        pairs += [(turns[0], turns[1]) for turns in found if len(turns) == 2 and all(turns)]
    return pairs


def folder() -> Path:
    """Where the conversations are. Raises `TaskError` when they are absent."""
    spec = find_spec(PACKAGE)
    usual = [str(Path(spec.origin).parent / "data/english")] if spec and spec.origin else []
    found = next((path for path in folders("chatterbot", *usual) if any(path.glob("*.yml"))), None)
    if found is None:
        raise TaskError(
            "the conversations come with a package: `pip install --no-deps chatterbot-corpus==1.3.3`; or put its files "
            "in AIRSERVE_DATA/chatterbot."
        )
    return found
