"""From training to an answer: a Model of the registry served by name and by alias, with the engine that was chosen."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
import requests
from onnx import numpy_helper

from airserve.contract import to_plain
from airserve.model import Engine, ModelError, Runtime
from airserve.place import choosing
from airserve.place.choosing import Timed
from airserve.registry import Registry
from airserve.samples import load_samples
from airserve.serve import inquiring, offering
from airserve.serve.configuration import Configuration
from airserve.serve.following import REST_S, Follower


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


def test_a_trained_model_is_served_by_alias_and_follows_it_unasked(tmp_path):
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
        expected = {"1": y, "2": Engine(second.path).run([x])[0]}
        until_s = time.monotonic() + 60
        while version == "1":  # the old one answers until the new one is there
            assert time.monotonic() < until_s
            time.sleep(0.1)
            y, version = ask(url, first.name, x)
            np.testing.assert_allclose(y, expected[version], rtol=1e-4, atol=1e-5)
        assert ask(url, first.name, x, "live")[1] == "2"
        assert requests.get(f"{url}/v2/models/{first.name}", timeout=10).json()["versions"] == ["2"]


def test_a_model_is_opened_as_was_chosen_for_this_machine_and_the_cores_of_a_worker(tmp_path, graphs):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    registry, most = Registry(tmp_path), choosing.cores()
    model = registry.register("whole", graphs["whole"])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    timed = [Timed(Runtime(), 2.0, 0.0, None, 1), Timed(Runtime("openvino", threads=most), 1.0, 0.0, None, most)]
    registry.keep(choosing._key(model), to_plain(timed[most == 1 :]))
    with serving(tmp_path, "whole") as url:  # by one worker, which has all cores
        assert requests.get(f"{url}/v2/models/whole", timeout=10).json()["platform"] == "openvino"
        np.testing.assert_allclose(ask(url, "whole", x)[0], Engine(graphs["whole"]).run([x])[0], rtol=1e-4)
    runtimes = {"1": to_plain(Runtime()), "4": to_plain(Runtime(threads=4))}
    said = json.dumps({**to_plain(model), "aliases": [], "runtimes": runtimes})
    opened = [offering.answered(said, cores).functions[0].runtime.threads for cores in (1, 3, 4, 9)]
    assert opened == [1, 1, 4, 4]
    assert Configuration((), workers=2 * most).cores == 1
    assert Configuration((), workers=1).cores == most


def test_a_file_of_no_kind_that_is_served_is_not_taken_for_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRSERVE_HOME", str(tmp_path / "home"))
    (tmp_path / "README.md").write_text("# Read me")
    with pytest.raises(ModelError, match=r"README\.md is a file of no kind that is served; wanted is an \.onnx or"):
        offering.offers(str(tmp_path / "README.md"))
    with pytest.raises(ModelError, match="no model named"):
        offering.offers("README.txt")


def test_the_registry_is_asked_where_it_was_written_and_only_then(tmp_path, graphs, monkeypatch):
    monkeypatch.setenv("AIRSERVE_HOME", str(tmp_path))
    registry, asked = Registry(tmp_path), []
    first = registry.register("whole", graphs["whole"])
    registry.alias(first, "live")

    def described(reference):
        model = registry.get(reference)
        return {**to_plain(model), "aliases": registry.aliases(model), "runtimes": {"1": to_plain(Runtime())}}

    def question(reference):  # what `airserve models show` says, which takes a second
        asked.append(reference)
        return ["echo", json.dumps(described(reference))]

    monkeypatch.setattr(inquiring, "question", question)
    sources = ["whole@live", "whole"]
    follower = Follower([*sources, str(graphs["tail"])])
    offered = [offering.offered(offering.answered(json.dumps(described(source))), source) for source in sources]
    now_s = 0.0

    def looked():
        nonlocal now_s
        now_s += REST_S
        found = follower.look(now_s, offered)
        while follower._asking:
            time.sleep(0.01)
            found += follower.look(now_s, offered)
        return [(offer.source, offer.endpoint.version, offer.endpoint.aliases) for offer in found]

    assert looked() == []
    assert asked == []
    second = registry.register("whole", doubled(graphs["whole"]))
    assert looked() == []
    assert sorted(asked) == ["whole@1", "whole@live"]
    registry.alias(second, "live")
    assert sorted(looked()) == [("whole", "1", ()), ("whole@live", "2", ("live",))]
    assert looked() == []  # it was asked, and that has changed nothing
    assert len(asked) == 4
    follower.close()
