"""Translating: an encoder's graph once, a decoder's step graph symbol after symbol; without torch."""

from collections.abc import Sequence
from typing import final

import numpy as np

from airserve.learn.searching import State, beam_search
from airserve.model import Array, Engine, ModelError

AT_ONCE = 50  # texts that are searched together


@final
class Translator:
    """Two graphs as one.

    The encoder takes `input_ids`, int32 (n, length), 0 after the end, and gives `encoder_hidden_states` and, where the
    decoder begins from it, `present.*`. The decoder's step takes `input_ids` (n, 1), `source_ids`,
    `encoder_hidden_states` and what it knows of the symbols before, `past.*`; it gives `logits` (n, 1, symbols) and
    `present.*`. A past that the encoder does not give begins with no symbols: the axis that is free, but for the
    first, has length 0.
    """

    def __init__(self, encoder: Engine, decoder: Engine, begin: int, end: int) -> None:
        self.encoder, self.decoder, self.begin, self.end = encoder, decoder, begin, end
        self.past = [each for each in decoder.signature.inputs if each.name.startswith("past")]
        self.given = [each.name for each in encoder.signature.outputs]
        wanted = {"input_ids", "source_ids", "encoder_hidden_states"}
        if wanted - {each.name for each in decoder.signature.inputs} or self.given[0] != "encoder_hidden_states":
            raise ModelError("these are not the encoder and the decoder of a translator.")

    def translate(
        self, sources: Array, width: int = 4, longest: int = 64, length_power: float = 0.6
    ) -> list[list[int]]:
        """Ids of the translation of each row of ids, by a beam search of this width."""
        found = []
        for at in range(0, len(sources), AT_ONCE):
            rows = sources[at : at + AT_ONCE].astype(np.int32)
            rows = np.ascontiguousarray(rows[:, : max(int((rows != 0).sum(axis=1).max()), 1)])
            found += beam_search(
                self.step,
                [rows, *self.begun(rows)],
                begin=self.begin,
                end=self.end,
                width=width,
                longest=longest,
                length_power=length_power,
            )
        return found

    def begun(self, rows: Array) -> list[Array]:
        """The encoder's states, and the decoder's before any symbol."""
        given = dict(zip(self.given, self.encoder.run([rows]), strict=True))
        state = [given["encoder_hidden_states"]]
        for each in self.past:
            nothing = [len(rows), *(0 if axis < 0 else axis for axis in each.shape[1:])]
            state.append(given.get(each.name.replace("past", "present", 1), np.zeros(nothing, each.dtype)))
        return state

    def step(self, symbols: Array, state: State) -> tuple[Array, Sequence[Array]]:
        """log p of the next symbol of each hypothesis, (h, symbols), and the state after this one."""
        known = {
            "source_ids": state[0],
            "encoder_hidden_states": state[1],
            "input_ids": symbols[:, None].astype(np.int32),
        }
        known |= {each.name: value for each, value in zip(self.past, state[2:], strict=True)}
        inputs = [known[each.name] for each in self.decoder.signature.inputs]
        outputs = dict(
            zip((each.name for each in self.decoder.signature.outputs), self.decoder.run(inputs), strict=True)
        )
        logits = outputs["logits"][:, -1].astype(np.float64)
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        present = [outputs[each.name.replace("past", "present", 1)] for each in self.past]
        return log_p, [state[0], state[1], *present]
