"""English to French: what LibreOffice says in its menus, dialogs and help, from the package libreoffice-l10n-fr.

Texts are pieces of words, one vocabulary for both languages (byte-pair encoding, Sennrich et al. 2016,
arXiv:1508.07909), learnt from the train split; the tokenizer is in the metadata of every graph.
"""

import gettext
import re
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from airserve.learn.metrics import Metric
from airserve.learn.tasks import Baseline, Data, Split, TaskError, folders
from airserve.learn.transcripts import bleu, chrf
from airserve.learn.translating import Translator
from airserve.model import Array, Engine
from airserve.registry import Registry

USUAL = "/usr/lib/libreoffice/program/resource/fr/LC_MESSAGES"
PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"  # ids 0 to 3
BEGIN_ID, END_ID = 1, 2
VOCABULARY = 1_500
SOURCE, TARGET = 28, 36  # pieces at most; the target's `BEGIN` and `END` included
LONG = 16  # words, from which on texts to learn from are taken apart into sentences
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SCORED = 4  # words that a text of the validation and the test split has at least
VALIDATION, TEST = 500, 1_000
BEAM, LENGTH_POWER = 4, 0.6  # of the translations that are scored


@cache
def load() -> Data:
    """Ids int32 (n, 28) of English, int64 (n, 36) of French with its begin and end, 0 after it.

    Long texts to learn from are taken apart. 500 texts to validate and 1,000 to test, of at least four words, less the
    longest; no text of theirs is in the train split, not even in other case, marks or numbers. Raises `TaskError` when
    the files are absent.
    """
    train, validation, test = parts()
    tokenizer = learnt(train)

    def split(pairs: Sequence[tuple[str, str]]) -> Split:
        sources = ids(tokenizer, [pair[0] for pair in pairs], SOURCE)
        targets = ids(tokenizer, [f"{BEGIN}{pair[1]}{END}" for pair in pairs], TARGET)
        fits = (sources[:, -1] == 0) & (targets[:, -1] == 0)
        return Split(sources[fits].astype(np.int32), targets[fits])

    return Data(
        "libreoffice",
        (),
        split(train),
        split(validation),
        split(test),
        ids=(tokenizer.get_vocab_size(),),
        answer="text",
        symbols=tokenizer.get_vocab_size(),
        metric=Metric("bleu"),
        metadata={"tokenizer": tokenizer.to_str(), "bos_token": BEGIN, "eos_token": END},
    )


def baseline(data: Data) -> Baseline:
    """A translation memory: the French of the train split's English that is nearest by TF-IDF of character n-grams."""
    train, _, test = (texts(data, split) for split in (data.train, data.validation, data.test))
    found = remembered(train, test[0])
    return Baseline(f"translation memory (chrF {chrf(found, test[1]):.1f}), BLEU", bleu(found, test[1]))


def remembered(memory: tuple[list[str], list[str]], sources: Sequence[str]) -> list[str]:
    """For each source the translation of the nearest one in memory."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    known = vectors.fit_transform(memory[0])
    near = (vectors.transform(sources) @ known.T).tocsr()
    return [memory[1][int(row.argmax())] for row in near]


def assess(engines: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """BLEU and chrF of the exported graphs on the test split, by a beam of 4 and greedily."""
    translator = Translator(engines["encoder"], engines["decoder"], BEGIN_ID, END_ID)
    wanted = texts(data, data.test)[1]
    tokenizer = opened(data)
    scores: dict[str, float] = {}
    for name, width in (("", BEAM), ("greedy_", 1)):
        found = tokenizer.decode_batch(translator.translate(data.test.inputs, width, TARGET, LENGTH_POWER))
        scores |= {f"{name}bleu": bleu(found, wanted), f"{name}chrf": chrf(found, wanted)}
    return scores


def texts(data: Data, split: Split) -> tuple[list[str], list[str]]:
    """English and French of a split, as they are after a way through the tokenizer."""
    tokenizer = opened(data)
    return tokenizer.decode_batch(split.inputs.tolist()), tokenizer.decode_batch(split.labels.tolist())


def opened(data: Data):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer

    return Tokenizer.from_str(data.metadata["tokenizer"])


def learnt(pairs: Sequence[tuple[str, str]]):  # type: ignore[no-untyped-def]
    """A tokenizer of both languages."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ModuleNotFoundError:
        raise TaskError("texts are cut into pieces with the package tokenizers: `pip install tokenizers`.") from None
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[PAD, BEGIN, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator([text for pair in pairs for text in pair], trainer)
    return tokenizer


def ids(tokenizer, texts: Sequence[str], length: int) -> Array:  # type: ignore[no-untyped-def]
    """Ids, int64, shape (n, length), 0 after the end of each text."""
    found = np.zeros((len(texts), length), np.int64)
    for row, each in enumerate(tokenizer.encode_batch(texts)):
        found[row, : len(each.ids)] = each.ids[:length]
    return found


@cache
def parts() -> list[list[tuple[str, str]]]:
    """Pairs of the train, the validation and the test split, in an order drawn once for all."""
    pairs = read(folder())
    long = [k for k, (source, _) in enumerate(pairs) if len(source.split()) >= SCORED]
    drawn = np.random.default_rng(0).permutation(long)
    chosen = [drawn[:VALIDATION], drawn[VALIDATION : VALIDATION + TEST]]
    held = {"", *(plain(pairs[k][0]) for rows in chosen for k in rows)}
    pieces = [piece for pair in pairs if plain(pair[0]) not in held for piece in sentences(*pair)]
    train = [piece for piece in dict.fromkeys(pieces) if plain(piece[0]) not in held and plain(piece[1])]
    return [train, *([pairs[k] for k in rows] for rows in chosen)]


def sentences(source: str, target: str) -> list[tuple[str, str]]:
    """A long pair as the pairs of its sentences, where both have as many; otherwise itself.

    >>> sentences("Draws a line. Press Shift " + "now " * 12 + "to stop.", "Trace une ligne. Appuyez sur Maj.")[0]
    ('Draws a line.', 'Trace une ligne.')
    """
    sources, targets = SENTENCE.split(source), SENTENCE.split(target)
    if len(source.split()) < LONG or len(sources) != len(targets):
        return [(source, target)]
    return list(zip(sources, targets, strict=True))


def plain(text: str) -> str:
    """What two texts share that differ in case, marks and numbers alone.

    >>> plain("Insert Row 2..."), plain("Insert row")
    ('insert row', 'insert row')
    """
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def folder() -> Path:
    """Where the catalogues are. Raises `TaskError` when they are absent."""
    tried = folders("libreoffice", USUAL)
    found = next((path for path in tried if (path / "sw.mo").is_file()), None)
    if found is None:
        raise TaskError(
            "the strings of LibreOffice come with a package of Debian: `apt-get install libreoffice-l10n-fr`; "
            "or put its .mo files in AIRSERVE_DATA/libreoffice."
        )
    return found


@cache
def read(path: Path) -> list[tuple[str, str]]:
    """English and French, each English once, on one line; the first French where there are several."""
    found: dict[str, str] = {}
    for file in sorted(path.glob("*.mo")):
        try:
            with file.open("rb") as opened:
                catalogue = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
        except (OSError, UnicodeDecodeError, struct.error) as error:
            raise TaskError(f"{file} cannot be read: {str(error)[:80]}; install libreoffice-l10n-fr again.") from None
        for key, french in catalogue.items():
            english = (key[0] if isinstance(key, tuple) else key).partition("\x04")[2] or key
            if isinstance(english, str) and english and french and "\n" not in english + french:
                found.setdefault(" ".join(english.split()), " ".join(french.split()))
    return [(english, french) for english, french in found.items() if plain(english) and plain(french)]
