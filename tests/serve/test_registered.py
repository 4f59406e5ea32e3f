"""From training to an answer: a Model of the registry served by name and by alias, with the engine that was chosen."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
import requests
from onnx import numpy_helper

from airserve.contract import to_plain
from airserve.model import Engine, Runtime, load_samples
from airserve.place import choosing
from airserve.place.choosing import Timed
from airserve.registry import Registry


@contextmanager
def serving(home, *sources):
    """`airserve serve`, ready; its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "airserve.cli", "serve", *sources, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "AIRSERVE_HOME": str(home)},
    ) as process:  # fmt: skip
        line = process.stdout.readline()
        assert line.startswith("ready "), process.stderr.read()
        try:
            yield re.search(r"http://\S+", line)[0]
        finally:
            process.terminate()


def ask(url, model, x, version=""):
    tensor = {"name": "input", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    where = f"{url}/v2/models/{model}{version and f'/versions/{version}'}"
    described = requests.get(where, timeout=10).json()
    tensor.update(name=described["inputs"][0]["name"], datatype=described["inputs"][0]["datatype"])
    answer = requests.post(f"{where}/infer", json={"inputs": [tensor]}, timeout=10)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return np.array(found["outputs"][0]["data"]).reshape(found["outputs"][0]["shape"]), found["model_version"]


def doubled(path):
    """The graph with its last weights doubled."""
    graph = onnx.load(path)
    last = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT][-1]
    last.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(last), last.name))
    return graph.SerializeToString()


def test_a_trained_model_is_served_by_alias_and_follows_it_when_loaded_again(tmp_path):
    pytest.importorskip("torch")
    from airserve.learn.training import train

    registry = Registry(tmp_path)
    first = train("mlp,epochs=2", "digits", registry=registry, progress=False)
    registry.alias(first, "live")
    held = load_samples(first.samples_path).held()
    x = held.inputs[:8]
    with serving(tmp_path, f"{first.name}@live") as url:
        y, version = ask(url, first.name, x)
        np.testing.assert_allclose(y, Engine(first.path).run([x])[0], rtol=1e-4, atol=1e-5)
        assert (y.argmax(axis=1) == held.labels[:8]).mean() > 0.5
        assert version == "1"
        assert requests.get(f"{url}/v2/models/{first.name}", timeout=10).json()["platform"] == "onnxruntime_onnx"
        assert ask(url, first.name, x, "live")[1] == "1"
        second = registry.register(first.name, doubled(first.path), samples=first.samples_path)
        assert second.version == 2
        assert ask(url, first.name, x)[1] == "1"  # the alias has not moved
        registry.alias(second, "live")
        assert requests.post(f"{url}/v2/repository/models/{first.name}/load", timeout=30).status_code == 200
        y, version = ask(url, first.name, x)
        assert version == ask(url, first.name, x, "live")[1] == "2"
        np.testing.assert_allclose(y, Engine(second.path).run([x])[0], rtol=1e-4, atol=1e-5)
        assert requests.get(f"{url}/v2/models/{first.name}", timeout=10).json()["versions"] == ["2"]


def test_a_model_is_opened_by_the_engine_that_was_chosen_for_this_machine(tmp_path, graphs):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    registry = Registry(tmp_path)
    model = registry.register("whole", graphs["whole"])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    registry.keep(choosing._key(model), to_plain([Timed(Runtime("openvino"), 1.0, 0.0, None, True)]))
    with serving(tmp_path, "whole") as url:
        assert requests.get(f"{url}/v2/models/whole", timeout=10).json()["platform"] == "openvino"
        np.testing.assert_allclose(ask(url, "whole", x)[0], Engine(graphs["whole"]).run([x])[0], rtol=1e-4)
