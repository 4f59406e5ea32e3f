"""Words: texts as ids for nets, the same way when a Model is trained and when it is asked."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from airserve.model import Array

END, UNKNOWN = "<end>", "<unknown>"  # ids 0 and 1
CHOICE, CHOICE_ID = "<choice>", 2  # before each of the texts of which one is to be chosen, in tasks that have them
TOKEN = re.compile(r"https?://\S+|@\w+|[:;=8][-o*']?[)\](\[dDpP/\\|]|<3|#?\w+(?:'\w+)?|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Words in lower case, numbers as 0, addresses and names alike, smileys and marks by themselves.

    >>> tokens("@Ann: I DON'T like it :( https://t.co/x 42 #sad!")
    ['<name>', ':', 'i', "don't", 'like', 'it', ':(', '<address>', '0', '#sad', '!']
    """
    return [_plain(token) for token in TOKEN.findall(text)]


def _plain(token: str) -> str:
    if token.startswith("http"):
        return "<address>"
    if token.startswith("@") and len(token) > 1:
        return "<name>"
    return "0" if token.isdigit() else token.lower()


def vocabulary(texts: Iterable[str], least: int = 2, most: int = 20_000) -> tuple[str, ...]:
    """What ids stand for: 0 the end, 1 any other word, then words seen at least so often, the commonest first."""
    seen = Counter(token for text in texts for token in tokens(text))
    common = sorted((-count, word) for word, count in seen.items() if count >= least)
    return (END, UNKNOWN, *(word for _, word in common[: most - 2]))


def encode(texts: Sequence[str], words: Sequence[str], length: int) -> Array:
    """Ids, int32, shape (n, length): the first words of each text, 0 after its end.

    >>> encode(["a b", "c a b"], ("<end>", "<unknown>", "a", "b"), 3).tolist()
    [[2, 3, 0], [1, 2, 3]]
    """
    known = {word: k for k, word in enumerate(words)}
    ids = np.zeros((len(texts), length), np.int32)
    for row, text in enumerate(texts):
        found = [known.get(token, 1) for token in tokens(text)[:length]]
        ids[row, : len(found)] = found
    return ids
