"""Translation: graphs step by step against the net, what splits share, and a training from end to end on few texts."""

import gettext
from pathlib import Path

import numpy as np
import pytest
import torch

from airserve.catalog import nets
from airserve.learn import bitexts
from airserve.learn.exporting import export_all
from airserve.learn.nets import Form
from airserve.learn.tasks import TaskError, libreoffice
from airserve.learn.training import train
from airserve.learn.translating import Translator
from airserve.model import Engine, ModelError
from airserve.registry import Registry

NETS = ["seq2seq", "seq2seq-transformer"]
FORM = Form((9,), 30, ids=(30,))
BEGIN, END = 1, 2


def sources() -> np.ndarray:
    """Texts of 9, 4, 1 and 6 symbols."""
    rows = np.random.default_rng(0).integers(3, 30, (4, 9)).astype(np.int32)
    return np.where(np.arange(9) < np.array([[9], [4], [1], [6]]), rows, 0).astype(np.int32)


def made(name: str) -> tuple[torch.nn.Module, Translator]:
    torch.manual_seed(0)
    net = nets[name].build(nets[name].Config(width=16), FORM).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # far from even, so that translations differ
    graphs = export_all(net, None, None, sources(), "", True, {})
    return net, Translator(Engine(graphs["encoder"]), Engine(graphs["decoder"]), BEGIN, END)


@pytest.mark.parametrize("name", NETS)
def test_steps_with_a_state_are_the_net_without(name: str) -> None:
    net, translator = made(name)
    targets = np.random.default_rng(1).integers(3, 30, (4, 7))
    targets[:, 0] = BEGIN
    with torch.no_grad():
        wanted = net.logits(net(torch.tensor(sources()), torch.tensor(targets))).log_softmax(-1).numpy()
    state = [sources(), *translator.begun(sources())]
    for k in range(7):
        found, state = translator.step(targets[:, k], state)
        np.testing.assert_allclose(found, wanted[:, k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_what_follows_the_end_and_who_is_beside_change_nothing(name: str) -> None:
    _, translator = made(name)
    together = translator.translate(sources(), 3, 8)
    assert together == [translator.translate(row[None], 3, 8)[0] for row in sources()]
    assert together == translator.translate(np.pad(sources(), ((0, 0), (0, 5))), 3, 8)
    assert len({tuple(each) for each in together}) > 1


@pytest.mark.parametrize("name", NETS)
def test_greedy_translation_is_argmax_after_argmax(name: str) -> None:
    net, translator = made(name)
    found = translator.translate(sources(), 1, 8)
    for row, text in zip(sources(), found, strict=True):
        ids, told = torch.tensor(row[row != 0])[None], [BEGIN]
        while len(told) < 9 and told[-1] != END:
            with torch.no_grad():
                told.append(int(net.logits(net(ids, torch.tensor([told])))[0, -1].argmax()))
        assert text == [symbol for symbol in told[1:] if symbol != END]


@pytest.mark.parametrize("name", NETS)
def test_parts_of_like_length_lose_what_the_batch_loses_as_it_is(name: str) -> None:
    """Texts of 1 to 9 symbols, targets of 1 to 12: the mean over symbols, one row after another at its full length."""
    torch.manual_seed(0)
    net = nets[name].build(nets[name].Config(width=16), FORM).eval()
    rows = [torch.randint(3, 30, (11, most)) for most in (9, 13)]
    ends = [torch.randint(1, 10, (11, 1)), torch.randint(2, 14, (11, 1))]
    inputs, labels = (each.where(torch.arange(each.shape[1]) < end, 0) for each, end in zip(rows, ends, strict=True))
    labels[:, 0] = BEGIN
    total = 0.0
    with torch.no_grad():
        for source, target in zip(inputs[:, None], labels[:, None], strict=True):
            log_p = net.logits(net(source, target[:, :-1])).log_softmax(-1)[0]
            total -= sum(float(log_p[k, symbol]) for k, symbol in enumerate(target[0, 1:]) if symbol)
        assert net.objective(inputs, labels).item() == pytest.approx(total / int((labels[:, 1:] != 0).sum()), rel=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_a_net_learns_to_copy(name: str) -> None:
    torch.manual_seed(0)
    net = nets[name].build(nets[name].Config(width=16, dropout=0.01), FORM)
    rule = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(14):
        ids = torch.randint(3, 30, (32, 3))
        edge = torch.ones(32, 1, dtype=torch.int64)
        loss = net.objective(ids.int(), torch.cat([BEGIN * edge, ids, END * edge], 1))
        rule.zero_grad()
        loss.backward()
        rule.step()
    assert loss.item() < 0.9 * np.log(30)  # what is known of a symbol drawn from 30


def test_graphs_of_something_else_are_refused() -> None:
    _, translator = made("seq2seq")
    with pytest.raises(ModelError, match="not the encoder and the decoder"):
        Translator(translator.decoder, translator.encoder, BEGIN, END)


WORDS = {"open": "ouvrir", "the": "le", "file": "fichier", "save": "enregistrer", "close": "fermer", "red": "rouge",
         "new": "nouveau", "a": "un", "table": "tableau", "row": "ligne"}  # fmt: skip


@pytest.fixture
def catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """300 pairs of made texts as a compiled catalogue of gettext, one with a context, one with a plural."""
    rng = np.random.default_rng(0)
    texts = {" ".join(rng.choice(list(WORDS), rng.integers(2, 7))) for _ in range(300)}
    pairs = {english: " ".join(WORDS[word] for word in english.split()) for english in sorted(texts)}
    keys = {f"menu\x04{key}" if k == 0 else key: value for k, (key, value) in enumerate(pairs.items())}
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **keys}.items())
    names, values = ([part.encode() for part in parts] for parts in zip(*entries, strict=True))
    at, tables = 28 + 16 * len(entries), []
    for column in (names, values):
        for text in column:
            tables.append((len(text), at))
            at += len(text) + 1
    head = np.array([0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0], "<u4").tobytes()
    folder = tmp_path / "data" / "libreoffice"
    folder.mkdir(parents=True)
    body = b"".join(text + b"\0" for text in (*names, *values))
    (folder / "sw.mo").write_bytes(head + np.array(tables, "<u4").tobytes() + body)
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path / "data"))
    for cached in (libreoffice.load, libreoffice.parts, libreoffice.read):
        cached.cache_clear()
    yield folder
    for cached in (libreoffice.load, libreoffice.parts, libreoffice.read):
        cached.cache_clear()


def test_no_text_is_in_two_splits(catalogues: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (catalogues / "sw.mo").open("rb") as file:
        assert gettext.GNUTranslations(file).gettext("nothing") == "nothing"  # the catalogue is one
    monkeypatch.setattr(libreoffice, "VALIDATION", 20)
    monkeypatch.setattr(libreoffice, "TEST", 30)
    train_pairs, validation, test = libreoffice.parts()
    plain = [{bitexts.plain(pair[0]) for pair in pairs} for pairs in (train_pairs, validation, test)]
    assert not plain[0] & (plain[1] | plain[2])
    assert not plain[1] & plain[2]
    assert (len(validation), len(test)) == (20, 30)
    assert all(len(pair[0].split()) >= 4 for pair in (*validation, *test))
    everything = {pair[0] for pair in libreoffice.read(catalogues)}
    assert not any("\x04" in english for english in everything)


def test_a_memory_gives_what_is_nearest() -> None:
    memory = (["Open the file", "Delete the row", "Red"], ["Ouvrir le fichier", "Supprimer la ligne", "Rouge"])
    assert bitexts.remembered(memory, ["Delete a row", "open file"]) == ["Supprimer la ligne", "Ouvrir le fichier"]


@pytest.mark.parametrize("name", NETS)
def test_a_translator_is_trained_and_scored_by_its_graphs(
    name: str, catalogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("tokenizers", "sacrebleu"):
        pytest.importorskip(package)
    for key, value in (("VALIDATION", 20), ("TEST", 30), ("VOCABULARY", 90)):
        monkeypatch.setattr(libreoffice, key, value)
    registry = Registry(tmp_path / "home")
    model = train(f"{name},width=16,epochs=1", "libreoffice", registry=registry, progress=False)
    assert model.name == f"{name}-libreoffice-encoder"
    assert set(model.scores) == {"bleu", "chrf", "greedy_bleu", "greedy_chrf"}
    assert all(0 <= score <= 100 for score in model.scores.values())
    assert registry.get(f"{name}-libreoffice-decoder").scores == model.scores
    assert model.lineage["baseline"]["name"].startswith("translation memory (chrF ")


def test_absent_or_broken_catalogues_are_one_sentence(
    catalogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (catalogues / "sw.mo").write_bytes(b"nothing")
    with pytest.raises(TaskError, match=r"sw\.mo cannot be read: .*install libreoffice-l10n-fr again"):
        libreoffice.load()
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(libreoffice, "USUAL", str(tmp_path / "none"))
    with pytest.raises(TaskError, match="apt-get install libreoffice-l10n-fr") as caught:
        libreoffice.load()
    assert "\n" not in str(caught.value)
