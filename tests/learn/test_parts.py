"""Nets of several parts, several inputs, or an objective of their own: how they are trained, exported and kept."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from airserve.catalog import nets, tasks
from airserve.learn import preparing, recipe, training
from airserve.learn.exporting import Graph, export_graph
from airserve.learn.metrics import Metric
from airserve.learn.tasks import Baseline, Data, Split
from airserve.learn.training import train
from airserve.model import Engine, ModelError
from airserve.registry import Registry


class Weighted(nn.Module):
    """Two inputs, two outputs, both of free sizes; `wrong` makes a constant of the first one's."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        products = x * weights[:, None]
        return products, products.sum(0) / (int(x.shape[1]) if self.wrong else x.shape[1])


def graph(module: nn.Module) -> Graph:
    free = {0: "n", 1: "length"}
    examples = [(torch.rand(n, length), torch.rand(n)) for n, length in ((2, 3), (4, 3), (2, 7), (1, 0))]
    return Graph(module, {"x": free, "weights": {0: "n"}}, {"products": free, "means": {0: "length"}}, examples)


def test_a_graph_of_several_inputs_keeps_their_names_and_free_axes() -> None:
    engine = Engine(export_graph(graph(Weighted())))
    assert [(each.name, each.shape) for each in engine.signature.inputs] == [("x", (-1, -1)), ("weights", (-1,))]
    assert [(each.name, each.shape) for each in engine.signature.outputs] == [("products", (-1, -1)), ("means", (-1,))]
    x, weights = np.random.default_rng(0).random((5, 6), np.float32), np.arange(5, dtype=np.float32)
    products, means = engine.run([x, weights])
    np.testing.assert_allclose(products, x * weights[:, None], rtol=1e-6)
    np.testing.assert_allclose(means, (weights @ x) / 6, rtol=1e-5)


def test_every_example_and_every_output_is_compared() -> None:
    with pytest.raises(ModelError, match=r"differs from the net by 1\.3e\+00 .*inputs of shape \(2, 7\), \(2,\)"):
        export_graph(graph(Weighted(wrong=True)))


class Pair(nn.Module):
    """Learns the mean of its inputs by an objective of its own; two parts."""

    answers = "picture"

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.zeros(2))

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return ((inputs - self.middle) ** 2).mean()

    def graphs(self, sense, rows):
        class Towards(nn.Module):
            def __init__(self, middle: nn.Parameter, sign: float) -> None:
                super().__init__()
                self.middle, self.sign = middle, sign

            def forward(self, x: Tensor) -> Tensor:
                return x + self.sign * self.middle

        away, back = Towards(self.middle, -1.0), Towards(self.middle, 1.0)
        few, codes = torch.tensor(rows[:3]), torch.zeros(2, 2)
        return {
            "encoder": Graph(sense(away), {"input": {0: "n"}}, {"code": {0: "n"}}, [(few[:1],), (few,)]),
            "decoder": Graph(back, {"code": {0: "n"}}, {"made": {0: "n"}}, [(codes[:1],), (codes,)]),
        }


@dataclass(frozen=True)
class Config:
    epochs: int = 30
    batch: int = 50
    rate: float = 0.1
    decay: float = 1e-3


def load() -> Data:
    rows = np.random.default_rng(0).normal([3, -1], 0.1, (100, 2)).astype(np.float32)
    split = Split(rows, np.zeros(100, np.int64))
    metric = Metric("distance", less_is_better=True)
    text = {"tokenizer": "{}"}
    return Data(
        "cloud", ("all",), split, split, split, metric=metric, answer="picture", scale=(1.0, 2.0), metadata=text
    )


def assess(parts: dict[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    made = parts["decoder"].run([np.zeros((1, 2), np.float32)])[0]
    return {"distance": float(np.abs(2 * made + 1 - data.test.inputs.mean(0)).max()), "rows": len(made)}


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net and a task that are in no file."""
    net = SimpleNamespace(Config=Config, build=lambda config, form: Pair())
    task = SimpleNamespace(load=load, assess=assess, baseline=lambda data: Baseline("zero", 3.0))
    for module in (preparing, recipe):
        monkeypatch.setattr(module, "nets", {**nets, "pair": net})
    for module in (preparing, training):
        monkeypatch.setattr(module, "tasks", {**tasks, "cloud": task})


@pytest.mark.usefixtures("pair")
def test_parts_are_models_and_the_first_is_the_trained_one(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    model = train("pair", "cloud", registry=registry, progress=False)
    assert model.reference == "pair-cloud-encoder@1/fp32"
    assert model.lineage["parts"] == {"decoder": "pair-cloud-decoder@1/fp32"}
    decoder = registry.get("pair-cloud-decoder")
    assert (decoder.lineage["first_part"], decoder.lineage.get("recipe")) == (model.name, None)
    assert model.scores == decoder.scores == {"distance": pytest.approx(0, abs=0.05), "rows": 1.0}
    assert train("pair", "cloud", registry=registry, progress=False) == model
    rows = load().test.inputs
    code = Engine(model.path).run([rows])[0]
    np.testing.assert_allclose(Engine(decoder.path).run([code])[0], (rows - 1) / 2, rtol=1e-5, atol=1e-5)
    for each in (model, decoder):
        assert [(entry.key, entry.value) for entry in onnx.load(each.path).metadata_props] == [("tokenizer", "{}")]
    assert set(model.lineage["curve"][0]) == {"train_loss", "loss", "cpu_s"}  # no score is found row by row


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(("net", "task"), [("pair", "digits"), ("mlp", "cloud")])
def test_a_net_that_answers_otherwise_is_refused(net: str, task: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"{net} gives .*, but the task asks for .*\.") as caught:
        train(net, task, registry=Registry(tmp_path), progress=False)
    assert "\n" not in str(caught.value)
