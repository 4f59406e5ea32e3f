"""Several processes and threads: the same loss curve, nobody left behind, and a measured number of threads."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from airserve.errors import UserError
from airserve.learn import computing, distributing
from airserve.learn.computing import fastest
from airserve.learn.training import train
from airserve.model import Model
from airserve.registry import Registry

SCRIPT = '''
"""One training in two processes, one that Ctrl-C ends after its second epoch and that goes on, and one in one process.

They are forked, for this process has computed no gradients before the last: it starts them without their imports.
"""
import json, os, signal, sys
from pathlib import Path

from airserve.learn import checkpoints, distributing
from airserve.learn.training import train
from airserve.model import ModelError
from airserve.registry import Registry

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in its background without
distributing.BACKEND = "ddp_fork"
NET = "mlp,epochs=3,hidden=16,pretrain=contrastive"
save, home, found = checkpoints.Checkpoint.save, Path(sys.argv[1]), {}


def save_and_press(self, state):
    """What a terminal does at Ctrl-C: all processes of its group are interrupted."""
    save(self, state)
    if self.path.is_relative_to(home / "cut") and len(state.get("curve", ())) == 2:
        os.killpg(0, signal.SIGINT)


def save_nothing(self, state):
    """What the first process, which alone saves, meets on a full disk."""
    raise ModelError("the disk is full")


def left(name):
    """Its checkpoints, without what a pretext found, which is for others to take."""
    names = [path.name for path in home.glob(f"{name}/checkpoints/*")]
    return [name for name in names if not name.startswith("contrastive-")]


def learn(name, devices=2):
    registry = Registry(home / name)
    model = train(NET, "digits", registry=registry, devices=devices, progress=False)
    found[name] = {"digest": model.digest, "scores": dict(model.scores), **model.lineage, "left": left(name)}


checkpoints.Checkpoint.save = save_and_press
try:
    learn("cut")
except KeyboardInterrupt:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    models = Registry(home / "cut").models()
    found["interrupted"] = {"children": children, "checkpoints": len(left("cut")), "models": len(models)}
checkpoints.Checkpoint.save = save_nothing
try:
    learn("full")
except ModelError as error:
    found["refused"] = str(error)
checkpoints.Checkpoint.save = save
for name, devices in (("cut", 2), ("whole", 2), ("alone", 1)):
    learn(name, devices)
print(json.dumps(found))
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script says, run as the head of a group of processes of its own."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("two"))]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_two_processes_learn_as_one(found: dict[str, Any]) -> None:
    """The net has neither norm nor dropout: gradients of two halves of a batch average to that of the whole."""
    whole, alone = found["whole"], found["alone"]
    assert whole["devices"] == 2
    assert whole["recipe"] == alone["recipe"]
    assert whole["epochs"] == alone["epochs"] == 3
    for key in ("train_loss", "loss"):
        one, two = ([each[key] for each in model["curve"]] for model in (alone, whole))
        assert two == pytest.approx(one, rel=1e-3)
    assert whole["scores"]["accuracy"] == pytest.approx(alone["scores"]["accuracy"], abs=0.006)  # two pictures
    assert whole["left"] == []


def test_two_processes_go_on_to_the_same_bits_after_ctrl_c(found: dict[str, Any]) -> None:
    whole, resumed = found["whole"], found["cut"]
    assert found["interrupted"] == {"children": [], "checkpoints": 1, "models": 0}
    assert resumed["digest"] == whole["digest"]
    assert [each["loss"] for each in resumed["curve"]] == [each["loss"] for each in whole["curve"]]
    spent_s = [each["cpu_s"] for each in resumed["curve"]]
    assert spent_s == sorted(spent_s)
    assert resumed["left"] == []
    assert resumed["pretrained"]["weights"] == whole["pretrained"]["weights"] == found["alone"]["pretrained"]["weights"]


def test_the_error_of_one_process_is_that_of_all(found: dict[str, Any]) -> None:
    """The other one fails at what it hears no more of, which says nothing."""
    assert found["refused"] == "the disk is full"


def test_the_error_of_a_process_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(self: Any, work: Any, *given: Any) -> None:
        """What a process does, here; it starts with nothing, so that all must survive being written and read."""
        work, given = pickle.loads(pickle.dumps((work, given)))
        work(Fabric(accelerator="cpu", devices=1), *given)

    monkeypatch.setattr(Fabric, "launch", launch)
    with pytest.raises(UserError, match=r"its loss is (nan|inf) at step \d+ of epoch 1") as caught:
        train("mlp,rate=1e30", "digits", registry=Registry(tmp_path), devices=2, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="a batch of 255 cannot be divided among 2 processes"):
        train("mlp,batch=255", "digits", registry=Registry(tmp_path), devices=2, progress=False)


def test_an_interrupt_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    started = []

    def launch(*given: Any) -> None:
        started.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)))
        started[0].start()
        raise KeyboardInterrupt

    mine.start()
    monkeypatch.setattr(Fabric, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        distributing.spread(2, "32-true", "mlp", "digits", 0, False, tmp_path, torch.nn.Linear(1, 1))
    assert not started[0].is_alive()
    assert mine.is_alive()
    mine.kill()
    mine.join()


def test_threads_are_chosen_by_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes as fast as the threads say; a second thread must gain a tenth."""
    before = torch.get_num_threads()
    for cost_s, wanted in (({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 0.95}, 1), ({1: 1.0, 2: 2.0}, 1)):
        now_s = [0.0]
        monkeypatch.setattr(computing.time, "perf_counter", lambda now_s=now_s: now_s[0])

        def step(now_s: list[float] = now_s, cost_s: dict[int, float] = cost_s) -> None:
            now_s[0] += cost_s[torch.get_num_threads()]

        best, found_ms = fastest(step, most=2)
        assert (best, found_ms) == (wanted, {key: value * 1e3 for key, value in cost_s.items()})
    assert torch.get_num_threads() == before


def test_a_number_of_threads_or_devices_that_is_none_is_refused_though_the_model_is_known(perceptron: Model) -> None:
    registry = Registry(perceptron.path.parent.parent)
    assert train("mlp", "digits", registry=registry, progress=False, threads="2").digest == perceptron.digest
    for threads in ("x", "0", -1):
        with pytest.raises(UserError, match=f"threads={threads} is neither a number from 1 nor auto"):
            train("mlp", "digits", registry=registry, progress=False, threads=threads)
    with pytest.raises(UserError, match="cannot be divided among 7 processes"):
        train("mlp", "digits", registry=registry, progress=False, devices=7)


def test_threads_are_measured_and_stated(tmp_path: Path) -> None:
    model = train("mlp,epochs=1", "digits", registry=Registry(tmp_path), threads="auto", progress=False)
    assert model.lineage["threads"] in map(int, model.lineage["step_ms"])
    assert all(ms > 0 for ms in model.lineage["step_ms"].values())
