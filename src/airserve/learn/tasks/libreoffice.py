"""English to French: what LibreOffice says in its menus, dialogs and help, from the package libreoffice-l10n-fr."""

import gettext
import re
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from airserve.learn import bitexts
from airserve.learn.bitexts import plain
from airserve.learn.tasks import Baseline, Data, TaskError, folders
from airserve.model import Engine
from airserve.registry import Registry

USUAL = "/usr/lib/libreoffice/program/resource/fr/LC_MESSAGES"
VOCABULARY = 1_500
SOURCE, TARGET = 28, 36  # pieces at most; the target's `BEGIN` and `END` included
LONG = 16  # words, from which on texts to learn from are taken apart into sentences
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SCORED = 4  # words that a text of the validation and the test split has at least
VALIDATION, TEST = 500, 1_000


@cache
def load() -> Data:
    """Ids int32 (n, 28) of English, int64 (n, 36) of French with its begin and end, 0 after it.

    Long texts to learn from are taken apart. 500 texts to validate and 1,000 to test, of at least four words, less the
    longest; no English text of theirs is in the train split, not even in other case, marks or numbers (one French text
    in fifty is, as that of another). Raises `TaskError` when the files are absent.
    """
    return bitexts.translation("libreoffice", parts(), VOCABULARY, SOURCE, TARGET)


def baseline(data: Data) -> Baseline:
    """A translation memory: the French of the known English that is nearest."""
    return bitexts.memory(data)


def assess(engines: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """BLEU and chrF of the exported graphs on the test split, by a beam of 4 and greedily."""
    return bitexts.assess(engines, data)


@cache
def parts() -> list[list[tuple[str, str]]]:
    """Pairs of the train, the validation and the test split, in an order drawn once for all."""
    pairs = read(folder())
    long = [k for k, (source, _) in enumerate(pairs) if len(source.split()) >= SCORED]
    drawn = np.random.default_rng(0).permutation(long)
    chosen = [drawn[:VALIDATION], drawn[VALIDATION : VALIDATION + TEST]]
    held = {"", *(plain(pairs[k][0]) for rows in chosen for k in rows)}
    pieces = [piece for pair in pairs if plain(pair[0]) not in held for piece in sentences(*pair)]
    train = [piece for piece in dict.fromkeys(pieces) if plain(piece[0]) not in held and plain(piece[1])]
    return [train, *([pairs[k] for k in rows] for rows in chosen)]


def sentences(source: str, target: str) -> list[tuple[str, str]]:
    """A long pair as the pairs of its sentences, where both have as many; otherwise itself.

    >>> sentences("Draws a line. Press Shift " + "now " * 12 + "to stop.", "Trace une ligne. Appuyez sur Maj.")[0]
    ('Draws a line.', 'Trace une ligne.')
    """
    sources, targets = SENTENCE.split(source), SENTENCE.split(target)
    if len(source.split()) < LONG or len(sources) != len(targets):
        return [(source, target)]
    return list(zip(sources, targets, strict=True))


def folder() -> Path:
    """Where the catalogues are. Raises `TaskError` when they are absent."""
    tried = folders("libreoffice", USUAL)
    found = next((path for path in tried if (path / "sw.mo").is_file()), None)
    if found is None:
        raise TaskError(
            "the strings of LibreOffice come with a package of Debian: `apt-get install libreoffice-l10n-fr`; "
            "or put its .mo files in AIRSERVE_DATA/libreoffice."
        )
    return found


@cache
def read(path: Path) -> list[tuple[str, str]]:
    """English and French, each English once, on one line; the first French where there are several."""
    found: dict[str, str] = {}
    for file in sorted(path.glob("*.mo")):
        try:
            with file.open("rb") as opened:
                catalogue = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
        except (OSError, UnicodeDecodeError, struct.error) as error:
            raise TaskError(f"{file} cannot be read: {str(error)[:80]}; install libreoffice-l10n-fr again.") from None
        for key, french in catalogue.items():
            english = (key[0] if isinstance(key, tuple) else key).partition("\x04")[2] or key
            if isinstance(english, str) and english and french and "\n" not in english + french:
                found.setdefault(" ".join(english.split()), " ".join(french.split()))
    return [(english, french) for english, french in found.items() if plain(english) and plain(french)]
