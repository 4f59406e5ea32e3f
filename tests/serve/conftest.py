"""Small graphs, and site processes that serve them."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from airserve.contract import Deployment, Endpoint, Route, SiteProcess, to_plain
from airserve.model import Function

TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}  # fmt: skip


def save(path: Path, nodes: list, inputs: dict, outputs: dict, weights: dict) -> Path:
    """A graph; inputs and outputs map names to (type, shape)."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, *of) for name, of in inputs.items()],
        [helper.make_tensor_value_info(name, *of) for name, of in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """whole = head + tail: (n, 4) float32 -> hidden (n, 64) -> (n, 3); same: every datatype; mean; heavy: 10 ms.

    label: the word for the greatest of four numbers.
    """
    folder = tmp_path_factory.mktemp("graphs")
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(4, 64)).astype("float32"), rng.normal(size=(64, 3)).astype("float32")
    first = [helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Relu", ["a"], ["hidden"])]
    second = [helper.make_node("MatMul", ["hidden", "w2"], ["y"])]
    x, hidden, y = ({n: (TensorProto.FLOAT, ["n", k])} for n, k in (("x", 4), ("hidden", 64), ("y", 3)))
    cast = [
        helper.make_node("Cast", ["pixels"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["p"], ["mean"], axes=[1, 2, 3], keepdims=0),
    ]
    half = (TensorProto.BFLOAT16, ["n", 2])
    spread = rng.normal(size=(4, 1 << 16)).astype("float32") / 16
    squares = [helper.make_node("MatMul", ["x", "w"], ["flat"]), helper.make_node("Reshape", ["flat", "by"], ["m0"])]
    for k in range(24):
        squares.append(helper.make_node("MatMul", [f"m{k}", "m0"], [f"p{k}"]))
        squares.append(helper.make_node("Tanh", [f"p{k}"], [f"m{k + 1}"]))
    squares.append(helper.make_node("ReduceMean", ["m24"], ["y"], axes=[2], keepdims=0))
    return {
        "half": save(
            folder / "half.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": half}, {"y": half}, {}
        ),
        "label": save(
            folder / "label.onnx",
            [
                helper.make_node("ArgMax", ["x"], ["k"], axis=1, keepdims=0),
                helper.make_node("Gather", ["names", "k"], ["label"]),
            ],
            {"x": (TensorProto.FLOAT, ["n", 4])}, {"label": (TensorProto.STRING, ["n"])},
            {"names": np.array(["crane", "dock", "quay wall", "\u00e9cluse"], object)},
        ),
        "whole": save(folder / "whole.onnx", first + second, x, y, {"w1": w1, "w2": w2}),
        "head": save(folder / "head.onnx", first, x, hidden, {"w1": w1}),
        "tail": save(folder / "tail.onnx", second, hidden, y, {"w2": w2}),
        "mean": save(
            folder / "mean.onnx", cast, {"pixels": (TensorProto.UINT8, ["n", 8, 8, 3])},
            {"mean": (TensorProto.FLOAT, ["n"])}, {},
        ),
        "heavy": save(
            folder / "heavy.onnx", squares, x, {"y": (TensorProto.FLOAT, ["n", 256])},
            {"w": spread, "by": np.array([-1, 256, 256])},
        ),
        "same": save(
            folder / "same.onnx",
            [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in TYPES],
            {f"in_{t}": (of, ["n", 2]) for t, of in TYPES.items()},
            {f"out_{t}": (of, ["n", 2]) for t, of in TYPES.items()},
            {},
        ),
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """A loop, a server or a channel that is left open may end the process when, much later, garbage is collected."""
    kinds = below(asyncio.AbstractEventLoop)
    if (grpc := sys.modules.get("grpc._cython.cygrpc")) is not None:
        kinds |= {grpc.Server, grpc.Channel, grpc.AioChannel}

    def opened() -> list[object]:
        found = [one for one in gc.get_objects() if type(one) in kinds and id(one) not in before]
        return [one for one in found if not (isinstance(one, asyncio.AbstractEventLoop) and one.is_closed())]

    before = set[int]()
    others = opened()  # by other tests of this process
    before |= {id(one) for one in others}
    yield
    kinds |= below(asyncio.AbstractEventLoop)
    found = opened()
    assert not [one for one in found if isinstance(one, asyncio.AbstractEventLoop)]
    if found:  # what is garbage by now was closed
        del found
        gc.collect()
        assert not opened()


def below(kind: type) -> set[type]:
    """A class and all that are derived from it."""
    return {kind}.union(*(below(one) for one in kind.__subclasses__()))


@dataclass
class Running:
    """A site process that answers at `port`."""

    process: subprocess.Popen
    port: int

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(10)
        self.process.stdout.close()
        self.process.stderr.close()
        return status


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a site process with these endpoints and waits for its ready line."""
    running: list[Running] = []

    def started(*endpoints: Endpoint, site: str = "mast", port: int = 0, cores: int = 1, device: int = -1) -> Running:
        wanted = SiteProcess(site, "127.0.0.1", port, cores, endpoints, device)
        path = tmp_path_factory.mktemp("deployment") / "deployment.json"
        path.write_text(json.dumps(to_plain(Deployment("test", (wanted,), None, ()))))
        process = subprocess.Popen(
            [sys.executable, "-m", "airserve.serve.service", str(path), wanted.key, "--die-with-parent"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        line = process.stdout.readline()
        assert line.startswith(f"ready {wanted.key} "), process.stderr.read()
        running.append(Running(process, int(line.split()[2].rpartition(":")[2])))
        return running[-1]

    yield started
    for one in running:
        one.stop()


def endpoint(name: str, *functions: Function, route: Route | None = None) -> Endpoint:
    return Endpoint(name, functions, route)


@pytest.fixture(scope="module")
def mast(graphs: dict[str, Path], start: Start) -> Running:
    """A site with all the graphs, one of them behind a JPEG decoder, and one padded to 50 ms."""
    return start(
        endpoint("whole", Function("whole", "model", str(graphs["whole"]))),
        endpoint("tail", Function("tail", "tail", str(graphs["tail"]))),
        endpoint("half", Function("half", "model", str(graphs["half"]))),
        endpoint("same", Function("same", "model", str(graphs["same"]))),
        endpoint("photo", Function("jpeg", "preprocess"), Function("mean", "model", str(graphs["mean"]))),
        endpoint("slow", Function("whole", "model", str(graphs["whole"]), padded_s=0.05)),
        cores=2,
    )


@pytest.fixture(scope="module")
def camera(graphs: dict[str, Path], start: Start, mast: Running) -> Running:
    """A device with heads whose tails are on the mast, from a source address of its own."""
    head = Function("head", "head", str(graphs["head"]))
    return start(
        *(
            endpoint(name, head, route=Route("127.0.0.1", mast.port, model, "127.1.0.7", compress))
            for name, model, compress in (
                ("cut", "tail", False),
                ("cut-zstd", "tail", True),
                ("lost", "nothing", False),
            )
        ),
        site="camera",
        device=3,
    )
