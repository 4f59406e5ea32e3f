"""A service of its own as a user starts it: workers at one port that die and come back, models that come and go."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from airserve import wire
from airserve.errors import UserError
from airserve.model import Engine, ModelError, Tensor
from airserve.serve.configuration import Configuration
from airserve.serve.connecting import AnswerReader
from airserve.serve.offering import offers
from airserve.serve.supervising import Supervisor
from airserve.serve.untrusted import check_graph
from airserve.serve.watching import counts

pytestmark = pytest.mark.realtime

X = Tensor("x", "float32", (-1, 4))
ONES = np.ones((1, 4), "float32")


class Alone:
    """`airserve serve`, ready."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "airserve.cli", "serve", *map(str, words), "--port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.process.stderr.read()
        self.port = int(re.search(r":(\d+) ", line)[1])

    def workers(self):
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ask(self, method, path, body=None):
        """Status and JSON of a request on a connection of its own, so that any worker may get it."""
        one = HTTPConnection("127.0.0.1", self.port, timeout=10)
        one.request(method, path, None if body is None else json.dumps(body))
        answer = one.getresponse()
        found = answer.status, json.loads(answer.read())
        one.close()
        return found

    def infer(self, model="whole", x=ONES):
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as one:
            one.sendall(wire.infer_request(model, [(X, x)], host="h"))
            return answer(one)

    def stop(self, number=signal.SIGTERM):
        os.killpg(self.process.pid, number)  # as a terminal does
        status = self.process.wait(15)
        assert "Warning" not in self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return status


def answer(one):
    reader, got = AnswerReader(), []
    while not got:
        data = one.recv(1 << 16)
        if not data:
            raise ConnectionResetError("closed before an answer")
        got = reader.feed(data)
    return got[0]


def array(got):
    assert got.status == 200, got.body
    return wire.parse_response(got.body, int(got.headers["inference-header-content-length"])).outputs[0][1]


@pytest.fixture(scope="module")
def folder(graphs, tmp_path_factory):
    """A repository in Triton's layout."""
    top = tmp_path_factory.mktemp("repository")
    for place, graph in {"whole/1": "whole", "whole/3": "whole", "tail/1": "tail"}.items():
        (top / place).mkdir(parents=True)
        shutil.copy(graphs[graph], top / place / "model.onnx")
    (top / "whole" / "config.pbtxt").write_text('backend: "onnxruntime"\nversion_policy: { all { } }\n')
    return top


@pytest.fixture(scope="module")
def alone(folder):
    service = Alone(folder, "--workers", 2)
    yield service
    assert service.stop() == 0


def test_versions_and_the_index_are_one_truth(alone):
    for _ in range(6):
        assert alone.ask("GET", "/v2/models/whole")[1]["versions"] == ["1", "3"]
        status, rows = alone.ask("POST", "/v2/repository/index")
        assert status == 200
        assert {(r["name"], r["version"], r["state"]) for r in rows} == {
            ("tail", "1", "READY"), ("whole", "1", "READY"), ("whole", "3", "READY")
        }  # fmt: skip
    assert alone.ask("GET", "/v2/models/whole/versions/2/ready")[0] == 404
    assert alone.infer().status == 200


def test_statistics_are_those_of_all_workers(alone):
    def count():
        status, found = alone.ask("GET", "/v2/models/whole/versions/3/stats")
        assert status == 200
        return found["model_stats"][0]["inference_stats"]["success"]["count"]

    before = count()
    for k in range(20):
        assert alone.infer().status == 200
        assert count() == before + k + 1


def test_a_worker_that_dies_is_back_while_the_others_answer(alone, graphs):
    expected = Engine(graphs["whole"]).run([ONES])[0]
    before = alone.workers()
    os.kill(before[0], signal.SIGKILL)
    until_s, answered, after = time.monotonic() + 2.0, 0, before
    while time.monotonic() < until_s:
        try:
            np.testing.assert_allclose(array(alone.infer()), expected, rtol=1e-6)
            answered += 1
        except OSError:
            pass  # a connection of the dead worker's
        after = alone.workers()  # looked at once: the dead one may be gone by a second look, and the new one not there
        if len(after) == 2 and set(after) != set(before):
            break
    assert len(after) == 2
    assert before[0] not in after
    assert before[1] in after
    assert answered


def test_replacing_and_unloading_lose_no_request(alone, folder, graphs, tmp_path):
    """Asked all the while, each answer is the old graph's or the new one's, and none is missing."""
    old, graph = Engine(graphs["whole"]).run([ONES])[0], onnx.load(graphs["whole"])
    for tensor in graph.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), "w2"))
    done, wrong, seen = threading.Event(), [], set()

    def client():
        with socket.create_connection(("127.0.0.1", alone.port), timeout=10) as one:
            while not done.is_set():
                one.sendall(wire.infer_request("whole", [(X, ONES)], host="h"))
                got = array(answer(one))
                which = 1 if np.allclose(got, old, rtol=1e-5) else 2 if np.allclose(got, 2 * old, rtol=1e-5) else 0
                seen.add(which)
                if not which:
                    wrong.append(got)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    onnx.save(graph, folder / "whole" / "new.onnx")
    os.replace(folder / "whole" / "new.onnx", folder / "whole" / "3" / "model.onnx")
    for _ in range(3):
        assert alone.ask("POST", "/v2/repository/models/whole/load") == (200, {})
    for _ in range(8):
        np.testing.assert_allclose(array(alone.infer()), 2 * old, rtol=1e-5)  # whichever worker it is
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert seen == {1, 2}
    assert alone.ask("POST", "/v2/repository/models/tail/unload") == (200, {})
    for _ in range(6):
        assert alone.ask("GET", "/v2/models/tail")[0] == 404
    rows = alone.ask("POST", "/v2/repository/index", {})[1]
    assert {"name": "tail", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"} in rows
    assert all(row["state"] == "READY" for row in alone.ask("POST", "/v2/repository/index", {"ready": True})[1])
    assert alone.ask("POST", "/v2/repository/models/tail/load") == (200, {})
    assert alone.ask("GET", "/v2/models/tail/ready")[0] == 200


def test_what_cannot_be_loaded_is_one_sentence_and_the_old_one_answers(alone, folder):
    (folder / "tail" / "2").mkdir()
    (folder / "tail" / "2" / "model.onnx").write_bytes(b"not a model")
    status, said = alone.ask("POST", "/v2/repository/models/tail/load")
    assert status == 400
    assert "cannot be opened as an ONNX model" in said["error"]
    shutil.rmtree(folder / "tail" / "2")
    assert alone.ask("GET", "/v2/models/tail/ready")[0] == 200
    status, said = alone.ask("POST", "/v2/repository/models/nothing/load")
    assert status == 400
    assert "no source of this service holds a model 'nothing'" in said["error"]
    assert alone.ask("POST", "/v2/repository/models/..%2F..%2Fetc/load")[0] == 400
    assert alone.ask("POST", "/v2/repository/models/nothing/unload")[0] == 404


def test_a_worker_that_starts_after_its_file_was_replaced_serves_what_the_others_do(alone, folder, graphs):
    """The file is another's by then, and nobody has asked for it to be loaded: there is one truth, the old one."""
    hidden = Tensor("hidden", "float32", (-1, 64))
    x = np.ones((1, 64), "float32")

    def tail():
        with socket.create_connection(("127.0.0.1", alone.port), timeout=10) as one:
            one.sendall(wire.infer_request("tail", [(hidden, x)], host="h"))
            return array(answer(one))

    place, old = folder / "tail" / "1" / "model.onnx", tail()
    graph = onnx.load(place)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(graph, place.with_suffix(".new"))
    os.replace(place.with_suffix(".new"), place)
    before = alone.workers()
    for _ in range(2):  # both, one after the other
        gone = alone.workers()[0]
        os.kill(gone, signal.SIGKILL)
        until_s = time.monotonic() + 30
        while gone in alone.workers() or len(alone.workers()) < 2 or not listening(alone.port, 2):
            assert time.monotonic() < until_s
            time.sleep(0.02)
    assert not set(before) & set(alone.workers())
    for _ in range(6):
        np.testing.assert_array_equal(tail(), old)
    assert alone.ask("POST", "/v2/repository/models/tail/load") == (200, {})
    for _ in range(6):
        np.testing.assert_allclose(tail(), 2 * old, rtol=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_was_written_over_where_it_lay_is_read_anew_when_a_worker_has_to(graphs, tmp_path, workers):
    """Nobody has the old one but the workers that live: the one that starts cannot serve it."""
    path = tmp_path / "m.onnx"
    shutil.copy(graphs["whole"], path)
    service = Alone(path, "--workers", workers)
    old = array(service.infer("m"))
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(graph, path)  # as `cp` does
    new = Engine(path).run([ONES])[0]
    gone = service.workers()[0]
    os.kill(gone, signal.SIGKILL)
    until_s = time.monotonic() + 30
    while gone in service.workers() or not listening(service.port, workers):
        assert time.monotonic() < until_s
        time.sleep(0.02)
    for _ in range(6):
        np.testing.assert_array_equal(array(service.infer("m")), new)
    assert not np.array_equal(old, new)
    assert service.stop() == 0


def listening(port, sockets):
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows) == sockets


def test_costly_requests_of_one_connection_go_to_an_idle_worker_that_may_hang_or_die(alone, folder, graphs):
    """Asked all the while on a connection of one worker; what the other has when it is stopped or killed comes back."""
    (folder / "heavy" / "1").mkdir(parents=True)
    shutil.copy(graphs["heavy"], folder / "heavy" / "1" / "model.onnx")
    assert alone.ask("POST", "/v2/repository/models/heavy/load") == (200, {})
    engine, rows = Engine(graphs["heavy"]), np.random.default_rng(1).normal(size=(8, 1, 4))
    rows = [row.astype("float32") for row in rows]
    expected = [engine.run([row])[0] for row in rows]

    def count():
        stats = alone.ask("GET", "/v2/models/heavy/stats")[1]["model_stats"][0]["inference_stats"]
        return stats["success"]["count"], stats["fail"]["count"]

    asked = 0
    with socket.create_connection(("127.0.0.1", alone.port), timeout=60) as one:
        reader = AnswerReader()

        def ask_all(times=1, meanwhile=lambda: None):
            nonlocal asked
            for _ in range(times):
                one.sendall(b"".join(wire.infer_request("heavy", [(X, row)], host="h") for row in rows))
            meanwhile()
            got = []
            while len(got) < times * len(rows):
                data = one.recv(1 << 16)
                assert data, "closed before all was answered"
                got += reader.feed(data)
            for answer, y in zip(got, expected * times, strict=True):
                np.testing.assert_array_equal(array(answer), y)
            asked += len(got)

        ask_all()  # it has been accepted then
        ours = owner(one, alone.workers())
        (other,) = set(alone.workers()) - {ours}
        before_s = spent_s(other)
        while spent_s(other) - before_s < 0.03:
            ask_all()
        assert count() == (asked, 0)  # once each, and the same from both
        ask_all(3, lambda: os.kill(other, signal.SIGSTOP))
        os.kill(other, signal.SIGCONT)
        ask_all(3, lambda: os.kill(other, signal.SIGKILL))
    until_s = time.monotonic() + 30
    while len(alone.workers()) < 2 or not listening(alone.port, 2):
        assert time.monotonic() < until_s
        time.sleep(0.02)
    assert count() == (asked, 0)
    assert alone.ask("POST", "/v2/repository/models/heavy/unload") == (200, {})


def owner(one, pids):
    """Which of these processes has the other end of a connection."""
    port = f":{one.getsockname()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(row[9] for row in rows if row[2].endswith(port))
    return next(
        pid for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(fd) == f"socket:[{inode}]"
    )


def spent_s(pid):
    return time.clock_gettime((~pid << 3) | 2)  # CPU time of a process, as Linux encodes its clock


def test_top_shows_what_is_done_now(alone):
    command = [sys.executable, "-m", "airserve.cli", "top", f"127.0.0.1:{alone.port}", "--once", "--every", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as top:
        while top.poll() is None:
            alone.infer()
        said = top.stdout.read()
    line = next(line.split() for line in said.splitlines() if line.strip().startswith("whole") and " 3 " in line)
    assert float(line[2]) > 0
    assert int(line[-1]) > 0
    with pytest.raises(UserError, match="cannot be watched"):
        counts("127.0.0.1:9")


def refused(*words):
    done = subprocess.run(
        [sys.executable, "-m", "airserve.cli", "serve", *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_cannot_be_served_is_one_sentence(graphs, tmp_path, alone):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x08\x12\x04test")
    assert "bad.onnx cannot be opened" in refused(tmp_path / "bad.onnx")
    assert "0.0.0.0 can be reached from outside and no key" in refused(graphs["whole"], "--host", "0.0.0.0")
    for sources, port, says in (
        ([graphs["whole"]], alone.port, f":{alone.port} cannot be had (address already in use)"),
        ([tmp_path], 0, "holds no model; wanted is"),
        ([tmp_path / "a.onnx"], 0, "cannot be read (No such file"),
        ([graphs["whole"]] * 2, 0, "both hold whole version 1"),
        ([], 0, "there is no model to serve"),
    ):
        with pytest.raises(UserError) as caught:
            Supervisor(Configuration(tuple(map(str, sources)), port=port))
        assert says in str(caught.value)


def test_version_policies(folder, tmp_path):
    shutil.copytree(folder / "whole", tmp_path / "m")
    shutil.copytree(tmp_path / "m" / "3", tmp_path / "m" / "10")

    def versions(policy):
        (tmp_path / "m" / "config.pbtxt").write_text(policy)
        return [offer.endpoint.version for offer in offers(str(tmp_path))]

    assert versions("") == ["10"]  # as Triton does
    assert versions("version_policy: { latest: { num_versions: 2 } }") == ["3", "10"]
    assert versions("version_policy: { specific { versions: [1, 10] } }") == ["1", "10"]
    assert versions("version_policy { all {} }") == ["1", "3", "10"]
    for policy, says in (
        ("version_policy: { specific { versions: [2] } }", "names version 2"),
        ('backend: "python"', "wants python; onnxruntime alone"),
    ):
        with pytest.raises(ModelError, match=says):
            versions(policy)


def test_a_load_beside_so_many_models_that_their_names_are_a_long_message(graphs, tmp_path):
    for k in range(90):
        (tmp_path / f"{'m' * 200}{k}" / "1").mkdir(parents=True)
        shutil.copy(graphs["whole"], tmp_path / f"{'m' * 200}{k}" / "1" / "model.onnx")
    service = Alone(tmp_path)
    for _ in range(2):
        assert service.ask("POST", f"/v2/repository/models/{'m' * 200}7/load")[0] == 200
    assert service.stop() == 0


def test_data_outside_the_folder_of_a_graph_are_not_read(graphs, tmp_path):
    graph = onnx.load(graphs["whole"])
    inside = tmp_path / "m"
    inside.mkdir()
    onnx.save(graph, inside / "in.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    assert [offer.endpoint.name for offer in offers(str(inside / "in.onnx"))] == ["in"]
    external = onnx.load(inside / "in.onnx", load_external_data=False)
    for location in ("../../../etc/passwd", "/etc/passwd", "deep/../../out.bin"):
        for tensor in external.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (inside / "out.onnx").write_bytes(external.SerializeToString())
        with pytest.raises(ModelError, match="outside its folder"):
            offers(str(inside / "out.onnx"))
    # Hidden in a branch of an If: graphs hold nodes, which hold graphs.
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=external.graph, else_branch=external.graph)
    deep = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    (inside / "deep.onnx").write_bytes(deep.SerializeToString())
    with pytest.raises(ModelError, match="outside its folder"):
        offers(str(inside / "deep.onnx"))
    # As what an attribute of a function is where a node does not give it.
    (tensor, *_), function = external.graph.initializer, onnx.FunctionProto(name="f", domain="d")
    function.attribute_proto.append(onnx.AttributeProto(name="a", type=onnx.AttributeProto.TENSOR, t=tensor))
    graph = onnx.load(graphs["whole"])
    graph.functions.append(function)
    (inside / "default.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match="outside its folder"):
        offers(str(inside / "default.onnx"))


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_graph_is_refused_or_read_but_never_more(graphs, tmp_path_factory, noise, at, byte):
    data = bytearray(graphs["whole"].read_bytes())
    data[at % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    for content in (noise, bytes(data)):
        path.write_bytes(content)
        with suppress(ModelError):
            check_graph(path)


def test_a_folder_of_mlflow(graphs, tmp_path):
    shutil.copy(graphs["whole"], tmp_path / "model.onnx")
    text = (
        "flavors:\n  onnx:\n    onnx_version: 1.18.0\n    data: model.onnx\n  python_function:\n    data: model.onnx\n"
    )
    (tmp_path / "MLmodel").write_text(text)
    (offer,) = offers(str(tmp_path))
    assert offer.endpoint.functions[0].path == str(tmp_path / "model.onnx")
    (tmp_path / "MLmodel").write_text(text.replace("data: model.onnx", "data: ../model.onnx"))
    with pytest.raises(ModelError, match="outside its folder"):
        offers(str(tmp_path))
    (tmp_path / "MLmodel").write_text("flavors:\n  sklearn:\n    data: model.pkl\n")
    with pytest.raises(ModelError, match="no flavour onnx"):
        offers(str(tmp_path))
