"""Words: what becomes of a text, and what a vocabulary keeps."""

from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.learn.words import encode, tokens, vocabulary


def test_a_vocabulary_keeps_the_commonest() -> None:
    texts = ["the cat the dog", "the cat sat", "a dog"]
    assert vocabulary(texts) == ("<end>", "<unknown>", "the", "cat", "dog")
    assert vocabulary(texts, least=1, most=4) == ("<end>", "<unknown>", "the", "cat")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5), st.integers(1, 10))
def test_ids_are_words_then_zeros(texts: list[str], length: int) -> None:
    words = vocabulary(texts, least=1)
    ids = encode(texts, words, length)
    for text, row in zip(texts, ids.tolist(), strict=True):
        found = tokens(text)[:length]
        assert [words[k] for k in row[: len(found)]] == found
        assert row[len(found) :] == [0] * (length - len(found))
        assert encode([text], ("<end>", "<unknown>"), length)[0, : len(found)].tolist() == [1] * len(found)
