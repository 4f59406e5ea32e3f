"""The driver: it asks on time whatever happens, and three accounts of a request become one that adds up."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import airlog, arrivals, wire
from airserve.contract import (
    Air,
    AirSite,
    Asker,
    Deployment,
    Endpoint,
    Promise,
    Readings,
    SiteProcess,
    Span,
    to_plain,
)
from airserve.model import Engine, Function, Tensor
from airserve.samples import Samples, save_samples
from airserve.serve import driving
from airserve.serve.asking import Asked, AskError, Voice, ask, schedule
from airserve.serve.comparing import Score, judge_drop, score
from airserve.serve.driving import Drive, DriveError, Used
from airserve.serve.joining import Crossings, join
from airserve.serve.validity import why_invalid
from airserve.timing import AirBytes, Timing, format_timing

pytestmark = pytest.mark.realtime

RNG = np.random.default_rng(0)
Answer = Callable[[socket.socket, int], bool]  # with the number of the request; False: the connection is closed


class Stub:
    """A server of whole requests on one port, one thread a connection; `answer` says what happens to each."""

    def __init__(self, host: str, answer: Answer) -> None:
        self.listener = socket.create_server((host, 0))
        self.host, self.port = self.listener.getsockname()
        self.answer = answer
        self.count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        buffer = b""
        with sock:
            while True:
                while b"\r\n\r\n" not in buffer:
                    if not (data := sock.recv(1 << 16)):
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
                while len(buffer) < length:
                    buffer += sock.recv(1 << 16)
                buffer = buffer[length:]
                self.count += 1
                if not self.answer(sock, self.count):
                    return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def right(sock: socket.socket, number: int) -> bool:
    value = np.array([[0.0, 1.0, 0.0]], np.float32)
    timing = format_timing([Timing("queue", 0.1, "board"), Timing("compute", 0.5, "board")])
    sock.sendall(wire.infer_response("m", "1", [(Tensor("y", "float32", (-1, 3)), value)], server_timing=timing))
    return True


@pytest.fixture
def stub() -> Iterator[Callable[[Answer], Stub]]:
    made: list[Stub] = []

    def make(answer: Answer) -> Stub:
        made.append(Stub("127.1.8.1", answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def alone(graphs: dict[str, Path], folder: Path, port: int, rate_hz: float = 40.0, reference: str = "") -> Deployment:
    """One device that answers itself, at the address of a stub."""
    path = folder / "samples.npz"
    labels = None if reference else np.array([9, 9, *[1] * 15, *[0] * 5])
    save_samples(Samples(np.random.default_rng(0).normal(size=(22, 4)).astype("float32"), labels, 2), path)
    endpoint = Endpoint("m", (Function("whole", "model", str(graphs["whole"])),))
    asker = Asker(
        "m", "m", str(path), reference, ("127.1.8.1",), (), rate_hz, "periodic", False, "device", "", "board",
        Promise(50, 99),
    )  # fmt: skip
    return Deployment("test", (SiteProcess("board", "127.1.8.1", port, 1, (endpoint,), 1),), None, (asker,))


def run(deployment: Deployment, seconds: float, seed: int = 1) -> tuple[Asked, float]:
    voice = Voice(deployment, deployment.askers[0])
    asked = schedule(deployment.askers[0], voice.rows, seconds, (seed, 0))
    began_s = ask([voice], [asked], seconds=seconds)
    return asked, began_s


# -- asking -----------------------------------------------------------------------------------------------------------


def test_the_driver_keeps_the_arrival_law_and_shows_every_sample(graphs: dict[str, Path], tmp_path: Path) -> None:
    asker = alone(graphs, tmp_path, 1).askers[0]
    asked = schedule(asker, 20, 5.0, (7, 0))
    sent_s, device = arrivals.times("periodic", 1, 40.0, 5.0, np.random.default_rng((7, 0)))
    assert (asked.sent_s == sent_s).all()
    assert (asked.device == device).all()
    assert sorted(asked.row[:20]) == list(range(20))
    assert sorted(asked.row[20:40]) == list(range(20))


def test_a_slow_server_does_not_slow_the_driver(
    graphs: dict[str, Path], tmp_path: Path, stub: Callable[[Answer], Stub]
) -> None:
    """Open loop against a server that answers nothing until all has been sent: all is sent, each at its time or later,
    and latency counts from then.
    """
    deployment = alone(graphs, tmp_path, 1, rate_hz=50)
    count = len(schedule(deployment.askers[0], 20, 1.0, (1, 0)).sent_s)

    def slow(sock: socket.socket, number: int) -> bool:
        return number < count or all(right(sock, k) for k in range(count))

    server = stub(slow)
    asked, _ = run(alone(graphs, tmp_path, server.port, rate_hz=50), 1.0)
    assert asked.failures == {}
    assert asked.answered == len(asked.sent_s) == server.count == count
    assert (asked.late_s >= 0).all()
    assert (np.diff(asked.done_s) >= 0).all()
    assert asked.done_s.min() >= asked.sent_s.max()
    assert (asked.done_s >= asked.sent_s + asked.late_s).all()


def test_byte_ranges_follow_one_another(
    graphs: dict[str, Path], tmp_path: Path, stub: Callable[[Answer], Stub]
) -> None:
    deployment = alone(graphs, tmp_path, stub(right).port)
    asked, _ = run(deployment, 0.5)
    voice = Voice(deployment, deployment.askers[0])
    up = down = 0
    for k, at in enumerate(asked.bytes_at):
        assert at is not None
        assert at.up == (up, up + len(voice.request(int(asked.row[k]), 0)))
        assert at.down[0] == down < at.down[1]
        up, down = at.up[1], at.down[1]
    assert (asked.answer == 1).all()


def test_a_lost_connection_fails_what_was_on_it_and_is_made_again(
    graphs: dict[str, Path], tmp_path: Path, stub: Callable[[Answer], Stub]
) -> None:
    server = stub(lambda sock, number: number != 5 and right(sock, number))
    asked, _ = run(alone(graphs, tmp_path, server.port, rate_hz=20), 1.5)
    lost = np.flatnonzero(~np.isfinite(asked.done_s))
    assert sum(asked.failures.values()) == len(lost)  # one, or more where the driver sent several at once
    assert lost.tolist() == list(range(4, 4 + len(lost)))  # the fifth is not answered, nor what lay behind it
    assert all(why.startswith("the connection was") for why in asked.failures)
    assert asked.done_s[4 + len(lost) :].size


def test_errors_are_failures_with_their_sentence(
    graphs: dict[str, Path], tmp_path: Path, stub: Callable[[Answer], Stub]
) -> None:
    def refuse(sock: socket.socket, number: int) -> bool:
        sock.sendall(wire.error_response(503, "too much to do."))
        return True

    asked, _ = run(alone(graphs, tmp_path, stub(refuse).port), 0.3)
    assert asked.failures == {"it answers 503: too much to do.": len(asked.sent_s)}
    assert asked.answered == 0


def test_nobody_there_is_one_sentence(graphs: dict[str, Path], tmp_path: Path) -> None:
    with socket.create_server(("127.1.8.1", 0)) as sock:
        port = sock.getsockname()[1]
    deployment = alone(graphs, tmp_path, port)
    with pytest.raises(AskError, match=rf"cannot reach 127\.1\.8\.1:{port}.*is the deployment up\?"):
        run(deployment, 0.2)
    with pytest.raises(DriveError, match=r"does not answer.*is the deployment up\?"):
        driving.drive(deployment, seconds=0.2, seed=0, run_dir=tmp_path)


def test_a_deployment_is_driven_once_at_a_time(graphs: dict[str, Path], tmp_path: Path) -> None:
    """The second says so and leaves the first one's files alone; a drive that was killed locks nobody out."""
    with socket.create_server(("127.1.8.1", 0)) as sock:
        deployment = alone(graphs, tmp_path, sock.getsockname()[1])
    code = (
        "import sys, time, pathlib\nfrom airserve.serve import driving\n"
        "driving._drive = lambda *_: (print('drives', flush=True), time.sleep(60))\n"
        "from airserve.contract import *\n"
        "deployment = from_plain(Deployment, driving._json(pathlib.Path(sys.argv[2])))\n"
        "driving.drive(deployment, seconds=60, seed=0, run_dir=pathlib.Path(sys.argv[1]))"
    )
    (tmp_path / "wanted.json").write_text(json.dumps(to_plain(deployment)))
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "wanted.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "drives\n"
        written = (tmp_path / "driven.json").stat().st_mtime_ns
        with pytest.raises(DriveError, match="is being driven already"):
            driving.drive(deployment, seconds=0.2, seed=0, run_dir=tmp_path)
        assert (tmp_path / "driven.json").stat().st_mtime_ns == written
        first.kill()
    with pytest.raises(DriveError, match="does not answer"):
        driving.drive(deployment, seconds=0.2, seed=0, run_dir=tmp_path)


def test_samples_that_cannot_be_sent_are_refused_before_anybody_asks(graphs: dict[str, Path], tmp_path: Path) -> None:
    deployment = alone(graphs, tmp_path, 1)
    with pytest.raises(AskError, match="no samples to ask with"):
        Voice(deployment, replace(deployment.askers[0], samples=""))
    path = tmp_path / "other.npz"
    for samples, said in (
        (Samples(np.zeros((3, 4)), None, 0), "x is float64; it should be float32"),
        (Samples(np.zeros((3, 4), np.float32), None, 3), "no samples but those that calibrated"),
    ):
        save_samples(samples, path)
        with pytest.raises(AskError, match=said):
            Voice(deployment, replace(deployment.askers[0], samples=str(path)))


# -- scores -----------------------------------------------------------------------------------------------------------


def test_score_counts_distinct_samples_against_labels(graphs: dict[str, Path], tmp_path: Path) -> None:
    deployment = alone(graphs, tmp_path, 1)
    voice = Voice(deployment, deployment.askers[0])
    n = 40
    asked = Asked(np.arange(n) / 10, np.zeros(n, int), np.arange(n) % 20, np.zeros(n), np.zeros(n), np.ones(n, int))
    asked.done_s[20:30] = np.nan
    # rows 0 to 14 are labelled 1, 15 to 19 are labelled 0, and every answer is 1
    assert score(deployment.askers[0], voice.samples, asked, rng=RNG) == Score("accuracy", 0.75, 20)
    asked.answer[30:35] = 0  # rows 10 to 14 are right once and wrong once
    assert score(deployment.askers[0], voice.samples, asked, rng=RNG).value == pytest.approx((10 + 5 * 0.5) / 20)


def test_one_number_is_scored_by_what_it_explains(graphs: dict[str, Path], tmp_path: Path) -> None:
    """Answers off by half the labels' deviation leave a quarter of their variance."""
    deployment = alone(graphs, tmp_path, 1)
    labels = np.array([[0.0], [2.0]] * 10, np.float32)
    samples = Samples(np.zeros((20, 16), np.float32), labels)
    n = 40
    asked = Asked(np.arange(n) / 10, np.zeros(n, int), np.arange(n) % 20, np.zeros(n), np.zeros(n), np.zeros(n))
    asked.answer[:] = labels[asked.row, 0] + 0.5
    asked.numbers = True
    assert score(deployment.askers[0], samples, asked, rng=RNG) == Score("r2", 0.75, 20)


def test_without_labels_the_reference_model_is_right(graphs: dict[str, Path], tmp_path: Path) -> None:
    deployment = alone(graphs, tmp_path, 1, reference=str(graphs["whole"]))
    voice = Voice(deployment, deployment.askers[0])
    asked = schedule(deployment.askers[0], voice.rows, 0.5, (0, 0))
    outputs = Engine(graphs["whole"]).run([voice.samples.inputs])[0]
    asked.answer[:] = outputs.argmax(axis=1)[asked.row]
    asked.done_s[:] = 1.0
    found = score(deployment.askers[0], voice.samples, asked, rng=RNG)
    assert found == Score("agreement", 1.0, len(set(asked.row)), 1.0, (0.0, 0.0))


def test_a_drop_is_between_answers_to_the_same_samples(graphs: dict[str, Path], tmp_path: Path) -> None:
    """The original serves, so nothing falls, whatever the run asked; a sample counts once, and few have no interval."""
    deployment = alone(graphs, tmp_path, 1)
    asker = replace(deployment.askers[0], reference=str(graphs["whole"]))
    samples = Voice(deployment, asker).samples
    original = Engine(graphs["whole"]).run([samples.inputs])[0].argmax(axis=1)
    few, rows = np.array([3, 4, 7, 7, 16, 19]), np.array([0, 1, 2, 3, 4, 5, 7, 7, 11, 16, 19])
    for row, interval in ((few, None), (rows, (0.0, 0.0))):
        n = len(row)
        asked = Asked(np.arange(n), np.zeros(n, int), row, np.zeros(n), np.ones(n), original[row].astype(float))
        same = score(asker, samples, asked, rng=RNG)
        assert (same.drop, same.drop_interval, same.n) == (0.0, interval, n - 1)
    assert samples.labels is not None
    assert same.value == same.before == pytest.approx(np.mean((original == samples.labels)[np.unique(rows)]))
    asked.answer[:] = 2  # no label: all that the original had right is lost
    lost = score(asker, samples, asked, rng=RNG)
    assert lost.drop == lost.before == same.value
    assert lost.drop_interval is not None
    assert lost.drop_interval[0] <= lost.drop <= lost.drop_interval[1]
    asked.done_s[:] = np.nan
    assert score(asker, samples, asked, rng=RNG).before is None


@pytest.mark.parametrize(
    ("allowed", "planned", "interval", "word"),
    [
        (None, 0.5, (0.4, 0.5), None),  # nothing was promised
        (0.0, 0.0, (0.0, 0.0), "kept"),  # the original itself
        (0.01, 0.0, (0.02, 0.1), "not kept"),  # whatever was planned
        (0.01, 0.0, (0.0, 0.075), "kept"),  # one of 40 samples: the plan had more of them
        (0.01, None, (0.0, 0.075), "too close to call"),
        (0.01, 0.02, (0.0, 0.075), "too close to call"),
        (0.01, 0.02, (0.0, 0.0), "too close to call"),  # 40 samples in which none differed; the plan saw that some do
        (0.01, None, (0.0, 0.0), "kept"),
        (0.01, 0.02, None, "not kept"),  # the run did not ask the original
        (0.01, None, None, None),
    ],
)
def test_a_promise_of_accuracy_is_judged_by_run_and_plan(
    allowed: float | None, planned: float | None, interval: tuple[float, float] | None, word: str | None
) -> None:
    assert judge_drop(allowed, planned, Score("accuracy", 0.9, 40, 0.9, interval)) == word


# -- joining ----------------------------------------------------------------------------------------------------------


def logged(sizes: list[int], direction: int, begin_s: float, port: int = 5000, connection: int = 0) -> np.ndarray:
    """A connection's records in one direction, 10 ms apart: granted after 2, delivered after 3, released after 5 ms."""
    rows = np.zeros(len(sizes), airlog.RECORD)
    rows["device"], rows["port"], rows["connection"], rows["direction"] = 4, port, connection, direction
    rows["nbytes"], rows["end"] = sizes, np.cumsum(sizes)
    rows["arrived_s"] = begin_s + 0.01 * np.arange(len(sizes))
    for name, after_s in (("granted_s", 0.002), ("delivered_s", 0.003), ("released_s", 0.005)):
        rows[name] = rows["arrived_s"] + after_s
    return rows


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 400), min_size=2, max_size=2, unique=True),
)
def test_bytes_are_found_where_brute_force_finds_them(sizes: list[int], cuts: list[int]) -> None:
    low, high = sorted(cut % (sum(sizes) + 1) for cut in cuts)
    if low == high:
        return
    log = logged(sizes, 1, 100.0)
    found = Crossings(log).find(4, 5000, 1, (low, high), 0.0)
    owner = np.repeat(np.arange(len(sizes)), sizes)  # of every byte
    assert found is not None
    assert found.arrived_s == log["arrived_s"][owner[low]]
    assert found.granted_s == log["granted_s"][owner[low]]
    assert found.released_s == log["released_s"][owner[high - 1]]


def test_a_port_used_twice_is_told_apart_by_time() -> None:
    log = np.concatenate([logged([10, 10], 1, 100.0), logged([10, 10], 1, 200.0, connection=9)])
    crossings = Crossings(log)
    first, second = (crossings.find(4, 5000, 1, (0, 10), since_s) for since_s in (50.0, 150.0))
    assert first is not None
    assert second is not None
    assert (first.arrived_s, second.arrived_s) == (100.0, 200.0)
    assert crossings.find(4, 5000, 1, (0, 10), 250.0) is None
    assert crossings.find(4, 5000, 1, (15, 25), 0.0) is None
    assert crossings.find(4, 5001, 1, (0, 10), 0.0) is None


def over_air(to: str) -> tuple[Deployment, Asker, Asked]:
    site = AirSite("mast", "127.2.0.1", 1, "127.0.0.1", 1, 1.5)
    air = Air({"cells": [{"name": "hall"}], "slices": [{"name": "all"}]}, ("a",) * 5, (0,) * 5, (site,), 0, 50.0)
    asker = Asker(
        "m", "m", "", "", ("127.1.0.1",), (4,), 1.0, "periodic", False, to, "mast", "board", Promise(50, 99)
    )  # fmt: skip
    one = np.zeros(1)
    asked = Asked(one + 0.25, one.astype(int), one.astype(int), one + 1e-4, one + 0.290, one.astype(int))
    return Deployment("t", (), air, (asker,)), asker, asked


def test_spans_of_a_request_over_the_air_by_hand() -> None:
    deployment, asker, asked = over_air("air")
    asked.bytes_at = [AirBytes(5000, (0, 20), (0, 10))]
    asked.timing = ['queue;dur=0.1;desc="mast", compute;dur=4.000;desc="mast"']
    up, down = logged([12, 8], 1, 100.251), logged([10], 0, 100.280)
    readings, unexplained = join(deployment, asker, asked, np.concatenate([down, up]), 100.0)
    names = [(s.kind, s.direction, s.site) for s in readings.spans]
    assert names == [
        ("wait", "up", "hall"), ("air", "up", "hall"), ("transit", "up", "mast"), ("queue", "", "mast"),
        ("compute", "", "mast"), ("transit", "down", "mast"), ("wait", "down", "hall"), ("air", "down", "hall"),
    ]  # fmt: skip
    # sent .250; up .251 to .261, granted .253, delivered .264, released .266; down leaves .2785, at the radio .280
    assert readings.ms[0] == pytest.approx([3, 11, 2, 8.5, 4, 1.5, 2, 8])
    assert readings.latency_ms[0] == pytest.approx(40)
    assert unexplained == 0


def test_spans_of_a_head_and_its_tail_by_hand() -> None:
    deployment, asker, asked = over_air("device")
    asked.bytes_at = [AirBytes(1, (0, 5), (0, 5))]
    asked.timing = [
        'queue;dur=0.1;desc="board", compute;dur=6.000;desc="board", air;desc="5000:0-20:0-10";dur=30.0, '
        'queue;dur=0.1;desc="mast", compute;dur=4.000;desc="mast"'
    ]
    up, down = logged([20], 1, 100.260), logged([10], 0, 100.280)
    readings, unexplained = join(deployment, asker, asked, np.concatenate([down, up]), 100.0)
    # before the relay 10 ms, 6 of them compute; after the release at .285 another 5 ms
    assert readings.ms[0] == pytest.approx([9, 6, 2, 1, 2, 9.5, 4, 1.5, 2, 3])
    assert readings.latency_ms[0] == pytest.approx(40)
    assert unexplained == 0
    assert [s.site for s in readings.spans[:2]] == ["board", "board"]


def test_an_answer_without_account_is_counted() -> None:
    deployment, asker, asked = over_air("air")
    asked.bytes_at = [AirBytes(5000, (0, 20), (0, 10))]
    asked.timing = ['compute;dur=4.000;desc="mast"']
    readings, unexplained = join(deployment, asker, asked, logged([20], 1, 100.251), 100.0)
    assert unexplained == 1
    assert np.isnan(readings.ms).all()
    asked.timing = ["compute;dur=much"]
    assert join(deployment, asker, asked, logged([20], 1, 100.251), 100.0)[1] == 1


# -- the run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late_ms", "driver_ms", "over_ms", "unexplained", "said"),
    [
        (5.1, 0.1, 0, 0, "the relay released 5.1 ms late"),
        (0.1, 5.1, 0, 0, "the driver sent 5.1 ms late"),
        (0.1, 0.1, 5.1, 0, "m computed 5.1 ms longer than on the emulated site"),
        (0.1, 0.1, 0, 1, "1 of 100 answers"),
        (5.0, 5.0, 5.0, 0, ""),
    ],
)
def test_when_a_run_does_not_count(
    late_ms: float, driver_ms: float, over_ms: float, unexplained: int, said: str
) -> None:
    deployment, _, _ = over_air("air")
    zeros = np.zeros(100)
    asked = Asked(zeros, zeros, zeros, zeros, zeros, zeros)
    over = {asker.service: over_ms for asker in deployment.askers}
    why = why_invalid(deployment, [asked], late_ms, driver_ms, over, unexplained)
    assert why.startswith(said) if said else why == ""


def test_a_run_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    ms = np.array([[1.0, 2.0], [np.nan, np.nan]])
    readings = Readings(
        "m", (Span("queue", "", "board"), Span("compute", "", "board")), np.array([0.1, 0.2]), np.array([0, 1]), ms
    )
    made = Drive(
        {"m": readings}, {"m": Score("accuracy", 0.5, 2)}, {"m": 2}, {"m": 1}, {"m": 1}, {"m": {"it broke": 1}},
        3.0, 4, 0.1, 0.2, 0, {"m": 0.0}, False, "it is a test.", {"driver": "SCHED_OTHER"},
        {"all": {"up": Used(0.5, 1.0, (0.4, 0.6)), "down": Used(0.0, 0.0, ())}}, "a plan's digest",
    )  # fmt: skip
    with pytest.raises(DriveError, match="holds no run"):
        driving.load(tmp_path)
    driving.save(made, tmp_path)
    path = driving.save(replace(made, seed=5), tmp_path)
    assert path.name == "drive-002.json"
    for number, seed in ((None, 5), (1, 4), (2, 5)):
        found = driving.load(tmp_path, number)
        assert found.seed == seed
        np.testing.assert_array_equal(found.readings["m"].ms, ms)
        assert replace(found, readings={}, seed=0) == replace(made, readings={}, seed=0)
        assert found.readings["m"].spans == readings.spans
    with pytest.raises(DriveError, match="no run 7"):
        driving.load(tmp_path, 7)


def test_the_driver_is_light() -> None:
    code = (
        "import sys, airserve.serve.driving\n"
        "heavy = {'torch', 'numba', 'pydantic', 'sqlalchemy', 'airserve.place', 'airserve.network'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
