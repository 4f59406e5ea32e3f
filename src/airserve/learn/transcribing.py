"""Transcribing: a wave to a text, by the graph of a net that was trained with CTC; without torch."""

from typing import final

import numpy as np

from airserve.learn.searching import ctc_beam_search, ctc_greedy
from airserve.model import Array, Engine


@final
class Transcriber:
    """A graph that gives logits (n, frames, symbols) of waves (n, samples), and what its symbols stand for.

    Symbol 0 is CTC's blank, symbol k the k-th of `characters`, which the graph's metadata hold.
    """

    def __init__(self, engine: Engine, characters: str) -> None:
        self.engine, self.characters = engine, characters

    def transcribe(self, wave: Array, width: int = 16) -> str:
        """What is said in a wave (samples,): the likeliest text of a beam of this width, of 1 greedily."""
        logits = self.engine.run([np.ascontiguousarray(wave)[None]])[0][0].astype(np.float64)
        if width == 1:
            found = ctc_greedy(logits)
        else:
            log_p = logits - logits.max(axis=1, keepdims=True)
            found = ctc_beam_search(log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True)), width)
        return "".join(self.characters[symbol - 1] for symbol in found)
