"""Tokens to text, piece by piece: no character is cut in two, and nothing is said that a stop sequence takes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

HELD = 8  # tokens that may wait for the rest of a character; the longest has four bytes
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character, or not yet one, decode to


@final
class Detokenizer:
    """The text of tokens as they come. What was given and `end` together are `decode` of all tokens.

    Tokens are decoded beside those before them, for decoders treat the first of a text apart.

    >>> detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode(errors="replace"))
    >>> [detokenizer.push(byte) for byte in "aé".encode()], detokenizer.end()
    (['a', '', 'é'], '')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []  # those that were given last, and those not yet
        self._given = 0

    def push(self, token: int) -> str:
        self._tokens.append(token)
        fresh = self._fresh()
        if fresh.endswith(UNKNOWN) and len(self._tokens) - self._given < HELD:
            return ""
        if fresh:
            self._tokens, self._given = self._tokens[self._given :], len(self._tokens) - self._given
        return fresh

    def end(self) -> str:
        """What is left, with bytes that did not become a character as U+FFFD."""
        fresh = self._fresh()
        self._tokens, self._given = [], 0
        return fresh

    def _fresh(self) -> str:
        before = self._decode(self._tokens[: self._given]) if self._given else ""
        return self._decode(self._tokens)[len(before) :]


@final
class Stops:
    """Text up to the first stop sequence, wherever pieces begin and end.

    >>> stops = Stops(["END"])
    >>> [stops.push(piece) for piece in ("a E", "Nx", " EN", "D b")], stops.found
    (['a ', 'ENx', ' ', ''], True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What can be said now: all but what a stop sequence may begin with."""
        if self.found:
            return ""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.found, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back for a stop sequence that did not come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text that a stop sequence begins with.

    >>> _overlap("abba", "bac")
    2
    """
    return next((k for k in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:k])), 0)
