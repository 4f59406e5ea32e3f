"""From a Plan to processes: what is wanted, the steps to it, and what runs when things are killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from airserve.contract import Deployment, Endpoint, Promise, SiteProcess, from_plain, to_plain
from airserve.errors import Unknown
from airserve.linux import born
from airserve.model import Function
from airserve.network.channels import Channel
from airserve.place import deployment as place
from airserve.place.deployment import DeploymentError, down, status, up, wanted
from airserve.place.description import Factory
from airserve.place.plan import Candidate, Choice, Plan
from airserve.place.sites import RELAY, Unit, units
from airserve.place.sites.null import NullSite
from airserve.place.supervisor import Start, Stop, Supervisor, steps
from airserve.registry import Registry
from airserve.samples import Samples
from airserve.serve import driving

pytestmark = pytest.mark.realtime

PADDED_S = 0.012
FILE = {
    "network": {
        "cells": [{"name": "hall"}],
        "slices": [{"name": "control", "dedicated": 10, "min": 20, "max": 60}, {"name": "video", "min": 30}],
        "sites": [
            {"name": "board", "kind": "device", "cores": 1, "speed": 0.5},
            {"name": "mast", "kind": "edge", "cores": 2, "delay_ms": 1},
            {"name": "region", "kind": "cloud", "cores": 4, "delay_ms": 10},
        ],
    },
    "services": [
        {"name": "alone", "model": "small", "device": "board", "devices": 1, "rate_hz": 10, "slice": "control",
         "promise": {"latency_ms": 60, "percentile": 90}},
        {"name": "sent", "model": "small", "device": "board", "devices": 3, "rate_hz": 10, "slice": "control",
         "promise": {"latency_ms": 80, "percentile": 90}},
        {"name": "split", "model": "small", "device": "board", "devices": 2, "rate_hz": 10, "slice": "video",
         "promise": {"latency_ms": 100, "percentile": 90}},
    ],
}  # fmt: skip


@dataclass(frozen=True)
class World:
    factory: Factory
    plan: Plan
    registry: Registry

    def wanted(self, name: str, port: int) -> Deployment:
        return wanted(self.factory, self.plan, registry=self.registry, name=name, port=port, seed=3)


def graph(nodes: list, x: tuple[str, int], y: tuple[str, int], weights: dict) -> bytes:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(x[0], TensorProto.FLOAT, ["n", x[1]])],
        [helper.make_tensor_value_info(y[0], TensorProto.FLOAT, ["n", y[1]])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def candidate(
    service: str, cut: str, device: tuple[Function, ...], site: tuple[Function, ...], where: str
) -> Candidate:
    none = np.zeros(1)
    return Candidate(
        service, "small@1/fp32", "fp32", cut, "raw", "board", where, device, site, none, none, none, none,
        cut == "input", "accuracy", 1.0, 1.0, 40,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model of 16 numbers to 4, right on every sample; alone on the device, sent to the mast, and cut in two."""
    registry = Registry(tmp_path_factory.mktemp("home"))
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(16, 32)).astype("float32"), rng.normal(size=(32, 4)).astype("float32")
    first = [helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Relu", ["a"], ["hidden"])]
    second = [helper.make_node("MatMul", ["hidden", "w2"], ["y"])]
    whole = graph(first + second, ("x", 16), ("y", 4), {"w1": w1, "w2": w2})
    inputs = rng.normal(size=(50, 16)).astype("float32")
    labels = np.argmax(np.maximum(inputs @ w1, 0) @ w2, axis=1)
    model = registry.register("small", whole, samples=Samples(inputs, labels, calibration=10))
    head = str(registry.store(graph(first, ("x", 16), ("hidden", 32), {"w1": w1}), ".onnx"))
    tail = str(registry.store(graph(second, ("hidden", 32), ("y", 4), {"w2": w2}), ".onnx"))
    factory = Factory.model_validate(FILE)
    tail_function = Function("tail", "tail", tail)
    on_board = Function("small", "model", str(model.path), PADDED_S)
    chosen = (
        candidate("alone", "none", (on_board,), (), ""),
        candidate("sent", "input", (), (Function("small", "model", str(model.path)),), "mast"),
        candidate("split", "hidden", (Function("head", "head", head, PADDED_S),), (tail_function,), "mast"),
    )
    choices = tuple(
        Choice(s.name, s.promise.plain(), c, 1.0, (1.0, 1.0), 0.0, True, "", (), 1, "", ())
        for s, c in zip(factory.services, chosen, strict=True)
        if s.promise is not None
    )
    return World(factory, Plan("", choices, (0.0, 0.0), (0.0, 0.0), 0.2, 0, 0.0), registry)


def free_port() -> int:
    """A port with a few free ones behind it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = int(sock.getsockname()[1])
        if port < 60_000:
            return port


def processes(run_dir: Path) -> list[int]:
    """Every living process whose arguments name a deployment's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and born(int(entry.name)) is not None:
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(run_dir).encode() in words:
                found.append(int(entry.name))
    return found


def gone(run_dir: Path, within_s: float = 5.0) -> bool:
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if not processes(run_dir):
            return True
        time.sleep(0.02)
    return False


def answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


# -- what is wanted ---------------------------------------------------------------------------------------------------


def test_wanted_places_every_function_and_names_every_address(world: World) -> None:
    found = world.wanted("hall", 7800)
    by_key = {process.key: process for process in found.processes}
    assert set(by_key) == {"mast", "board-1", "board-5", "board-6"}
    mast = by_key["mast"]
    assert (mast.host, mast.port, mast.cores, mast.device) == ("127.0.0.1", 7801, 2, -1)
    assert [endpoint.name for endpoint in mast.endpoints] == ["sent", "split-tail"]
    assert (by_key["board-1"].host, by_key["board-1"].port) == ("127.1.0.1", 7800)
    route = by_key["board-6"].endpoints[0].next
    assert route is not None
    assert (route.host, route.port, route.model, route.source) == ("127.2.0.1", 7801, "split-tail", "127.1.0.6")
    assert by_key["board-1"].endpoints[0].next is None
    assert found.air is not None
    assert found.air.devices == tuple(f"127.1.0.{k}" for k in (2, 3, 4, 5, 6))
    assert found.air.slice_of == (0, 0, 0, 1, 1)
    assert found.air.device_of == (0, 1, 2, 3, 4)
    assert [(site.name, site.host, site.upstream_port, site.delay_ms) for site in found.air.sites] == [
        ("mast", "127.2.0.1", 7801, 1.0)
    ]
    assert found.air.tightest_ms == 60
    alone, sent, split = found.askers
    assert (alone.to, alone.site, alone.air) == ("device", "", ())
    assert (sent.to, sent.site, sent.air, sent.compress, sent.encoded) == ("air", "mast", (0, 1, 2), True, False)
    assert (split.to, split.site, split.air) == ("device", "mast", (3, 4))
    assert from_plain(Deployment, json.loads(json.dumps(to_plain(found)))) == found


def test_services_on_one_device_are_channels_of_it(world: World) -> None:
    """Service split on the devices of sent: addresses of its own, and the MAC's device is the same."""
    services = [
        s.model_copy(update={"devices_of": "sent", "channel": Channel(priority=1)}) if s.name == "split" else s
        for s in world.factory.services
    ]
    factory = world.factory.model_copy(update={"services": tuple(services)})
    air = wanted(factory, world.plan, registry=world.registry, port=7800).air
    assert air is not None
    assert len(set(air.devices)) == 5
    assert air.device_of == (0, 1, 2, 0, 1)
    assert [Channel.model_validate(one).priority for one in air.channels] == [None, None, None, 1, 1]


def test_wanted_names_the_original_whose_answers_are_compared(world: World) -> None:
    found = wanted(world.factory, world.plan, registry=world.registry)
    assert {asker.reference for asker in found.askers} == {str(world.registry.get("small").path)}
    model = world.registry.get("small")
    bare = world.registry.register("bare", model.path, samples=Samples(np.zeros((3, 16), np.float32)))
    choices = tuple(
        replace(choice, chosen=replace(choice.chosen, reference="bare@1/int8")) for choice in world.plan.choices
    )
    found = wanted(world.factory, replace(world.plan, choices=choices), registry=world.registry)
    assert {asker.reference for asker in found.askers} == {str(bare.path)}


def test_wanted_refuses_what_cannot_be_deployed(world: World) -> None:
    sized = {"name": "backups", "slice": "video", "devices": 1, "rate_hz": 1, "bytes_up": 10, "bytes_down": 10,
             "compute_ms": 0, "site": "mast"}  # fmt: skip
    factory = Factory.model_validate({**FILE, "services": [*FILE["services"], sized]})
    with pytest.raises(DeploymentError, match="backups has sizes in place of a model"):
        wanted(factory, world.plan, registry=world.registry)
    with pytest.raises(DeploymentError, match="port 70000"):
        wanted(world.factory, world.plan, registry=world.registry, port=70_000)


def test_addresses_of_devices_are_distinct() -> None:
    addresses = [place.device_address(k) for k in range(1, 3000)]
    assert len(set(addresses)) == len(addresses)
    with pytest.raises(DeploymentError, match="at most"):
        place.device_address(70_000)


# -- steps and supervision, on sites that run nothing -----------------------------------------------------------------

A, B = Unit("a", "1", ("h:1",)), Unit("b", "1", ("h:2",))


def test_steps_start_before_they_stop_unless_an_address_is_needed() -> None:
    elsewhere, here = Unit("a", "2", ("h:3",)), Unit("a", "2", ("h:1",))
    assert steps(frozenset({elsewhere, B}), frozenset({A, B})) == [Start(elsewhere), Stop(A)]
    assert steps(frozenset({here}), frozenset({A, B})) == [Stop(A), Start(here), Stop(B)]
    assert steps(frozenset({A, B}), frozenset({A, B})) == []


def test_what_is_changed_in_a_deployment_is_what_is_restarted(world: World) -> None:
    before = world.wanted("hall", 7800)
    endpoint = replace(before.processes[0].endpoints[0], functions=(Function("other", "model", "x.onnx"),))
    after = replace(before, processes=(replace(before.processes[0], endpoints=(endpoint,)), *before.processes[1:]))
    changed = units(after) - units(before)
    assert [unit.key for unit in changed] == [before.processes[0].key]
    assert RELAY in {unit.key for unit in units(before)}


def test_supervisor_restarts_at_once_what_lived_and_later_what_dies_soon() -> None:
    site = NullSite()
    supervisor = Supervisor(site, frozenset({A}))
    supervisor.tick(0.0)
    supervisor.tick(0.1)
    site.started[0].now = "ended"
    supervisor.tick(10.0)
    assert len(site.started) == 2, "it lived ten seconds: no wait"
    supervisor.tick(10.1)
    starts = [10.0]
    now_s = 10.1
    while len(starts) < 6:
        site.started[-1].now = "ended"
        count = len(site.started)
        next_s = supervisor.tick(now_s)
        while len(site.started) == count:
            assert next_s is not None
            now_s = next_s
            next_s = supervisor.tick(now_s)
        starts.append(now_s)
    waits = np.diff(starts[1:])
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert supervisor.state()["a"]["restarts"] == 6


def test_supervisor_frees_an_address_before_it_is_taken_again() -> None:
    site = NullSite()
    supervisor = Supervisor(site, frozenset({A}))
    supervisor.tick(0.0)
    held = site.started[0]
    held.stop = lambda: None  # type: ignore[method-assign]  # it takes its time
    supervisor.wanted = frozenset({Unit("a", "2", ("h:1",))})
    supervisor.tick(1.0)
    assert len(site.started) == 1
    held.now = "ended"
    supervisor.tick(1.1)
    assert [one.unit.digest for one in site.started] == ["1", "2"]
    supervisor.stop(sleep=lambda _: None)
    assert not supervisor.running


# -- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hall(world: World) -> Iterator[Deployment]:
    """The whole deployment, up."""
    deployment = world.wanted("hall", free_port())
    told: list[tuple[int, int]] = []
    up(deployment, world.registry.home, lambda ready, total: told.append((ready, total)))
    assert told[-1] == (5, 5)
    yield deployment
    down("hall", world.registry.home)


def test_drive_measures_what_the_parts_add_up_to(world: World, hall: Deployment) -> None:
    home = world.registry.home
    told: list[float] = []
    run = driving.drive(
        hall, seconds=4, seed=11, run_dir=place.folder("hall", home), progress=lambda done, total: told.append(done)
    )
    assert told == sorted(told)
    assert sum(run.failed.values()) == 0, run.failures
    for asker in hall.askers:
        readings = run.readings[asker.service]
        assert run.sent[asker.service] == len(readings.sent_s) > 8 * len(asker.addresses) * 4
        assert np.isfinite(readings.ms).all(), "every answer has an account"
        assert (readings.ms >= -0.05).all(), readings.ms.min(axis=0)
        score = run.scores[asker.service]
        assert (score.metric, score.value) == ("accuracy", 1.0)
        assert score.n == min(40, run.sent[asker.service])
    by_name = {name: dict(zip([(s.kind, s.direction, s.site) for s in r.spans], r.ms.T, strict=True))
               for name, r in run.readings.items()}  # fmt: skip
    # The oracle: padding and transit are known, and no path can be quicker than their sum.
    assert by_name["alone"]["compute", "", "board"].min() >= 1e3 * PADDED_S
    assert by_name["split"]["compute", "", "board"].min() >= 1e3 * PADDED_S
    for name in ("sent", "split"):
        assert by_name[name]["transit", "up", "mast"].min() >= 1.0
        assert by_name[name]["transit", "down", "mast"] == pytest.approx(1.0, abs=1e-6)
        assert np.median(by_name[name]["wait", "up", "hall"]) > 1.0, "a scheduling request takes its time"
    used = run.usage["control"]["up"]
    assert 0 < used.share_used <= 0.6
    again = driving.load(place.folder("hall", home))
    assert again.scores == run.scores
    assert again.usage == run.usage
    assert np.array_equal(again.readings["split"].ms, run.readings["split"].ms)
    assert again.readings["split"].spans == run.readings["split"].spans


def test_up_twice_is_harmless(world: World, hall: Deployment) -> None:
    before = status("hall", world.registry.home)
    up(hall, world.registry.home)
    after = status("hall", world.registry.home)
    pids = [{key: unit["pid"] for key, unit in found["units"].items()} for found in (before, after)]
    assert pids[0] == pids[1]
    assert before["supervisor"] == after["supervisor"]


def test_a_killed_site_is_back_and_answers_within_3_s(world: World, hall: Deployment) -> None:
    mast = next(process for process in hall.processes if process.site == "mast")
    pid = status("hall", world.registry.home)["units"]["mast"]["pid"]
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    while not (born(pid) is None and answers(mast.host, mast.port)):
        assert time.monotonic() - killed_s < 3.0
        time.sleep(0.02)
    assert status("hall", world.registry.home)["units"]["mast"]["restarts"] == 1


def one_process(name: str, world: World, port: int, model: str = "") -> Deployment:
    function = Function("small", "model", model or str(world.registry.get("small").path))
    process = SiteProcess("mast", "127.0.0.1", port, 1, (Endpoint("small", (function,)),))
    return Deployment(name, (process,), None, ())


def test_down_leaves_no_process_and_may_be_said_twice(world: World) -> None:
    home = world.registry.home
    running = up(one_process("brief", world, free_port()), home)
    assert len(processes(running.run_dir)) == 2
    assert down("brief", home)
    assert processes(running.run_dir) == []
    assert not down("brief", home)
    assert not status("brief", home)["up"]
    with pytest.raises(Unknown, match="perhaps brief"):
        status("brif", home)


def test_status_lists_processes_as_people_count(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = place.folder("many", tmp_path)
    run_dir.mkdir(parents=True)
    (run_dir / "deployment.json").write_text("{}")
    keys = ["@air", "closet", "scanner-1", "scanner-10", "scanner-2"]  # as the supervisor has them
    (run_dir / "state.json").write_text(json.dumps({"units": {key: {"state": "ready"} for key in keys}}))
    monkeypatch.setattr(place, "_supervisor", lambda _: 1)
    assert list(status("many", tmp_path)["units"]) == ["@air", "closet", "scanner-1", "scanner-2", "scanner-10"]


def test_the_only_deployment_needs_no_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="start one with"):
        place.only(tmp_path)
    for name in ("one", "two"):
        place.folder(name, tmp_path).mkdir(parents=True)
        (place.folder(name, tmp_path) / "deployment.json").write_text("{}")
        if name == "one":
            assert place.only(tmp_path) == "one"
    with pytest.raises(DeploymentError, match=r"which deployment: one, two\? Name one"):
        place.only(tmp_path)
    up(one_process("two", world, free_port()), tmp_path)
    assert place.only(tmp_path) == "two"
    down("two", tmp_path)


def test_another_plan_replaces_only_what_differs(world: World) -> None:
    home, port = world.registry.home, free_port()
    other = SiteProcess("region", "127.0.0.1", port + 1, 1, one_process("x", world, port).processes[0].endpoints)
    first = replace(one_process("changing", world, port), processes=(*one_process("x", world, port).processes, other))
    up(first, home)
    before = status("changing", home)["units"]
    copy = place.folder("changing", home) / "copy.onnx"
    copy.write_bytes(world.registry.get("small").path.read_bytes())
    up(replace(first, processes=(*one_process("x", world, port, str(copy)).processes, other)), home)
    after = status("changing", home)["units"]
    assert after["region"]["pid"] == before["region"]["pid"]
    assert after["mast"]["pid"] != before["mast"]["pid"]
    assert born(before["mast"]["pid"]) is None
    down("changing", home)


def test_a_plan_that_does_not_start_leaves_what_ran(world: World) -> None:
    home, port = world.registry.home, free_port()
    other = SiteProcess("region", "127.0.0.1", port + 1, 1, one_process("x", world, port).processes[0].endpoints)
    first = replace(one_process("returning", world, port), processes=(*one_process("x", world, port).processes, other))
    up(first, home)
    before = status("returning", home)["units"]
    broken = replace(first, processes=(*one_process("x", world, port, "/nowhere.onnx").processes, other))
    with pytest.raises(DeploymentError, match="mast does not start"):
        up(broken, home)
    assert place.load("returning", home) == first
    up(first, home)  # waits until all of it is ready again
    assert answers("127.0.0.1", port)
    assert status("returning", home)["units"]["region"]["pid"] == before["region"]["pid"]
    down("returning", home)


def test_children_die_with_a_killed_supervisor_and_down_cleans_up(world: World) -> None:
    home = world.registry.home
    running = up(one_process("orphaned", world, free_port()), home)
    os.kill(running.supervisor, signal.SIGKILL)
    assert gone(running.run_dir)
    assert not status("orphaned", home)["up"]
    assert not down("orphaned", home)
    again = up(one_process("orphaned", world, free_port()), home)
    assert status("orphaned", home)["up"]
    assert down("orphaned", home)
    assert processes(again.run_dir) == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_file_is_one_sentence_and_does_not_stop_down(world: World, damage: bytes) -> None:
    home = world.registry.home
    running = up(one_process("damaged", world, free_port()), home)
    (running.run_dir / "state.json").write_bytes(damage)
    with pytest.raises(DeploymentError, match=r"state\.json is damaged .*airserve down damaged, then airserve up FILE"):
        status("damaged", home)
    assert down("damaged", home)
    assert processes(running.run_dir) == []
    (running.run_dir / "deployment.json").write_bytes(damage)
    with pytest.raises(DeploymentError, match=r"deployment\.json is damaged"):
        place.load("damaged", home)


def test_down_does_not_touch_a_stranger_with_the_number_of_a_dead_supervisor(world: World) -> None:
    home = world.registry.home
    run_dir = place.folder("stale", home)
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "deployment.json").write_text(json.dumps(to_plain(one_process("stale", world, free_port()))))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        state = {"supervisor": {"pid": stranger.pid, "born": born(stranger.pid)}, "deployment": "", "units": {}}
        (run_dir / "state.json").write_text(json.dumps(state))
        assert not down("stale", home)
        assert stranger.poll() is None
        stranger.kill()


def test_what_cannot_start_is_one_sentence_and_leaves_nothing(world: World) -> None:
    home, port = world.registry.home, free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(DeploymentError) as caught:
        up(one_process("taken", world, port), home)
    assert str(port) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert processes(place.folder("taken", home)) == []
    bad = place.folder("taken", home) / "bad.onnx"
    bad.write_bytes(b"no graph")
    with pytest.raises(DeploymentError, match=r"bad\.onnx"):
        up(one_process("taken", world, port, str(bad)), home)
    assert processes(place.folder("taken", home)) == []


def test_interrupting_up_leaves_nothing(world: World) -> None:
    def interrupt(ready: int, total: int) -> None:
        raise KeyboardInterrupt

    home = world.registry.home
    with pytest.raises(KeyboardInterrupt):
        up(one_process("interrupted", world, free_port()), home, interrupt)
    assert processes(place.folder("interrupted", home)) == []


def test_promise_of_the_asker_is_that_of_the_file(world: World) -> None:
    assert world.wanted("hall", 7800).askers[0].promise == Promise(60, 90)
