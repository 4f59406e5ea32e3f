"""The next token against brute force and the law of large numbers; text pieces against all of the text at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve.serve.detokenizing import Detokenizer, Stops
from airserve.serve.sampling import FIRST, Sampler, Sampling, nucleus
from airserve.serve.served import EngineFailed

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], "float32")


def softmax(values):
    likely = np.exp(values - values.max())
    return likely / likely.sum()


def frequencies(count=20_000, **sampling):
    """How often a fresh sampler's first token is each."""
    rng = np.random.default_rng(0)
    found = np.zeros(len(LOGITS))
    sampler = Sampler(Sampling(1, seed=1, **sampling))
    sampler._rng = rng
    for _ in range(count):
        sampler._counts.clear()
        found[sampler.choose(LOGITS)] += 1
    return found / count


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.8), (1.5, 0.6)])
def test_tokens_come_as_often_as_they_are_likely(temperature, top_p):
    likely = softmax(LOGITS / temperature)
    kept, mass = np.zeros(len(likely), bool), 0.0
    for token in np.argsort(-likely):
        if mass < top_p:
            kept[token], mass = True, mass + likely[token]
    expected = np.where(kept, likely, 0) / likely[kept].sum()
    # Four standard errors of a frequency.
    np.testing.assert_array_less(
        np.abs(frequencies(temperature=temperature, top_p=top_p) - expected),
        4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-12,
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.999))
def test_the_nucleus_is_the_fewest_that_reach_the_share(values, top_p):
    likely = np.array(values) + 1e-6
    kept = nucleus(likely, top_p)
    wanted = top_p * likely.sum()
    assert likely[kept].sum() >= wanted * (1 - 1e-12)
    assert np.sort(likely)[::-1][: len(kept) - 1].sum() < wanted
    assert sorted(likely[kept]) == sorted(np.sort(likely)[::-1][: len(kept)])


@pytest.mark.parametrize("scale", [0.01, 0.1, 3.0])
def test_the_nucleus_of_many_tokens_is_that_of_all_of_them_sorted(scale):
    likely = np.exp(np.random.default_rng(2).normal(size=20 * FIRST) * scale)
    order = np.argsort(-likely, kind="stable")
    count = int(np.searchsorted(np.cumsum(likely[order]), 0.4 * likely.sum())) + 1
    assert nucleus(likely, 0.4).tolist() == order[:count].tolist()


def test_the_likeliest_token_is_taken_at_temperature_0():
    sampler = Sampler(Sampling(9, temperature=0))
    assert [sampler.choose(LOGITS) for _ in range(3)] == [1, 1, 1]


def test_penalties_are_taken_from_what_was_generated():
    """By hand: presence 1 and frequency .6 take 1.6, then 2.2 from what came once and twice."""
    sampler = Sampler(Sampling(9, temperature=0, presence_penalty=1.0, frequency_penalty=0.6))
    assert [sampler.choose(LOGITS) for _ in range(6)] == [1, 4, 2, 1, 0, 4]
    sampler = Sampler(Sampling(9, temperature=0, presence_penalty=-1.0))
    assert [sampler.choose(LOGITS) for _ in range(3)] == [1, 1, 1]


def test_logits_that_are_no_numbers_are_an_error_and_infinite_ones_are_never_taken():
    with pytest.raises(EngineFailed, match="no numbers"):
        Sampler(Sampling(1)).choose(np.full(4, np.nan))
    sampler = Sampler(Sampling(1, seed=0))
    assert {sampler.choose(np.array([-np.inf, 0.0, -np.inf, 0.0])) for _ in range(50)} == {1, 3}


def decode(tokens):
    return bytes(tokens).decode(errors="replace")


@given(st.text(), st.binary(max_size=6), st.booleans())
def test_pieces_are_the_text_and_hold_no_half_of_a_character(text, noise, broken):
    data = text.encode() + (noise if broken else b"")
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(byte) for byte in data]
    assert "".join(pieces) + detokenizer.end() == data.decode(errors="replace")
    if not broken:
        assert "".join(pieces) in (text, text.rstrip("�"))


@given(st.lists(st.text("ab<|>é", max_size=5), max_size=30), st.lists(st.text("ab<|>é", min_size=1), max_size=4))
def test_text_ends_before_the_first_stop_sequence_wherever_pieces_end(pieces, stops):
    text, guard = "".join(pieces), Stops(stops)
    found = "".join(guard.push(piece) for piece in pieces) + guard.end()
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert found == text
        assert not guard.found
        return
    assert guard.found
    # The stop sequence that is complete first ends it; of several that one piece completes, the one that begins first.
    assert text.startswith(found)
    assert not any(stop in found for stop in stops)
    assert any(text[len(found) :].startswith(stop) for stop in stops)


@given(st.text("ab"), st.text("ab", min_size=1, max_size=4))
def test_nothing_is_held_that_no_stop_sequence_can_begin(text, stop):
    guard, said = Stops([stop]), ""
    for character in text:
        said += guard.push(character)
        if guard.found:
            break
        held = text[len(said) :][: len(guard._held)]
        assert stop.startswith(held)
