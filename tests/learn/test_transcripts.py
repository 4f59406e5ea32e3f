"""Edits against the definition; BLEU and chrF against what they must be."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve.learn.transcripts import bleu, chrf, edits, error_rate

texts = st.text("abc", max_size=6)


def by_definition(one: str, other: str) -> int:
    @cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        replaced = distance(a[1:], b[1:]) + (a[0] != b[0])
        return min(replaced, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    return distance(one, other)


@given(texts, texts)
def test_edits_are_by_the_definition(one: str, other: str) -> None:
    assert edits(one, other) == by_definition(one, other) == edits(other, one)


def test_error_rates_are_of_all_texts_together() -> None:
    assert error_rate(["a", ""], ["abc", "d"]) == pytest.approx(3 / 4)
    assert error_rate(["abcdef"], ["a"]) == 5
    assert error_rate([["press", "two"]], [["press", "one"]]) == 0.5


def test_bleu_and_chrf() -> None:
    pytest.importorskip("sacrebleu")
    wanted = ["Ouvre la boîte de dialogue Options.", "Enregistre le document en cours."]
    assert bleu(wanted, wanted) == pytest.approx(100)
    assert chrf(wanted, wanted) == pytest.approx(100)
    # by hand: 4 words of 5 in order, then another: p = 4/5, 3/4, 2/3, 1/2, no penalty for brevity
    assert bleu(["a b c d x"], ["a b c d e"]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu(["x"], ["a b c d"]) < 1
    assert 0 < chrf(["Ouvre la boîte"], wanted[:1]) < 100
