"""Fitting: resuming after a kill, divergence, the options, what is normalised, and the curves."""

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from airserve.catalog import nets
from airserve.learn import fitting, stepping
from airserve.learn.checkpoints import Checkpoint
from airserve.learn.exporting import export
from airserve.learn.fitting import initialise
from airserve.learn.metrics import ACCURACY
from airserve.learn.nets import Form
from airserve.learn.preparing import Prepared, preprocess
from airserve.learn.recipe import Options
from airserve.learn.stepping import Learner, take_step
from airserve.learn.tasks import Data, Split
from airserve.learn.training import train
from airserve.model import Engine, Model, ModelError
from airserve.registry import Registry

NET = "mlp,epochs=4,hidden=16"
FORM = Form((8,), 2)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of the third epoch: two are kept, two are trained, the graph is the same."""
    whole = train(NET, "digits", registry=Registry(tmp_path / "whole"), progress=False)
    registry, epochs, validate = Registry(tmp_path / "killed"), [], fitting.validate

    def killed(*given: object) -> tuple[float, float]:
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return validate(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(NET, "digits", registry=registry, progress=False)
    (kept,) = (registry.home / "checkpoints").iterdir()
    assert registry.models() == []
    model = train(NET, "digits", registry=registry, progress=False)
    assert len(epochs) == 3 + 2
    assert model.digest == whole.digest
    assert not kept.exists()


def test_a_divergence_says_where_and_keeps_the_last_good_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = [], stepping.take_step

    def poisoned(*given: object) -> Tensor:
        steps.append(1)
        return step(*given) * (float("nan") if len(steps) == 49 + 30 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(stepping, "take_step", poisoned)
    with pytest.raises(ModelError, match=r"its loss is nan at step 30 of epoch 2.*\.pt holds epoch 1") as caught:
        train(NET, "digits", registry=Registry(tmp_path), progress=False)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert str(kept) in str(caught.value)
    recipe = kept.stem
    assert len(Checkpoint(kept, recipe).load()["curve"]) == 1  # type: ignore[index]
    with pytest.raises(ModelError, match="is of another net, task or seed; delete it"):
        Checkpoint(kept, "another").load()
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cannot be read .*; delete it"):
        Checkpoint(kept, recipe).load()
    kept.write_bytes(b"rubbish")
    with pytest.raises(ModelError, match=r"cannot be read \(.+\); delete it"):
        Checkpoint(kept, recipe).load()
    torch.save([1], kept)
    with pytest.raises(ModelError, match="is of another net, task or seed; delete it"):
        Checkpoint(kept, recipe).load()
    torch.save({"recipe": recipe, "weights": {}}, kept)
    with pytest.raises(ModelError, match="does not fit this net; delete it"):
        train(NET, "digits", registry=Registry(tmp_path), progress=False)
    left = kept.with_name(f"{recipe}-{2**22 + 1}-x.part")  # by a process that was killed while it wrote
    theirs = kept.with_name(f"{recipe}-{os.getppid()}-x.part")  # who trains the same at this moment
    left.touch()
    theirs.touch()
    Checkpoint(kept, recipe).remove()
    assert [path.exists() for path in (kept, left, theirs)] == [False, False, True]
    kept.write_bytes(b"a file")
    with pytest.raises(ModelError, match="cannot be written"):
        Checkpoint(kept / "below" / "x.pt", recipe).save({})


def learner_of(options: Options) -> tuple[Fabric, Learner, Prepared]:
    rng = np.random.default_rng(1)
    rows = [torch.tensor(rng.normal(size=(12, 8)), dtype=torch.float32), torch.tensor([0] * 9 + [1] * 3)]
    nothing = Split(np.zeros((0, 8)), np.zeros(0))
    prepared = Prepared(rows, rows, nothing, 0.0, 1.0, FORM, 1, "cross-entropy", ACCURACY)
    config = replace(nets["mlp"].Config(), hidden=4, batch=12, epochs=1)
    fabric = Fabric(accelerator="cpu", devices=1)
    return fabric, initialise(fabric, nets["mlp"].build(config, FORM), config, prepared, 0, options), prepared


def gradient(options: Options) -> np.ndarray:
    fabric, learner, prepared = learner_of(options)
    take_step(fabric, learner, *prepared.train)
    return torch.cat([weight.grad.flatten() for weight in learner.module.parameters()]).numpy()


def test_options_change_the_gradient_as_they_say() -> None:
    plain = gradient(Options())
    np.testing.assert_allclose(gradient(Options(accumulate=4)), plain, rtol=1e-5, atol=1e-7)
    for balance in (0.5, 1.0):  # parts add up to the batch, whichever classes are in them
        whole = gradient(Options(balance=balance))
        np.testing.assert_allclose(gradient(Options(balance=balance, accumulate=4)), whole, rtol=1e-4, atol=1e-7)
    length = float(np.linalg.norm(plain))
    np.testing.assert_allclose(gradient(Options(clip=length / 2)), plain / 2, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradient(Options(clip=length * 2)), plain, rtol=1e-5)
    _, learner, _ = learner_of(Options())
    signs = [weight.detach().sign() * (weight.ndim > 1) for weight in learner.module.parameters()]
    wanted = plain + 0.01 * torch.cat([sign.flatten() for sign in signs]).numpy()
    np.testing.assert_allclose(gradient(Options(lasso=0.01)), wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient(Options(smoothing=0.5)) - plain).max() > 1e-3
    assert np.abs(gradient(Options(balance=1.0)) - plain).max() > 1e-3


def test_a_table_is_normalised_by_column_and_ids_are_left() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal([3, -2, 7], [1, 5, 0], (30, 3)).astype(np.float32)
    data = Data("table", ("no", "yes"), *(Split(rows, rng.integers(0, 2, 30)) for _ in range(3)))
    prepared = preprocess(data)
    np.testing.assert_allclose(prepared.train[0].mean(0), [0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(prepared.train[0].std(0, correction=0), [1, 1, 0], atol=1e-5)
    net = nets["mlp"].build(nets["mlp"].Config(), prepared.form)
    graph = export(net, prepared.mean, prepared.std, rows)
    with torch.no_grad():
        np.testing.assert_allclose(Engine(graph).run([rows])[0], net(prepared.train[0]), rtol=1e-4, atol=1e-5)
    ids = np.array([[1, 2], [3, 0]], np.int32)
    text = Data("text", ("no", "yes"), *(Split(ids, np.array([0, 1])) for _ in range(3)), ids=(9,))
    prepared = preprocess(text)
    assert (prepared.mean, prepared.form) == (None, Form((2,), 2, (9,)))
    np.testing.assert_array_equal(prepared.train[0], ids)
    with pytest.raises(ModelError, match="mlp takes numbers, not texts of 9 words; use gru"):
        nets["mlp"].build(nets["mlp"].Config(), prepared.form)


def test_curves_are_kept_with_their_picture_and_the_baseline(perceptron: Model, registry: Registry) -> None:
    curve = perceptron.lineage["curve"]
    assert set(curve[0]) == {"train_loss", "loss", "accuracy", "cpu_s"}
    picture = ElementTree.parse(registry.home / perceptron.lineage["picture"])
    lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [len(curve)] * 3
    scores = [float(point.split(",")[1]) for point in lines[2].attrib["points"].split()]
    assert int(np.argmin(scores)) == int(np.argmax([each["accuracy"] for each in curve]))  # up is better
    assert perceptron.lineage["baseline"]["name"] == "nearest class mean"
    assert 0.8 < perceptron.lineage["baseline"]["score"] < perceptron.scores["accuracy"]
