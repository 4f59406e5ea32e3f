"""Queues against queueing theory, and requests against their flows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.arrivals import ArrivalError, draw
from airserve.network.traffic import Flow, TrafficError, queue_starts, requests

SEEDS = [np.random.SeedSequence(1)]


def mean_wait_s(rng, rate_hz, seconds, servers):
    at = np.cumsum(rng.exponential(1 / rate_hz, len(seconds)))
    return (queue_starts(at, seconds, np.zeros(len(at), np.int64), np.zeros((1, servers))) - at).mean()


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_wait_is_that_of_m_m_1(load):
    """rho / (mu - lambda), here with mu = 10 a second."""
    rng = np.random.default_rng(1)
    wait = mean_wait_s(rng, 10 * load, rng.exponential(0.1, 400_000), 1)
    assert wait == pytest.approx(load / (10 - 10 * load), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_wait_is_that_of_m_d_1(load):
    """Half of M/M/1 (Pollaczek and Khinchine)."""
    wait = mean_wait_s(np.random.default_rng(2), 10 * load, np.full(400_000, 0.1), 1)
    assert wait == pytest.approx(load / (10 - 10 * load) / 2, rel=0.05)


@pytest.mark.parametrize("servers", [2, 4])
def test_wait_is_that_of_m_m_c(servers):
    """Erlang C at a load of 0.7."""
    offered = 0.7 * servers
    terms = [offered**k / np.prod(np.arange(1, k + 1.0)) for k in range(servers + 1)]
    busy = terms[-1] / 0.3 / (sum(terms[:-1]) + terms[-1] / 0.3)
    rng = np.random.default_rng(3)
    wait = mean_wait_s(rng, offered * 10, rng.exponential(0.1, 400_000), servers)
    assert wait == pytest.approx(busy / (servers * 10 - offered * 10), rel=0.05)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)), min_size=1, max_size=30), st.integers(1, 3))
def test_fifo_equals_an_event_by_event_queue(tasks, servers):
    """Another implementation: time goes on in steps of one, tasks are taken up in order by whoever is free."""
    at = np.sort(np.array([a for a, _ in tasks], float))
    seconds = np.array([s for _, s in tasks], float)
    starts = queue_starts(at, seconds, np.zeros(len(at), np.int64), np.zeros((1, servers)))
    expected, ends, now = [], [], 0.0
    for a, s in zip(at, seconds, strict=True):
        now = max(now, a)
        while sum(end > now for end in ends) >= servers:
            now += 1
        expected.append(now)
        ends.append(now + s)
    assert starts.tolist() == expected


def test_requests_are_those_of_the_flows(network):
    flows = [
        Flow("a", "all", 3, 10.0, site="mast", bytes_up=[100, 200], bytes_down=[30], site_seconds=[0.01]),
        Flow("b", "all", 2, 5.0, "poisson", device_site="cam", device_seconds=[0.3], bytes_up=[0], bytes_down=[0]),
    ]
    seeds = np.random.SeedSequence(1).spawn(2)
    asked = requests(network(), flows, 20.0, 1.0, seeds)
    assert (np.diff(asked["ready_s"]) >= 0).all()
    a, b = asked[asked["flow"] == 0], asked[asked["flow"] == 1]
    assert len(a) == pytest.approx(630, abs=15)
    assert len(b) == pytest.approx(210, abs=60)
    assert set(a["ue"]) == {0, 1, 2}
    assert set(b["ue"]) == {3, 4}
    assert set(a["up"]) == {100, 200}
    assert (a["site"] == 0).all()
    assert (b["site"] == -1).all()
    assert (a["ready_s"] == a["sent_s"]).all()
    for device in range(2):  # a device does one thing at a time
        mine = np.sort(b[b["device"] == device], order="sent_s")
        assert (mine["started_s"][1:] >= mine["ready_s"][:-1] - 1e-12).all()
    assert (b["ready_s"] - b["started_s"]).tolist() == pytest.approx([0.3] * len(b))


def test_one_flow_does_not_disturb_another(network):
    """So that two ways to serve one service are compared under the same load of the others."""
    a = Flow("a", "all", 3, 10.0, site="mast", bytes_up=[100], bytes_down=[30])
    b = Flow("b", "all", 2, 5.0, site="mast", bytes_up=[100, 300, 500], bytes_down=[30])
    heavier = Flow("a", "all", 3, 10.0, site="mast", bytes_up=[900, 100], bytes_down=[30], device_seconds=[0.01])
    runs = [requests(network(), [x, b], 5.0, 0.0, np.random.SeedSequence(4).spawn(2)) for x in (a, heavier)]
    one, two = (run[run["flow"] == 1] for run in runs)
    assert (one == two).all()


def test_a_trace_starts_after_the_warm_up(network, tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("0.5,0\n1.5,1\n")
    flow = Flow("a", "all", 2, 1.0, f"trace: {path}", site="mast", bytes_up=[100], bytes_down=[30])
    asked = requests(network(), [flow], 2.0, 1.0, SEEDS)
    assert asked["sent_s"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"slice": "alll"}, "flow a names slice 'alll'; the network has all"),
        ({"site": "moon"}, "flow a names site 'moon'; the network has mast"),
        ({"devices": 0}, "both must be above 0"),
        ({"bytes_up": [0]}, "flow a goes to mast and needs bytes_up and bytes_down of 1 or more"),
        ({"site_seconds": [-1.0]}, "compute times below 0"),
        ({"bytes_up": [2.0**63]}, r"flow a sends 9.22337e\+18 bytes at once; it may send 100,000,000,000"),
        (
            {"transport": "tcp-warm", "bytes_up": [10**11], "rate_hz": 10.0},
            r"flow a sends \d\d\d,\d+,\d+ segments over tcp-warm; a run has room for 50,000,000: lower its bytes",
        ),
    ],
)
def test_flows_that_cannot_be(network, wrong, sentence):
    right = {"name": "a", "slice": "all", "devices": 1, "rate_hz": 1.0, "site": "mast", "bytes_up": [9]}
    flow = Flow(**{"bytes_down": [9], **right, **wrong})
    with pytest.raises(TrafficError, match=sentence):
        requests(network(), [flow], 1.0, 0.0, SEEDS)


@pytest.mark.parametrize(
    ("devices", "rate_hz", "until_s", "sentence"),
    [
        (1000, 10_000.0, 60.0, "1000 devices at 10000 Hz send about 600,000,000 requests in 60 s; a run has room for"),
        (1, 1.0, float("inf"), "the run would last inf s; it may last 10,000,000 s"),
        (1, 1e-9, 1e12, r"the run would last 1e\+12 s"),
    ],
)
@pytest.mark.parametrize("law", ["periodic", "poisson", "bursts", "ftp3", "xr"])
def test_a_run_has_so_many_requests_at_most(law, devices, rate_hz, until_s, sentence):
    with pytest.raises(ArrivalError, match=sentence):
        draw(law, devices, rate_hz, until_s, np.random.default_rng(0))


def test_all_flows_together_have_so_many_requests_at_most(network):
    flows = [Flow(name, "all", 1000, 50.0, site="mast", bytes_up=[9], bytes_down=[9]) for name in "abc"]
    with pytest.raises(ArrivalError, match="the services together send about 15,000,000 requests in 100 s"):
        requests(network(), flows, 100.0, 0.0, np.random.SeedSequence(1).spawn(3))
