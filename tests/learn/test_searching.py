"""Beam searches against all texts and all alignments, on cases small enough to list."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve.learn.searching import beam_search, ctc_beam_search, ctc_greedy

BEGIN, END, SYMBOLS, LONGEST = 0, 1, 4, 4


def chain(seed: int) -> np.ndarray:
    """log p of a symbol by the two before it: a language whose best beginning need not begin the best text."""
    logits = 2 * np.random.default_rng(seed).normal(size=(SYMBOLS, SYMBOLS, SYMBOLS))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def step(tokens: np.ndarray, state: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """State: which language, and the symbol before the last."""
    languages = np.stack([chain(int(seed)) for seed in state[0]])
    return languages[np.arange(len(tokens)), state[1], tokens], [state[0], tokens]


def likelihood(seed: int, text: tuple[int, ...]) -> float:
    language, before, last, total = chain(seed), BEGIN, BEGIN, 0.0
    for symbol in text:
        total += language[before, last, symbol]
        before, last = last, symbol
    return total


def everything() -> list[tuple[int, ...]]:
    """All texts: those that end, and those of full length that do not."""
    inner = [s for s in range(SYMBOLS) if s != END]
    ended = [(*text, END) for n in range(LONGEST) for text in itertools.product(inner, repeat=n)]
    return ended + list(itertools.product(inner, repeat=LONGEST))


def search(seeds: list[int], width: int, power: float = 0.0) -> list[list[int]]:
    state = [np.array(seeds), np.full(len(seeds), BEGIN)]
    return beam_search(step, state, begin=BEGIN, end=END, width=width, longest=LONGEST, length_power=power)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(power: float) -> None:
    seeds = list(range(8))
    found = search(seeds, SYMBOLS**LONGEST, power)
    for seed, text in zip(seeds, found, strict=True):
        best = max(everything(), key=lambda each: likelihood(seed, each) / len(each) ** power)
        assert text == [symbol for symbol in best if symbol != END]


def test_a_beam_of_one_is_greedy_and_rows_do_not_disturb_each_other() -> None:
    found = search(list(range(20)), 1)
    for seed in range(20):
        greedy, before, last = [], BEGIN, BEGIN
        while len(greedy) < LONGEST and last != END:
            before, last = last, int(chain(seed)[before, last].argmax())
            greedy.append(last)
        assert found[seed] == [symbol for symbol in greedy if symbol != END]
    assert search(list(range(20)), 3) == [search([seed], 3)[0] for seed in range(20)]


def test_a_wider_beam_finds_what_a_greedy_one_misses() -> None:
    """Symbol 2 is likelier at first, but 3 is surely followed by the end."""
    table = np.full((SYMBOLS, SYMBOLS), 1e-9)
    table[BEGIN, 2], table[BEGIN, 3] = 0.6, 0.4
    table[2] = 0.25
    table[3, END] = 1.0

    def steps(tokens: np.ndarray, state: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        return np.log(table[tokens]), state

    kwargs = {"begin": BEGIN, "end": END, "longest": LONGEST}
    assert beam_search(steps, [np.zeros(1)], width=1, **kwargs)[0][0] == 2
    assert beam_search(steps, [np.zeros(1)], width=2, **kwargs) == [[3]]


def collapsed(alignment: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(alignment) if symbol)


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.1, 4))
def test_ctc_beam_search_sums_over_alignments(seed: int, frames: int, spread: float) -> None:
    logits = spread * np.random.default_rng(seed).normal(size=(frames, 3))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    totals: dict[tuple[int, ...], float] = {}
    best, greedy = -np.inf, ()
    for alignment in itertools.product(range(3), repeat=frames):
        each = sum(log_p[t, symbol] for t, symbol in enumerate(alignment))
        totals[collapsed(alignment)] = totals.get(collapsed(alignment), 0.0) + np.exp(each)
        best, greedy = max((best, greedy), (each, collapsed(alignment)))
    found = tuple(ctc_beam_search(log_p, 3**frames))
    assert totals[found] == pytest.approx(max(totals.values()), rel=1e-9)
    assert tuple(ctc_greedy(log_p)) == greedy


def test_ctc_beam_search_finds_what_the_best_alignment_misses() -> None:
    """Blank, blank is the likeliest alignment, .36; but "a" has three, .64 together. Graves 2006, figure 2's point."""
    log_p = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert ctc_greedy(log_p) == []
    assert ctc_beam_search(log_p, 4) == [1]
