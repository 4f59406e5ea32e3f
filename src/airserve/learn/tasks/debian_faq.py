"""Answer questions by finding the answer: the Debian FAQ, 146 sections, of the package debian-faq. No training.

A question is the title of a section, without its number; among the texts of all sections its own is to be found.
"""

import html
import re
from pathlib import Path

import numpy as np

from airserve.learn.answering import Questions
from airserve.learn.tasks import TaskError, folders

USUAL = "/usr/share/doc/debian/FAQ"
TITLE = re.compile(r'<h[23][^>]*><a id="[^"]*"></a>(.*?)</h[23]>', re.DOTALL)
INLINE = re.compile(r"</?(?:a|acronym|code|em|span|strong|tt)\b[^>]*>")
NUMBER = re.compile(r"^[\d.]+\s*")


def questions() -> Questions:
    """All sections whose title asks something. Raises `TaskError` when the files are absent."""
    sections = read(folder())
    asked = [k for k, (title, _) in enumerate(sections) if "?" in title]
    return Questions(
        tuple(sections[k][0] for k in asked), tuple(text for _, text in sections), np.array(asked, np.int64)[:, None]
    )


def folder() -> Path:
    """Where the pages are. Raises `TaskError` when they are absent."""
    found = next((path for path in folders("debian-faq", USUAL) if any(path.glob("*.en.html"))), None)
    if found is None:
        raise TaskError(
            "the questions come with a package of Debian: `apt-get install debian-faq`; or put its pages in "
            "AIRSERVE_DATA/debian-faq."
        )
    return found


def read(path: Path) -> list[tuple[str, str]]:
    """Titles and texts of the sections of all pages; a section ends where the next one begins."""
    sections = []
    for file in sorted(path.glob("*.en.html")):
        parts = TITLE.split(file.read_text(encoding="utf-8", errors="replace"))
        sections += [
            (NUMBER.sub("", plain(title)), plain(text)) for title, text in zip(parts[1::2], parts[2::2], strict=True)
        ]
    if not sections:
        raise TaskError(f"the pages in {path} have no sections; install debian-faq again.")
    return sections


def plain(marked: str) -> str:
    """A piece of HTML as text on one line.

    >>> plain("How do I <code>dpkg&nbsp;-i</code><br/> it?")
    'How do I dpkg -i it?'
    """
    joined = re.sub(r"<[^>]*>", " ", INLINE.sub("", marked))
    return " ".join(html.unescape(joined).split())
