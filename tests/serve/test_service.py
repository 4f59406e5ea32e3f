"""A site's process from the outside: what it loads, what it refuses to start with, and with whom it ends."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import uvloop

from airserve.contract import Deployment, Endpoint, SiteProcess, to_plain
from airserve.model import Function, ModelError
from airserve.serve.service import Service, main, read

HEAVY = ("torch", "numba", "pydantic", "sqlalchemy", "onnx", "starlette", "yaml", "typer", "rich", "scipy", "pandas")


def write(tmp_path, *endpoints, site="mast", device=-1):
    path = tmp_path / "deployment.json"
    process = SiteProcess(site, "127.0.0.1", 0, 1, endpoints, device)
    path.write_text(json.dumps(to_plain(Deployment("d", (process,), None, ()))))
    return path


def test_a_server_loads_nothing_heavy(tmp_path, graphs):
    code = """
import asyncio, sys, uvloop
from pathlib import Path
from airserve import catalog
from airserve.serve.service import Service, read
async def run():
    service = Service(read(Path(sys.argv[1]), "mast"))
    listener = await catalog.protocols["oip"].listen(service, "127.0.0.1", 0)
    await service.infer("whole", {"x": __import__("numpy").zeros((1, 4), "float32")})
    await listener.drain(1)
    service.close()
uvloop.run(run())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    path = write(tmp_path, Endpoint("whole", (Function("whole", "model", str(graphs["whole"])),)))
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=30, check=True)
    loaded = set(done.stdout.split())
    assert {"onnxruntime", "httptools", "uvloop", "orjson", "zstandard"} <= loaded
    assert not loaded & set(HEAVY)
    assert "PIL" not in loaded  # only where a picture is decoded


def test_the_way_to_a_service_of_its_own_loads_no_numpy():
    code = "import sys, airserve.serve.starting; print('numpy' in sys.modules, 'onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        (None, "mast", "is not a deployment"),
        ("{", "mast", "is not a deployment"),
        ("[1]", "mast", "is not a deployment"),
        ('{"name": "d"}', "mast", "is not a deployment"),
        ('{"name": "d", "processes": [], "air": null, "askers": []}', "mast", "has no process 'mast'; it has none"),
    ],
)
def test_a_deployment_that_cannot_be_used_is_one_sentence(tmp_path, capsys, text, key, says):
    path = tmp_path / "deployment.json"
    if text is not None:
        path.write_text(text)
    assert main([str(path), key]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_the_key_of_a_device_is_its_site_and_number(tmp_path):
    path = write(tmp_path, site="camera", device=3)
    assert read(path, "camera-3").device == 3
    with pytest.raises(ModelError, match="has no process 'camera'; it has camera-3"):
        read(path, "camera")


def test_functions_that_do_not_load_or_fit_are_one_sentence(tmp_path, graphs):
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    jpeg, mean, tail = (
        Function("jpeg", "preprocess"),
        Function("mean", "model", str(graphs["mean"])),
        Function("tail", "tail", str(graphs["tail"])),
    )

    def load(*functions):
        async def run():
            Service(SiteProcess("mast", "h", 0, 1, (Endpoint("e", functions),))).close()

        uvloop.run(run())

    load(jpeg, mean)
    for functions, says in (
        ((), "endpoint e has no functions"),
        ((Function("no", "model", str(tmp_path / "no.onnx")),), r"no\.onnx cannot be opened as an ONNX model"),
        ((mean, tail), r"a function gives 'mean' \(float32 \[-1\]\), the next takes 'hidden' \(float32 \[-1, 64\]\)"),
    ):
        with pytest.raises(ModelError, match=says):
            load(*functions)


def test_a_process_dies_with_its_parent(tmp_path, graphs):
    path = write(tmp_path, Endpoint("whole", (Function("whole", "model", str(graphs["whole"])),)))
    parent = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "airserve.serve.service", sys.argv[1], "mast", "--die-with-parent"],
                         stdout=subprocess.PIPE, text=True)
assert child.stdout.readline().startswith("ready mast http://127.0.0.1:")
print(child.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(process.stdout.readline())
        os.kill(child, 0)
        process.kill()
    until_s = time.monotonic() + 5
    while alive(child) and time.monotonic() < until_s:
        time.sleep(0.02)
    assert not alive(child)


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cheap_and_warm(graphs):
    async def run():
        service = Service(
            SiteProcess("m", "h", 0, 1, (
                Endpoint("photo", (Function("jpeg", "preprocess"), Function("mean", "model", str(graphs["mean"])))),
                Endpoint("tail", (Function("tail", "tail", str(graphs["tail"])),)),
            ))
        )  # fmt: skip
        assert not service.endpoint("photo").cheap  # what decoding takes, zeros do not tell
        assert service.endpoint("tail").cheap
        hidden = {"hidden": np.zeros((2, 64), "float32")}
        reply = await service.infer("tail", hidden, requested=("y",))
        assert [tensor.name for tensor, _ in reply.outputs] == ["y"]
        assert [timing.name for timing in reply.timings] == ["queue", "compute"]
        service.close()

    uvloop.run(run())
