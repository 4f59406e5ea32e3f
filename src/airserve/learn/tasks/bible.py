"""English to Spanish: verses of the World English Bible and of Reina-Valera 1909, both in the public domain, from the
packages sword-text-web and sword-text-sparv."""

import re
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from airserve.learn import bitexts
from airserve.learn.bitexts import plain
from airserve.learn.tasks import Baseline, Data, TaskError, folders
from airserve.model import Engine
from airserve.registry import Registry

USUAL = "/usr/share/sword"
ENGLISH, SPANISH = "engWEB2015eb", "spaRV1909eb"
VOCABULARY = 2_000
SOURCE, TARGET = 40, 42  # pieces at most; the target's `BEGIN` and `END` included
VALIDATION, TEST = 500, 1_000
LINES = re.compile(r"</?(?:l|lb|lg|p|div|milestone|chapter)\b[^>]*>|¶")  # where words may touch that are two
ASIDE = re.compile(r"(?s)<(note|title)\b.*?</\1>|<[^>]*>")  # what is not the verse itself

Place = tuple[str, int, int]  # book as OSIS calls it, chapter, verse


@cache
def load() -> Data:
    """Ids int32 (n, 40) of English, int64 (n, 42) of Spanish with its begin and end, 0 after it.

    500 verses to validate and 1,000 to test, less the longest; no split has a text of another's, not even in other
    case, marks or numbers. Raises `TaskError` when the files are absent.
    """
    return bitexts.translation("bible", parts(), VOCABULARY, SOURCE, TARGET)


def baseline(data: Data) -> Baseline:
    """A translation memory: the Spanish of the known verse that is nearest."""
    return bitexts.memory(data)


def assess(engines: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """BLEU and chrF of the exported graphs on the test split, by a beam of 4 and greedily."""
    return bitexts.assess(engines, data)


@cache
def parts() -> list[list[tuple[str, str]]]:
    """Pairs of the train, the validation and the test split, in an order drawn once for all."""
    pairs = read(folder())
    drawn = np.random.default_rng(0).permutation(len(pairs))
    validation, test, train = ([pairs[k] for k in rows] for rows in np.split(drawn, [VALIDATION, VALIDATION + TEST]))
    test = apart(test, validation)
    return [apart(train, validation + test), validation, test]


def apart(pairs: list[tuple[str, str]], held: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that share no text with what is held.

    >>> apart([("Amen.", "Amen."), ("He said.", "Dijo.")], [("amen", "así sea")])
    [('He said.', 'Dijo.')]
    """
    known = {plain(text) for pair in held for text in pair}
    return [pair for pair in pairs if not {plain(text) for text in pair} & known]


def read(path: Path) -> list[tuple[str, str]]:
    """English and Spanish of each verse that both have, each English once, in the order of the books."""
    english, spanish = (verses(path, module) for module in (ENGLISH, SPANISH))
    found: dict[str, str] = {}
    for place, text in english.items():
        if plain(text) and plain(spanish.get(place, "")):
            found.setdefault(text, spanish[place])
    return list(found.items())


def verses(path: Path, module: str) -> dict[Place, str]:
    """The verses of a module of SWORD (zText: a book is a block of zlib, and each verse a part of its block).

    The index begins with a heading of the module and of the testament, a book with one, a chapter with one. Raises
    `TaskError` for files that are broken.
    """
    found: dict[Place, str] = {}
    try:
        numbering = re.search(r"(?m)^Versification=(\S+)", (path / f"mods.d/{module}.conf").read_text())
        books = canon(numbering[1].lower() if numbering else "kjv")
        for testament in ("ot", "nt"):
            stem = str(path / f"modules/texts/ztext/{module}" / testament)
            index = np.fromfile(f"{stem}.bzv", [("block", "<u4"), ("begin", "<u4"), ("size", "<u2")])
            places, packed = np.fromfile(f"{stem}.bzs", "<u4").reshape(-1, 3), Path(f"{stem}.bzz").read_bytes()
            blocks = [zlib.decompress(packed[begin : begin + size]) for begin, size, _ in places]
            at = 2
            for _, book, _, chapters in books[testament]:
                at += 1
                for chapter, many in enumerate(chapters, 1):
                    at += 1
                    for verse, (block, begin, size) in enumerate(index[at : at + many].tolist(), 1):
                        text = blocks[block][begin : begin + size].decode() if size else ""
                        found[book, chapter, verse] = " ".join(ASIDE.sub("", LINES.sub(" ", text)).split())
                    at += many
    except (OSError, ValueError, KeyError, IndexError, zlib.error) as error:
        raise TaskError(
            f"{module} in {path} cannot be read: {' '.join(str(error).split())[:80]}; install sword-text-web and "
            "sword-text-sparv again."
        ) from None
    return found


def canon(numbering: str) -> Mapping[str, Any]:
    """Books by testament, each with its chapters' lengths, as a way of numbering has them: a table of pysword."""
    try:
        from pysword.canons import canons
    except ModuleNotFoundError:
        raise TaskError("how verses are numbered is in the package pysword: `pip install pysword`.") from None
    books: Mapping[str, Any] = canons[numbering]
    return books


def folder() -> Path:
    """Where the modules are. Raises `TaskError` when they are absent."""
    tried = folders("bible", USUAL)
    wanted = [f"mods.d/{module}.conf" for module in (ENGLISH, SPANISH)]
    found = next((path for path in tried if all((path / file).is_file() for file in wanted)), None)
    if found is None:
        raise TaskError(
            "the verses come with packages of Debian: `apt-get install sword-text-web sword-text-sparv`; or put what "
            "they have in usr/share/sword in AIRSERVE_DATA/bible."
        )
    return found
