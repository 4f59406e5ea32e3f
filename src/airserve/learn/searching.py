"""Searching: the likeliest text, symbol after symbol from a decoder, or among all alignments of CTC's frames."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from airserve.model import Array

State = Sequence[Array]  # first axis: hypotheses
Step = Callable[[Array, State], tuple[Array, State]]  # last symbols (h,), state -> log p (h, symbols), state


def beam_search(
    step: Step, state: State, *, begin: int, end: int, width: int, longest: int, length_power: float = 0.0
) -> list[list[int]]:
    """The best text that was found for each row of the state, without `begin` and `end`; greedy with a width of 1.

    The `width` likeliest beginnings of each row go on together (Sutskever et al. 2014, arXiv:1409.3215); one that has
    ended stays among them as it is. The best has the largest log p / symbols ** length_power (Wu et al. 2016,
    arXiv:1609.08144, equation 14 without its constant): 0 compares likelihoods, 1 likelihoods a symbol.
    """
    rows = len(state[0])
    state = [np.repeat(each, width, axis=0) for each in state]
    texts = np.full((rows, width, 1), begin, np.int64)
    scores = np.full((rows, width), -np.inf)
    scores[:, 0] = 0.0  # all hypotheses are the same at first
    lengths = np.zeros((rows, width))
    for _ in range(longest):
        ended = texts[..., -1] == end
        if ended.all():
            break
        log_p, state = step(texts[..., -1].ravel(), state)
        log_p = log_p.reshape(rows, width, -1).astype(np.float64)
        log_p[ended] = -np.inf
        log_p[ended, end] = 0.0
        total = (scores[..., None] + log_p).reshape(rows, -1)
        best = np.argsort(-total, axis=1, kind="stable")[:, :width]
        parents, symbols = np.divmod(best, log_p.shape[-1])
        scores = np.take_along_axis(total, best, axis=1)
        lengths = np.take_along_axis(lengths + ~ended, parents, axis=1)
        texts = np.concatenate([np.take_along_axis(texts, parents[..., None], axis=1), symbols[..., None]], axis=2)
        flat = (parents + width * np.arange(rows)[:, None]).ravel()
        state = [each[flat] for each in state]
    chosen = (scores / np.maximum(lengths, 1) ** length_power).argmax(axis=1)
    found = texts[np.arange(rows), chosen, 1:]
    return [row[: row.index(end)] if end in row else row for row in found.tolist()]


def ctc_greedy(logits: Array, blank: int = 0) -> list[int]:
    """The text of the likeliest alignment: repeats are one, blanks are nothing. Graves et al. 2006, section 3.2.

    >>> ctc_greedy(np.eye(3)[[1, 1, 0, 1, 2, 2]])
    [1, 1, 2]
    """
    best = logits.argmax(axis=-1)
    new = np.concatenate([[True], best[1:] != best[:-1]])
    return [int(symbol) for symbol in best[new & (best != blank)]]


def ctc_beam_search(log_p: Array, width: int, blank: int = 0) -> list[int]:
    """The text whose alignments together are likeliest, among the `width` likeliest prefixes at each frame.

    log p is (frames, symbols). Graves 2012, "Sequence transduction", as Hannun et al. 2014, arXiv:1408.2873, write it
    for CTC: of each prefix its alignments that end in a blank and those that do not are summed apart.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}  # prefix: log p ending in blank, in none
    for frame in log_p.astype(np.float64):
        grown: dict[tuple[int, ...], tuple[float, float]] = defaultdict(lambda: (-np.inf, -np.inf))
        likely = [int(symbol) for symbol in np.argsort(-frame)[: width + 1] if symbol != blank]
        for prefix, (blanked, voiced) in beams.items():
            both = np.logaddexp(blanked, voiced)
            grown[prefix] = (np.logaddexp(grown[prefix][0], both + frame[blank]), grown[prefix][1])
            for symbol in {*likely, *prefix[-1:]}:
                longer, before = (*prefix, symbol), both
                if prefix[-1:] == (symbol,):  # the same again: one symbol, unless a blank stood between
                    grown[prefix] = (grown[prefix][0], np.logaddexp(grown[prefix][1], voiced + frame[symbol]))
                    before = blanked
                grown[longer] = (grown[longer][0], np.logaddexp(grown[longer][1], before + frame[symbol]))
        beams = dict(sorted(grown.items(), key=lambda item: -np.logaddexp(*item[1]))[:width])
    return list(max(beams.items(), key=lambda item: np.logaddexp(*item[1]))[0])
