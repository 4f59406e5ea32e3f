"""Verses: modules of SWORD written by hand are read, what splits share, and the published ones where installed."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from airserve.learn.bitexts import plain
from airserve.learn.tasks import TaskError, bible

CANON = {
    "ot": [("Genesis", "Gen", "Gen", [2, 1]), ("Exodus", "Exod", "Exod", [2])],
    "nt": [("Mark", "Mark", "Mark", [2])],
}


def write(folder: Path, module: str, texts: dict[bible.Place, str]) -> None:
    """A module whose books are blocks of zlib; what has no text has size 0."""
    (folder / "mods.d").mkdir(parents=True, exist_ok=True)
    (folder / f"mods.d/{module}.conf").write_text(f"[{module}]\nModDrv=zText\nVersification=Small\n")
    here = folder / f"modules/texts/ztext/{module}"
    here.mkdir(parents=True)
    for testament, books in CANON.items():
        index, places, packed = [(0, 0, 0)] * 2, [], b""
        for block, (_, book, _, chapters) in enumerate(books):
            index.append((block, 0, 0))
            text = b""
            for chapter, many in enumerate(chapters, 1):
                index.append((block, len(text), 0))
                for verse in range(1, many + 1):
                    said = texts.get((book, chapter, verse), "").encode()
                    index.append((block, len(text), len(said)))
                    text += said
            small = zlib.compress(text)
            places.append((len(packed), len(small), len(text)))
            packed += small
        np.array(index, [("block", "<u4"), ("begin", "<u4"), ("size", "<u2")]).tofile(here / f"{testament}.bzv")
        np.array(places, "<u4").tofile(here / f"{testament}.bzs")
        (here / f"{testament}.bzz").write_bytes(packed)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    monkeypatch.setattr(bible, "canon", {"small": CANON}.__getitem__)
    folder = tmp_path / "bible"
    english = {
        ("Gen", 1, 1): '<w lemma="strong:H7225">In the beginning</w>, God<note n="1">or gods</note> made.',
        ("Gen", 2, 1): "<title>A title</title>¶ It was<lb/>finished.",
        ("Exod", 1, 2): "Only in English.",
        ("Mark", 1, 1): "The beginning.",
        ("Mark", 1, 2): "The beginning.",
    }
    spanish = {place: f"Es {place[2]}." for place in english if place[0] != "Exod"}
    write(folder, bible.ENGLISH, english)
    write(folder, bible.SPANISH, spanish)
    return folder


def test_verses_are_read_by_hand(modules: Path) -> None:
    """Notes, titles and marks are no part of a verse; what Spanish lacks, and English that came before, is left."""
    found = bible.verses(modules, bible.ENGLISH)
    assert list(found) == [("Gen", 1, 1), ("Gen", 1, 2), ("Gen", 2, 1), ("Exod", 1, 1), ("Exod", 1, 2), ("Mark", 1, 1),
                           ("Mark", 1, 2)]  # fmt: skip
    assert found["Gen", 1, 1] == "In the beginning, God made."
    assert found["Gen", 1, 2] == ""
    pairs = [("In the beginning, God made.", "Es 1."), ("It was finished.", "Es 1."), ("The beginning.", "Es 1.")]
    assert bible.read(bible.folder()) == pairs


def test_broken_or_absent_modules_are_one_sentence(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / f"modules/texts/ztext/{bible.SPANISH}/ot.bzz").write_bytes(b"nothing")
    with pytest.raises(TaskError, match=f"{bible.SPANISH} in .* cannot be read: .*; install sword-text-web"):
        bible.read(modules)
    (modules / f"mods.d/{bible.ENGLISH}.conf").write_text("Versification=Other")
    with pytest.raises(TaskError, match=f"{bible.ENGLISH} in .* cannot be read"):
        bible.read(modules)
    monkeypatch.setenv("AIRSERVE_DATA", str(modules))
    monkeypatch.setattr(bible, "USUAL", str(modules / "none"))
    with pytest.raises(TaskError, match="apt-get install sword-text-web sword-text-sparv") as caught:
        bible.folder()
    assert "\n" not in str(caught.value)


def test_no_verse_is_in_two_splits(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        (f"Verse {chr(97 + k % 26)}{chr(97 + k // 26)}.", f"Verso {chr(97 + k // 2 % 26)}{chr(97 + k // 52)}.")
        for k in range(200)
    ]
    monkeypatch.setattr(bible, "read", lambda path: pairs)
    monkeypatch.setattr(bible, "VALIDATION", 30)
    monkeypatch.setattr(bible, "TEST", 40)
    bible.parts.cache_clear()
    train, validation, test = bible.parts()
    texts = [{plain(text) for pair in part for text in pair} for part in (train, validation, test)]
    assert len(validation) == 30
    assert 20 < len(test) < 40  # each Spanish text stands beside two English ones
    assert 60 < len(train) < 130
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    bible.parts.cache_clear()


@pytest.mark.skipif(not Path(bible.USUAL, f"mods.d/{bible.SPANISH}.conf").is_file(), reason="the verses are absent")
def test_the_verses_are_the_published_ones() -> None:
    pytest.importorskip("pysword")
    found = bible.verses(Path(bible.USUAL), bible.SPANISH)
    assert len(found) == 31_102  # of the King James Version, whose numbers these are
    assert found["Gen", 1, 1] == "EN el principio crió Dios los cielos y la tierra."
    assert found["John", 11, 35] == "Y lloró Jesús."
