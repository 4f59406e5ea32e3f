"""A detector of three graphs behind one server, which finds in a photograph what the engines find."""

import http.client
import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from airserve import wire
from airserve.contract import Endpoint
from airserve.learn import faces
from airserve.model import Array, Engine, Function

pytestmark = pytest.mark.skipif(find_spec("facenet_pytorch") is None, reason="facenet-pytorch is absent")


def test_a_served_cascade_finds_the_face(start, tmp_path: Path) -> None:
    from airserve.learn import mtcnn
    from airserve.learn.exporting import export_graph
    from airserve.learn.tasks import photos

    engines, endpoints = [], []
    for part, graph in mtcnn.graphs(mtcnn.weights()).items():
        path = tmp_path / f"{part}.onnx"
        path.write_bytes(export_graph(graph))
        engines.append(Engine(path))
        endpoints.append(Endpoint(part, (Function(part, "model", str(path)),), None))
    mast = start(*endpoints)

    def asks(connection: socket.socket, part: str, engine: Engine) -> Callable[[Sequence[Array]], list[Array]]:
        def ask(inputs: Sequence[Array]) -> list[Array]:
            rows = list(zip(engine.signature.inputs, inputs, strict=True))
            connection.sendall(wire.infer_request(part, rows, host=mast.url))
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            body = answer.read()
            assert answer.status == 200, body
            read = wire.parse_response(body, int(answer.headers["inference-header-content-length"]))
            return [value for _, value in read.outputs]

        return ask

    picture = np.asarray(Image.open(next(path for path in photos.paths() if path.stem == "astronaut")).convert("RGB"))
    with socket.create_connection(("127.0.0.1", mast.port)) as connection:
        asked = [asks(connection, one.name, engine) for one, engine in zip(endpoints, engines, strict=True)]
        served = faces.find(*asked, picture)
    alone = faces.find(*(engine.run for engine in engines), picture)
    assert len(served.boxes) == 1
    np.testing.assert_allclose(served.boxes, alone.boxes, atol=1e-3)
    np.testing.assert_allclose(served.points, alone.points, atol=1e-3)
