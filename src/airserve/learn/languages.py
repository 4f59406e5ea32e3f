"""Language modelling: texts as tokens, what says them in fewest bits, and how long a text is in a net's bits.

Bits per byte is the score, so that tokens of any size, n-grams and a file compressor stand beside each other. The end
of a document counts as one byte and one token.
"""

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np

from airserve.learn.metrics import Metric
from airserve.learn.ngrams import kneser_ney
from airserve.learn.tasks import Baseline, Data, Split, TaskError
from airserve.model import Array, Engine

END = "<|endoftext|>"
TOKENS = 2048  # of the tokenizer
LENGTH = 128  # tokens that a net is trained to look back on
BITS_PER_BYTE = Metric("bits_per_byte", less_is_better=True)


@final
@dataclass(frozen=True)
class Corpus:
    """Documents of three splits, and tokens as the train split suggests them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    tokens: int = TOKENS

    @cached_property
    def tokenizer(self) -> Any:
        """Byte-pair encoding over bytes. Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019, section 2.2."""
        try:
            from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        except ModuleNotFoundError:
            raise TaskError(
                "texts are cut into tokens with the package tokenizers: `pip install tokenizers`."
            ) from None
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=self.tokens, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
        )
        made.train_from_iterator((line for text in self.train for line in text.splitlines(True)), trainer)
        return made

    def stream(self, texts: Sequence[str]) -> Array:
        """Tokens of documents, int64, each with its end (0)."""
        return np.concatenate([[*each.ids, 0] for each in self.tokenizer.encode_batch(list(texts))]).astype(np.int64)

    def data(self, short: str, length: int = LENGTH) -> Data:
        """Windows of the stream and, as labels, the same a token later. The tokenizer goes into the exported file."""

        def split(texts: Sequence[str]) -> Split:
            ids = self.stream(texts)
            rows = (len(ids) - 1) // length
            shape = rows, length
            return Split(
                ids[: rows * length].reshape(shape).astype(np.int32), ids[1 : rows * length + 1].reshape(shape)
            )

        many = self.tokenizer.get_vocab_size()
        return Data(
            short,
            (),
            split(self.train),
            split(self.validation),
            split(self.test),
            ids=(many,),
            metric=BITS_PER_BYTE,
            answer="continuation",
            symbols=many,
            metadata={"tokenizer": self.tokenizer.to_str(), "eos_token": END, "bos_token": END},
        )

    def baselines(self) -> list[Baseline]:
        """What says the test split in how many bits a byte, the best first; all have seen the train split.

        xz also without it: then it has nothing to go by but the text itself.
        """
        known, asked = (b"".join(text.encode() + b"\0" for text in texts) for texts in (self.train, self.test))
        alone, before, after = (len(lzma.compress(part, preset=9)) for part in (asked, known, known + asked))
        small, small_asked = (np.frombuffer(part, np.uint8) for part in (known, asked))
        large, large_asked, many = self.stream(self.train), self.stream(self.test), self.tokenizer.get_vocab_size()
        bits = {
            "interpolated 5-gram of the same tokens": kneser_ney(large, large_asked, many).sum(),
            "interpolated 5-gram of bytes": kneser_ney(small, small_asked, 256).sum(),
        }
        found = [Baseline(name, float(nats / np.log(2) / len(asked))) for name, nats in bits.items()]
        found.append(Baseline("xz -9 after the train split", 8 * (after - before) / len(asked)))
        found.append(Baseline("xz -9 alone", 8 * alone / len(asked)))
        return sorted(found, key=lambda each: each.score)

    def assess(self, step: Engine, length: int = LENGTH) -> dict[str, float]:
        """Bits per byte of the test split by an exported decoder, each token after at least half a window of others.

        `perplexity` is of its tokens.
        """
        ids = np.concatenate([[0], self.stream(self.test)])  # the first is told to begin
        nats = float(told(step, ids, length).sum())
        size = sum(len(text.encode()) + 1 for text in self.test)
        return {BITS_PER_BYTE.name: nats / np.log(2) / size, "perplexity": float(np.exp(nats / (len(ids) - 1)))}


def told(step: Engine, ids: Array, length: int) -> Array:
    """Nats to say each token but the first, shape (n - 1,), by windows that overlap by half, without a past."""
    half = length // 2
    nats = []
    for at in range(0, len(ids) - 1, half):
        window = ids[max(0, at - half) : at + half + 1]
        logits = step.run(first_step(step, window[None, :-1]))[0][0]
        logits = logits - logits.max(-1, keepdims=True)
        new = window[-min(half, len(ids) - 1 - at) :]
        last = logits[-len(new) :].astype(np.float64)
        nats.append(np.log(np.exp(last).sum(-1)) - last[np.arange(len(new)), new])
    return np.concatenate(nats)


def first_step(step: Engine, ids: Array) -> list[Array]:
    """The inputs of a decoder for texts from their beginning, ids (n, length): nothing is past."""
    _, _, _, *past = step.signature.inputs
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    empty = [np.zeros((len(ids), each.shape[1], 0, each.shape[3]), np.float32) for each in past]
    return [np.ascontiguousarray(each, np.int64) for each in (ids, np.ones_like(ids), places)] + empty
