"""How far texts are from what was wanted: edits, BLEU, chrF; over a whole test split, not a mean of its rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from airserve.errors import UserError


def edits(found: Sequence[object], wanted: Sequence[object]) -> int:
    """How few symbols must be put in, left out or replaced to make one of the other. Levenshtein 1966.

    >>> edits("kitten", "sitting"), edits("press one".split(), "press the one".split())
    (3, 1)
    """
    symbols = {symbol: k for k, symbol in enumerate(dict.fromkeys([*found, *wanted]))}
    other = np.array([symbols[symbol] for symbol in wanted], np.int64)
    places = np.arange(len(wanted) + 1)
    row = places.copy()
    for k, symbol in enumerate(found, 1):
        new = row + 1  # left out
        new[1:] = np.minimum(new[1:], row[:-1] + (other != symbols[symbol]))  # replaced, or the same
        new[0] = k
        row = np.minimum.accumulate(new - places) + places  # put in
    return int(row[-1])


def error_rate(found: Sequence[Sequence[object]], wanted: Sequence[Sequence[object]]) -> float:
    """Edits in all texts for each symbol that is wanted: of characters CER, of words WER; it may pass 1.

    >>> error_rate(["ab", "c"], ["abc", "d"])
    0.5
    """
    return sum(map(edits, found, wanted)) / max(sum(map(len, wanted)), 1)


def bleu(found: Sequence[str], wanted: Sequence[str]) -> float:
    """BLEU of sacrebleu, 0 to 100: n-grams of words in common, up to 4. Papineni et al. 2002; Post 2018."""
    return float(_metrics().BLEU().corpus_score(list(found), [list(wanted)]).score)


def chrf(found: Sequence[str], wanted: Sequence[str]) -> float:
    """chrF of sacrebleu, 0 to 100: n-grams of characters in common, up to 6. Popović 2015."""
    return float(_metrics().CHRF().corpus_score(list(found), [list(wanted)]).score)


def _metrics() -> Any:
    try:
        import sacrebleu.metrics
    except ModuleNotFoundError:
        raise UserError("translations are scored with the package sacrebleu: `pip install sacrebleu`.") from None
    return sacrebleu.metrics
