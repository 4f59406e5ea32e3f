"""Several processes and threads: the same loss curve, nobody left behind, and a measured number of threads."""

import multiprocessing
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
from airserve.registry import Registry


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    """The net has neither norm nor dropout: gradients of two halves of a batch average to that of the whole."""
    alone = train("mlp,epochs=1", "digits", registry=Registry(tmp_path / "alone"), progress=False)
    model = train("mlp,epochs=1", "digits", registry=Registry(tmp_path / "two"), devices=2, progress=False)
    assert multiprocessing.active_children() == []
    assert model.lineage["devices"] == 2
    assert model.lineage["recipe"] == alone.lineage["recipe"]
    one, two = alone.lineage["curve"], model.lineage["curve"]
    assert len(one) == len(two)
    for key in ("train_loss", "loss"):
        assert [each[key] for each in two] == pytest.approx([each[key] for each in one], rel=1e-3)
    assert model.scores["accuracy"] == pytest.approx(alone.scores["accuracy"], abs=0.006)  # two pictures
    assert not list(tmp_path.glob("*/checkpoints/*"))


def test_the_error_of_a_process_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(self: Any, work: Any, *given: Any) -> None:
        """What a process does, here."""
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


def test_threads_are_measured_and_stated(tmp_path: Path) -> None:
    model = train("mlp,epochs=1", "digits", registry=Registry(tmp_path), threads="auto", progress=False)
    assert model.lineage["threads"] in map(int, model.lineage["step_ms"])
    assert all(ms > 0 for ms in model.lineage["step_ms"].values())
