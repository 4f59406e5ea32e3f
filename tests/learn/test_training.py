"""Training: a step against numbers worked out by hand, seeds, stopping, the registry, and the export's gate."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from airserve.catalog import nets
from airserve.errors import UserError
from airserve.learn import fitting, generation
from airserve.learn.exporting import export
from airserve.learn.fitting import fit, initialise, validate
from airserve.learn.metrics import ACCURACY
from airserve.learn.nets import Form
from airserve.learn.preparing import Prepared, preprocess
from airserve.learn.stepping import Learner, take_step
from airserve.learn.tasks import Baseline, Data, Split, digits
from airserve.learn.training import train
from airserve.model import Engine, Model, ModelError
from airserve.registry import Registry
from airserve.samples import load_samples


def test_a_step_of_softmax_regression_by_hand() -> None:
    """Two classes, weights zero: both probabilities are 1/2, the loss is ln 2, the gradient (p - y) x."""
    net = nn.Linear(2, 2)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = fabric.setup(net, optimizer)
    learner = Learner(net, wrapped, optimizer, schedule)
    loss = take_step(fabric, learner, torch.tensor([[1.0, 2.0], [3.0, -2.0]]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(np.log(2))
    # mean over the two rows of (p - y) x: ((-.5, .5) x (1, 2) + (.5, -.5) x (3, -2)) / 2
    gradient = np.array([[0.5, -1.0], [-0.5, 1.0]])
    np.testing.assert_allclose(net.weight.grad, gradient, atol=1e-7)
    np.testing.assert_allclose(net.weight.detach(), -0.1 * gradient, atol=1e-7)
    np.testing.assert_allclose(net.bias.detach(), [0, 0], atol=1e-7)
    # the second step, by numpy
    x, w = np.array([[1.0, 2.0], [3.0, -2.0]]), -0.1 * gradient
    p = np.exp(x @ w.T) / np.exp(x @ w.T).sum(1, keepdims=True)
    loss = take_step(fabric, learner, torch.tensor(x, dtype=torch.float32), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(-np.log(p[[0, 1], [0, 1]]).mean())
    np.testing.assert_allclose(net.weight.grad, (p - np.eye(2)).T @ x / 2, atol=1e-7)


def test_the_learning_rate_is_one_cycle() -> None:
    prepared = preprocess(digits.load())
    config = replace(nets["mlp"].Config(), epochs=2, batch=12570 // 50)  # 50 steps an epoch of ten passes
    net = nets["mlp"].build(config, Form((8, 8), 10))
    learner = initialise(Fabric(accelerator="cpu", devices=1), net, config, prepared, seed=0)
    rates = []
    for _ in range(100):
        rates.append(learner.optimizer.param_groups[0]["lr"] / config.rate)
        learner.optimizer.step()
        learner.schedule.step()
    assert rates[0] == 0.01
    assert rates[10] == pytest.approx(0.5)
    assert np.argmax(rates) == 20
    assert max(rates) == pytest.approx(1)
    assert rates[60] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 80)


def test_digits_are_learnt(digits: Model, perceptron: Model) -> None:
    for model, least in ((digits, 0.95), (perceptron, 0.92)):
        assert model.scores["accuracy"] >= least
        assert model.samples_path is not None
        held = load_samples(model.samples_path).held()
        found = Engine(model.path).run([held.inputs])[0].argmax(1)
        assert (found == held.labels).mean() == pytest.approx(model.scores["accuracy"])
        assert model.lineage["rows"] == {"train": 1257, "validation": 180, "test": 360}
        assert model.lineage["cpu_s"] > 0
        assert len(model.lineage["curve"]) == model.lineage["epochs"]


def test_the_graph_takes_what_the_sensor_gives(digits: Model) -> None:
    (sensor,), (logits,) = digits.signature.inputs, digits.signature.outputs
    assert (sensor.dtype, sensor.shape) == ("uint8", (-1, 8, 8))
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "float32", (-1, 10))


def test_a_seed_gives_the_same_bits(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    one, again, other = (
        train("mlp,epochs=1", "digits", seed=seed, registry=Registry(tmp_path / str(turn)), progress=False)
        for turn, seed in enumerate((0, 0, 1))
    )
    assert one.digest == again.digest != other.digest
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_convolution_net_repeats_bit_by_bit(tmp_path: Path) -> None:
    """From a few pictures, so that it takes few steps; these are of the size of all others."""
    net = "resnet8,epochs=1,labels=0.02"
    one, again = (train(net, "digits", registry=Registry(tmp_path / turn), progress=False) for turn in ("1", "2"))
    assert one.digest == again.digest


def test_what_is_known_is_not_trained_again(
    perceptron: Model, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = []
    test = fitting.test
    monkeypatch.setattr(fitting, "test", lambda *given: tested.append(1) or test(*given))
    assert train("mlp", "digits", registry=registry, progress=False) == perceptron
    assert train("mlp,hidden=128", "digits", registry=registry, progress=False) == perceptron
    assert tested == []
    fresh = train("mlp", "digits", registry=registry, progress=False, fresh=True)
    assert tested == [1]
    assert fresh.digest == perceptron.digest
    # What took as long, to the digit that its lineage keeps, is the same version.
    assert fresh.version == perceptron.version + (fresh.lineage != perceptron.lineage)
    assert (
        train("mlp,hidden=8,epochs=1", "digits", registry=registry, progress=False).lineage["parameters"]
        == 64 * 8 + 8 + 90
    )
    assert tested == [1, 1]  # the test split is touched once each


FORM = Form((8,), 2)


def noise(rng: np.random.Generator, rows: int) -> list[Tensor]:
    return [torch.tensor(rng.normal(size=(rows, 8)), dtype=torch.float32), torch.tensor(rng.integers(0, 2, rows))]


def test_what_a_baseline_lacks_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(data: Data) -> None:
        raise UserError("scores of translations need the package sacrebleu.")

    worked: list[object] = []
    monkeypatch.setattr(digits, "baseline", lacks)
    monkeypatch.setattr("airserve.learn.training.learn", lambda *given: worked.append(given))
    with pytest.raises(UserError, match="need the package sacrebleu"):
        train("mlp,epochs=1", "digits", registry=Registry(tmp_path), progress=False)
    assert not worked


def test_training_stops_and_keeps_the_best() -> None:
    """Labels at random: the net learns its rows by heart, the validation loss soon rises."""
    rng = np.random.default_rng(0)
    test_split = digits.load().test
    prepared = Prepared(noise(rng, 100), noise(rng, 100), test_split, 0.0, 1.0, FORM, 1, "cross-entropy", ACCURACY)
    config = replace(nets["mlp"].Config(), hidden=64, epochs=60, batch=20, rate=0.02)
    fabric = Fabric(accelerator="cpu", devices=1)
    net = nets["mlp"].build(config, Form((8,), 2))
    torch.manual_seed(0)
    learner = initialise(fabric, net, config, prepared, seed=0)
    curve = fit(fabric, learner, prepared, config, seed=0, progress=False)
    losses = [each["loss"] for each in curve]
    assert len(curve) == int(np.argmin(losses)) + fitting.PATIENCE + 1 < 60
    assert validate(fabric, learner, prepared)[0] == pytest.approx(min(losses))


def test_preprocessing_normalises_by_the_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    data: Data = digits.load()
    prepared = preprocess(data)
    inputs = prepared.train[0].numpy()
    assert inputs.mean() == pytest.approx(0, abs=1e-5)
    assert inputs.std() == pytest.approx(1, abs=1e-5)
    by_hand = (data.validation.inputs[0] - data.train.inputs.mean()) / data.train.inputs.std()
    np.testing.assert_allclose(prepared.validation[0][0], by_hand, rtol=1e-5)


TABLE, IDS, MOVES = np.zeros((60, 4), np.float32), np.ones((60, 5), np.int32), np.zeros(60, np.int64)
OTHERS = {  # what else may be learnt than the digits' classes
    "numbers": Data("numbers", (), *[Split(TABLE, TABLE[:, :1])] * 3, loss="squared-error"),
    "sequences": Data(
        "sequences", (), *[Split(IDS, IDS.astype(np.int64))] * 3, ids=(9,), answer="continuation", symbols=9
    ),
    "pictures": generation.pictures(digits.load()),
    "texts": Data("texts", ("one", "other"), *[Split(IDS, MOVES)] * 3, ids=(9,)),
    "moves": Data("moves", ("left", "right"), *[Split(TABLE, MOVES)] * 3, answer="move", scale=(0.0, 1.0)),
}


@pytest.mark.parametrize(
    ("net", "task", "sentence"),
    [
        ("resnet9", "digits", "no net named 'resnet9'; perhaps resnet8"),
        ("mlp", "digitz", "no task named 'digitz'; perhaps digits"),
        ("mlp,widht=3", "digits", "mlp has no parameter 'widht'; it has hidden, epochs"),
        ("mlp,hidden=many", "digits", "hidden=many of mlp is not a number above 0; hidden is 128 by default"),
        ("mlp,hidden=0", "digits", "hidden=0 of mlp is not a number above 0"),
        (
            "mlp,rate=1e30",
            "digits",
            r"its loss is (nan|inf) at step \d+ of epoch 1: give a lower rate than 1e\+30, or clip=1",
        ),
        ("gpt,heads=3", "sequences", "width=160 cannot be divided among heads=3; give a multiple of 6 as width"),
        ("gpt,width=6,heads=2", "sequences", "width=6 cannot be divided among heads=2; give a multiple of 4 as width"),
        ("transformer,heads=3", "texts", "width=64 cannot be divided among heads=3; give a multiple of 3 as width"),
        ("transformer,width=63,heads=3", "texts", "width=63 is odd, but places are pairs of a sine and a cosine; give"),
        ("resnet8", "photos", "photos has no labels to train on"),
        ("mlp,resample=1", "numbers", "resample=1 is of no use to mlp on digits: the rows have no class each; leave"),
        ("mlp,vary=0.1", "numbers", "vary=0.1 is of no use to mlp on digits: the rows have no class each; leave vary"),
        ("mlp,balance=1", "numbers", "balance=1 is of no use to mlp on digits: the labels are no classes"),
        ("mlp,smoothing=0.1", "numbers", "smoothing=0.1 is of no use to mlp on digits: the labels are no classes"),
        ("gpt,resample=1", "sequences", "resample=1 is of no use to gpt on digits: the rows have no class each"),
        ("gpt,smoothing=0.1", "sequences", "smoothing=0.1 is of no use to gpt on digits: the net has a loss"),
        ("vae,balance=1", "pictures", "balance=1 is of no use to vae on digits: the net has a loss of its own; leave"),
        (
            "gpt,pretrain=masked",
            "sequences",
            "pretrain=masked is of no use to gpt on digits: the net gives what follows",
        ),
        (
            "policy,pretrain=contrastive",
            "moves",
            "pretrain=contrastive is of no use to policy on digits: the net learns from",
        ),
        ("policy,labels=0.5", "moves", "labels=0.5 is of no use to policy on digits: the net learns from games"),
        ("policy,resample=1", "moves", "resample=1 is of no use to policy on digits: the net learns from games"),
        ("efficientnet-lite0", "digits", r"takes colour pictures \(height, width, 3\), not \(8, 8\)"),
    ],
)
def test_bad_input_is_one_sentence(
    net: str, task: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    if task in OTHERS:
        monkeypatch.setattr(digits, "load", lambda data=OTHERS[task]: data)
        monkeypatch.setattr(digits, "baseline", lambda data: Baseline("none", 0.0))
        task = "digits"
    with pytest.raises(UserError, match=sentence) as caught:
        train(net, task, registry=registry, progress=False)
    assert "\n" not in str(caught.value)
    assert registry.models() == []


class Batched(nn.Module):
    """A net whose answer depends on the batch it was traced with."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * int(x.shape[0])


def test_an_export_that_disagrees_is_refused() -> None:
    examples = np.arange(40, dtype=np.uint8).reshape(5, 2, 4)
    with pytest.raises(ModelError, match=r"the exported graph differs from the net by 6\.7e-01 of its largest output"):
        export(Batched(), 0.0, 1.0, examples)


def test_an_export_normalises_inside() -> None:
    examples = np.random.default_rng(0).integers(0, 256, (5, 2, 4), np.uint8)
    graph = export(nn.Sequential(nn.Flatten(), nn.ReLU()), 100.0, 50.0, examples)
    wanted = np.maximum((examples.reshape(5, 8).astype(np.float32) - 100) / 50, 0)
    np.testing.assert_allclose(Engine(graph).run([examples])[0], wanted, rtol=1e-5)
