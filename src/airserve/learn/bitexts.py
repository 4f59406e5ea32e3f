"""Parallel texts as data for translators: pieces of words of both languages, what must be beaten, and how graphs score.

Texts are pieces of words, one vocabulary for both languages (byte-pair encoding, Sennrich et al. 2016,
arXiv:1508.07909), learnt from the train split; the tokenizer is in the metadata of every graph.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from airserve.learn.metrics import Metric
from airserve.learn.tasks import Baseline, Data, Split, TaskError
from airserve.learn.transcripts import bleu, chrf
from airserve.learn.translating import Translator
from airserve.model import Array, Engine

Pairs = Sequence[tuple[str, str]]  # a text and its translation

PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"  # ids 0 to 3
BEGIN_ID, END_ID = 1, 2
BEAM, LENGTH_POWER = 4, 0.6  # of the translations that are scored


def translation(short: str, parts: Sequence[Pairs], pieces: int, source: int, target: int) -> Data:
    """Ids int32 (n, source), and int64 (n, target) with `BEGIN` and `END`, 0 after them; longer texts are left out.

    `parts` are pairs of the train, the validation and the test split; `pieces` is the size of the vocabulary.
    """
    tokenizer = learnt(parts[0], pieces)

    def split(pairs: Pairs) -> Split:
        sources = ids(tokenizer, [pair[0] for pair in pairs], source)
        targets = ids(tokenizer, [f"{BEGIN}{pair[1]}{END}" for pair in pairs], target)
        fits = (sources[:, -1] == 0) & (targets[:, -1] == 0)
        return Split(sources[fits].astype(np.int32), targets[fits])

    train, validation, test = map(split, parts)
    return Data(
        short,
        (),
        train,
        validation,
        test,
        ids=(tokenizer.get_vocab_size(),),
        answer="text",
        symbols=tokenizer.get_vocab_size(),
        metric=Metric("bleu"),
        metadata={"tokenizer": tokenizer.to_str(), "bos_token": BEGIN, "eos_token": END},
    )


def memory(data: Data) -> Baseline:
    """A translation memory: the translation of the train split's text nearest by TF-IDF of character n-grams."""
    known, asked = texts(data, data.train), texts(data, data.test)
    found = remembered(known, asked[0])
    return Baseline(f"translation memory (chrF {chrf(found, asked[1]):.1f}), BLEU", bleu(found, asked[1]))


def remembered(known: tuple[list[str], list[str]], sources: Sequence[str]) -> list[str]:
    """For each source the translation of the nearest one that is known."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    rows = vectors.fit_transform(known[0])
    near = (vectors.transform(sources) @ rows.T).tocsr()
    return [known[1][int(row.argmax())] for row in near]


def assess(engines: Mapping[str, Engine], data: Data) -> dict[str, float]:
    """BLEU and chrF of the exported graphs on the test split, by a beam of 4 and greedily."""
    translator = Translator(engines["encoder"], engines["decoder"], BEGIN_ID, END_ID)
    wanted, longest = texts(data, data.test)[1], data.test.labels.shape[1]
    tokenizer = opened(data)
    scores: dict[str, float] = {}
    for name, width in (("", BEAM), ("greedy_", 1)):
        found = tokenizer.decode_batch(translator.translate(data.test.inputs, width, longest, LENGTH_POWER))
        scores |= {f"{name}bleu": bleu(found, wanted), f"{name}chrf": chrf(found, wanted)}
    return scores


def texts(data: Data, split: Split) -> tuple[list[str], list[str]]:
    """Sources and targets of a split, as they are after a way through the tokenizer."""
    tokenizer = opened(data)
    return tokenizer.decode_batch(split.inputs.tolist()), tokenizer.decode_batch(split.labels.tolist())


def opened(data: Data):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer

    return Tokenizer.from_str(data.metadata["tokenizer"])


def learnt(pairs: Pairs, pieces: int):  # type: ignore[no-untyped-def]
    """A tokenizer of both languages."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ModuleNotFoundError:
        raise TaskError("texts are cut into pieces with the package tokenizers: `pip install tokenizers`.") from None
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=pieces, special_tokens=[PAD, BEGIN, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator([text for pair in pairs for text in pair], trainer)
    return tokenizer


def ids(tokenizer, texts: Sequence[str], length: int) -> Array:  # type: ignore[no-untyped-def]
    """Ids, int64, shape (n, length), 0 after the end of each text."""
    found = np.zeros((len(texts), length), np.int64)
    for row, each in enumerate(tokenizer.encode_batch(texts)):
        found[row, : len(each.ids)] = each.ids[:length]
    return found


def plain(text: str) -> str:
    """What two texts share that differ in case, marks and numbers alone.

    >>> plain("Insert Row 2..."), plain("Insert row")
    ('insert row', 'insert row')
    """
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))
