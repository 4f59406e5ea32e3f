"""What is served next: of a registry that takes its time, from files that are replaced meanwhile."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import uvloop
from onnx import numpy_helper

from airserve.contract import SiteProcess, to_plain
from airserve.model import Engine, ModelError
from airserve.serve import inquiring, working
from airserve.serve.configuration import Configuration
from airserve.serve.holding import Holder
from airserve.serve.inquiring import Inquiry
from airserve.serve.lineup import Lineup
from airserve.serve.metering import Table
from airserve.serve.offering import offers
from airserve.serve.service import Service
from airserve.serve.starting import ONE_THREAD
from airserve.serve.supervising import NOBODY, Supervisor
from airserve.serve.working import Models

X = np.ones((1, 4), "float32")


def test_workers_are_looked_after_while_the_registry_is_asked(graphs, tmp_path, monkeypatch):
    """A load of a Model of the registry waits for its answer; the supervisor does not, and other changes do."""
    answer, gate = tmp_path / "answer", tmp_path / "gate"

    def answers(version):
        about = {"name": "whole", "variant": "fp32", "version": version, "aliases": [], "path": str(graphs["whole"])}
        answer.write_text(json.dumps({**about, "runtimes": {"1": {"engine": "onnxruntime"}}}))

    answers(1)
    monkeypatch.setattr(inquiring, "question", lambda reference: ["cat", str(answer)])
    supervisor = Supervisor(Configuration(("whole", str(graphs["tail"])), port=0))
    script = f"while [ ! -e {gate} ]; do sleep 0.01; done; cat {answer}"
    monkeypatch.setattr(inquiring, "question", lambda reference: ["sh", "-c", script])
    told = []
    supervisor._answer = lambda asker, error: told.append((asker[1], error))
    answers(2)
    for number, (what, model) in enumerate((("load", "whole"), ("unload", "tail"), ("load", "nothing"))):
        supervisor._asked.append((NOBODY, number, what, model))
    for _ in range(3):
        supervisor._turn(0.01)  # comes back
        assert supervisor._inquiry is not None
        assert told == []
    gate.touch()
    until_s = time.monotonic() + 30
    while len(told) < 3:
        assert time.monotonic() < until_s
        supervisor._turn(0.01)
    assert told[:2] == [(0, None), (1, None)]
    assert "no source of this service holds a model 'nothing'" in told[2][1]
    assert [offer.key for offer in supervisor._lineup.offers] == [("whole", "2")]
    supervisor._end()


def test_a_worker_that_has_followed_too_late_is_not_taken_to_have_followed_the_next_change(graphs):
    supervisor = Supervisor(Configuration((str(graphs["whole"]), str(graphs["tail"])), port=0))
    slow, told = SimpleNamespace(number=0, joined=True, generation=0, said=[]), []
    slow.say = lambda **message: slow.said.append(message)
    supervisor._workers[0] = slow
    supervisor._answer = lambda asker, error: told.append((asker[1], error))
    supervisor._asked.append((NOBODY, 1, "load", "whole"))
    supervisor._advance(0.0)
    supervisor._advance(supervisor._change.until_s + 1.0)
    assert told == [(1, "a worker did not load the model in time.")]
    supervisor._asked.append((NOBODY, 2, "load", "tail"))
    supervisor._advance(0.0)
    first, dropped, second = slow.said
    assert (first["do"], dropped["do"], second["do"]) == ("prepare", "drop", "prepare")
    supervisor._hear(slow, {"say": "done", "step": "prepare", "change": first["change"], "error": ""})
    supervisor._advance(0.0)
    assert supervisor._change.step == "prepare"
    supervisor._hear(slow, {"say": "done", "step": "prepare", "change": second["change"], "error": ""})
    supervisor._advance(0.0)
    assert supervisor._change.step == "turn"
    supervisor._hear(slow, {"say": "done", "step": "turn", "change": second["change"], "error": ""})
    supervisor._advance(0.0)
    assert told[1:] == [(2, None)]
    supervisor._workers.clear()
    supervisor._end()


def test_what_no_error_names_ends_a_change_and_not_the_service(graphs, monkeypatch, caplog):
    """As a folder that is taken away while it is read."""
    supervisor = Supervisor(Configuration((str(graphs["whole"]),), port=0))
    told = []
    supervisor._answer = lambda asker, error: told.append(error)

    def gone(model, source):
        raise FileNotFoundError("/a/secret/path")

    monkeypatch.setattr(supervisor._lineup, "loaded", gone)
    supervisor._asked.append((NOBODY, 0, "load", "whole"))
    supervisor._turn(0.01)
    assert told == ["it could not be read (FileNotFoundError); the service's log says where."]
    assert "/a/secret/path" in caplog.text
    assert [offer.key for offer in supervisor._lineup.offers] == [("whole", "1")]
    supervisor._end()


def test_a_worker_for_whom_there_is_no_process_is_started_later(graphs, monkeypatch, capsys):
    supervisor = Supervisor(Configuration((str(graphs["whole"]),), port=0))

    def none():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fork", none)
    supervisor._again_s[0] = 0.0
    supervisor._turn(0.01)
    assert capsys.readouterr().err == "worker 0 cannot be started yet (Resource temporarily unavailable).\n"
    assert supervisor._again_s[0] > time.monotonic()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}
    supervisor._end()


def test_a_registry_that_has_no_answer_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(inquiring, "question", lambda reference: ["sh", "-c", "echo 'airserve: no such.' >&2; exit 2"])
    with pytest.raises(ModelError, match=r"^no such\.$"):
        Inquiry("whole").answer()
    with pytest.raises(ModelError, match=r"^no/file is not there, and no such\.$"):
        Inquiry("no/file").answer()
    monkeypatch.setattr(inquiring, "question", lambda reference: ["sleep", "60"])
    monkeypatch.setattr(inquiring, "WITHIN_S", 0.02)
    before = len(os.listdir("/proc/self/fd"))
    slow = Inquiry("slow")
    while not slow.done():
        time.sleep(0.005)
    with pytest.raises(ModelError, match="does not tell of slow"):
        slow.answer()
    Inquiry("given up").close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_model_is_loaded_by_its_whole_name_and_leaves_what_comes_from_elsewhere(graphs, monkeypatch):
    def question(reference):
        rest, _, variant = reference.partition("/")
        name, _, version = rest.partition("@")
        about = {"name": name, "variant": variant or "fp32", "version": int(version or 3), "aliases": []}
        about |= {"path": str(graphs["whole"]), "runtimes": {"1": {"engine": "onnxruntime"}}}
        return ["echo", json.dumps(about)]

    monkeypatch.setattr(inquiring, "question", question)
    lineup = Lineup(Configuration(("m@1", "m@2", "n/int8", "tiny-int8")), Table(1))
    for source, name, key in (
        ("m@1", "m", ("m", "1")), ("n/int8", "n-int8", ("n-int8", "3")), ("tiny-int8", "tiny-int8", ("tiny-int8", "3")),
    ):  # fmt: skip
        assert lineup.source(name) == source
        offers = lineup.loaded(name, source, Inquiry(source))
        assert offers[-1].key == key
        assert sorted(offers, key=str) == sorted(lineup.offers, key=str)  # each once, where it is counted
    for name in ("m-int8", "n", "tiny"):
        with pytest.raises(ModelError, match=f"holds a model '{name}'"):
            lineup.source(name)
    with pytest.raises(ModelError, match="m@1 holds no version of m-int8"):
        lineup.loaded("m-int8", "m@1", Inquiry("m@1"))


@pytest.mark.parametrize("when", ["before it is loaded", "while it is loaded", "not held", "in place"])
def test_a_file_that_is_replaced_is_loaded_as_the_others_have_it(graphs, tmp_path, monkeypatch, when):
    path, new = tmp_path / "m.onnx", tmp_path / "new.onnx"
    shutil.copy(graphs["whole"], path)
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(graph, new)
    expected, (offer,), holder = Engine(path).run([X])[0], offers(str(path)), Holder()
    holder.hold([offer])
    held = ["" if when == "not held" else holder.held([offer])[0]]

    def replace():
        if when == "in place":
            path.write_bytes(new.read_bytes())
        elif new.exists():
            os.replace(new, path)

    if when == "while it is loaded":
        opened = working.Served

        def served(*given):
            replace()
            return opened(*given)

        monkeypatch.setattr(working, "Served", served)
    else:
        replace()

    async def run():
        service = Service(SiteProcess("s", "h", 0, 1, ()))
        models = Models(service, Configuration(()), (None, SimpleNamespace(write=None)))
        try:
            models.prepare([offer], held)
            models.turn()
            return service.endpoint("m").work([X])[0]
        finally:
            service.close()

    if when in ("not held", "in place"):
        with pytest.raises(ModelError, match="m was written while it was loaded; load it again"):
            uvloop.run(run())
    else:
        np.testing.assert_array_equal(uvloop.run(run()), expected)
        with pytest.raises(AssertionError):
            np.testing.assert_array_equal(Engine(path).run([X])[0], expected)
    holder.keep([])


def test_a_worker_follows_on_after_what_no_error_names_and_closes_what_it_gives_up(graphs, monkeypatch, caplog):
    """Loads of three models: the last cannot be loaded, then can but is dropped, then is served."""
    made, opened, closed = working.Served, [], []

    class Served:
        def __init__(self, endpoint, *given):
            opened.append(endpoint.name)
            if len(opened) == 3:
                raise TypeError("in /a/secret/path")
            self.served = made(endpoint, *given)

        def __getattr__(self, name):
            return getattr(self.served, name)

        def close(self):
            closed.append(self.name)
            self.served.close()

    monkeypatch.setattr(working, "Served", Served)
    offered = [offer for name in ("whole", "tail", "head") for offer in offers(str(graphs[name]))]
    load = {"do": "prepare", "change": 0, "offers": to_plain(offered), "held": ["", "", ""]}
    said = []

    async def run():
        reader = asyncio.StreamReader()
        for message in (load, load, {"do": "drop"}, load, {"do": "turn", "change": 0}):
            reader.feed_data(json.dumps(message).encode() + b"\n")
        reader.feed_eof()
        service = Service(SiteProcess("s", "h", 0, 1, ()))
        await Models(service, Configuration(()), (reader, SimpleNamespace(write=said.append))).follow()
        assert [one.name for one in service.served] == ["whole", "tail", "head"]
        assert closed == ["whole", "tail", "whole", "tail", "head"]
        service.close()

    uvloop.run(run())
    error, *others = [json.loads(line)["error"] for line in said]
    assert error == "a worker failed to load it (TypeError); its log says where."
    assert others == ["", "", ""]
    assert "secret" in caplog.text


def test_nothing_is_held_of_what_is_served_no_more(graphs):
    made, holder = offers(str(graphs["whole"])) + offers(str(graphs["tail"])), Holder()
    holder.hold(made)
    assert all(map(os.path.exists, holder.held(made)))
    holder.keep(made[1:])
    first, second = holder.held(made)
    assert (first, os.path.realpath(second)) == ("", str(graphs["tail"]))
    holder.keep([])


def test_what_is_loaded_before_workers_are_forked_starts_no_thread():
    """A fork has only the thread that forks: what another holds, or would do, is lost."""
    code = (
        "import os\nfrom airserve.serve import working\nfrom airserve.serve.configuration import Configuration\n"
        "working.preload(Configuration((), grpc_port=0))\nprint(len(os.listdir('/proc/self/task')))"
    )
    alone = {**os.environ, **ONE_THREAD}
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
