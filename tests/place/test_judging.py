"""What bounds, counts and the twin say of a way made by hand: of any cell and any arrivals, and of too little."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from airserve.arrivals import ArrivalError
from airserve.contract import Readings, Span
from airserve.network import mac
from airserve.network.traffic import device_of, requests
from airserve.place.bounds import asked_hz, bound, loads
from airserve.place.counting import exhausted, most_devices, room
from airserve.place.description import Factory
from airserve.place.freeing import limit
from airserve.place.judging import SEARCH, Judge, flows_of, verdict
from airserve.place.plan import Candidate

LOOK = {
    "name": "look",
    "model": "any",
    "device": "sensor",
    "slice": "control",
    "devices": 6,
    "rate_hz": 5,
    "promise": {"latency_ms": 100, "percentile": 90},
}


def described(*others: dict[str, object], cell: dict[str, object] | None = None, **service: object) -> Factory:
    return Factory.model_validate(
        {
            "network": {
                "cells": [{"name": "hall", **(cell or {})}],
                "slices": [{"name": "control"}, {"name": "video"}],
                "sites": [{"name": "sensor", "kind": "device"}, {"name": "mast", "kind": "edge", "cores": 2}],
            },
            "services": [{**LOOK, **service}, *others],
        }
    )


def sent(nbytes: float = 900, site_s: float = 0.001) -> dict[str, Candidate]:
    """The one way of all services with a model: the input goes to the mast."""
    one = Candidate(
        service="look", reference="any/fp32", variant="fp32", cut="input", encoding="raw", device_site="sensor",
        site="mast", device_functions=(), site_functions=(), device_seconds=np.zeros(1),
        site_seconds=np.array([site_s]), bytes_up=np.array([nbytes]), bytes_down=np.array([200.0]), compress=False,
        metric="", score=None, before=None, scored=0,
    )  # fmt: skip
    return {"look": one}


def busy(**changes: object) -> dict[str, object]:
    """A service of stated sizes beside."""
    return {"name": "busy", "slice": "control", "devices": 6, "rate_hz": 1, "bytes_up": 100, "bytes_down": 100,
            "compute_ms": 0, "site": "mast", **changes}  # fmt: skip


def test_the_bound_of_a_cell_that_puts_devices_on_the_same_prbs_is_below_the_twin() -> None:
    """Half as much again as one device could send at its peak with the carrier to itself: a backlog of a second, if one
    sent at a time.
    """
    cells = {mimo: described(cell={"mimo": mimo}, devices=16, rate_hz=20) for mimo in ("su", "mu")}
    load, _ = loads(sent()["look"], cells["su"].services[0], cells["su"].network, 1.0, asked=320)[-1]
    chosen, said = sent(900 * 1.5 / load), {}
    for mimo, factory in cells.items():
        low = bound(chosen["look"], factory.services[0], factory.network, 3.0).ms
        said[mimo] = low
        if mimo == "mu":
            value = Judge(factory, 0).say(chosen, 1.0, SEARCH, 1, 3.0).verdicts["look"].value_ms
            assert low <= value < said["su"]
    assert said["su"] > 1000


# -- what is full, and what is too little -----------------------------------------------------------------------------


def test_a_site_that_is_asked_for_too_much_is_named_and_more_cores_free_it() -> None:
    """30 requests of 0.4 s a second are 12 cores, 14.4 with headroom, and nothing is wrong with the uplink."""
    factory = described(promise={"latency_ms": 1000, "percentile": 90})
    text = limit(Judge(factory, 0), sent(site_s=0.4), factory.services[0], 1.2)
    assert "requests stay unanswered for want of compute at mast, of whose 2 cores 14 would be needed" in text
    assert re.search(r"it would hold with (16|32) cores at mast\.$", text)


def test_the_load_of_others_counts() -> None:
    """Two services that need one core and a half each, of two."""
    for others, says in (
        ([], ""),
        ([busy(rate_hz=5, compute_ms=50)], "compute at mast, of whose 2 cores 3 would be needed"),
    ):
        factory = described(*others)
        judge, chosen = Judge(factory, 0), sent(site_s=0.05)
        assert exhausted(judge, chosen, factory.services[0], judge.say(chosen, 1.0, SEARCH, 1, 1.0)) == says


def test_an_uplink_that_is_full_is_named() -> None:
    factory = described(cell={"bandwidth_mhz": 10})
    text = limit(Judge(factory, 0), sent(400_000), factory.services[0], 1.2)
    assert "requests stay unanswered for want of uplink PRBs of slice control" in text


def test_a_rare_service_is_run_until_it_has_asked() -> None:
    factory = described(devices=1, rate_hz=0.01, promise={"latency_ms": 100, "percentile": 50})
    judge = Judge(factory, 0)
    assert judge.until_s(1.0) == pytest.approx(20 / 0.01)
    said = judge.say(sent(), 1.0, SEARCH, 1, judge.until_s(1.0)).verdicts["look"]
    assert said.requests in range(19, 22)
    assert said.value_ms < 100
    most, _, points = most_devices(judge, sent(), factory.services[0])
    assert most >= 1
    assert points[0][1] < 100


def test_no_request_is_too_few_and_not_a_fault_of_the_radio() -> None:
    factory = described(devices=1, rate_hz=1e-7)
    judge = Judge(factory, 0)
    text = limit(judge, sent(), factory.services[0], 1.2)
    assert text.startswith("look: too few requests: none was sent in ")
    assert most_devices(judge, sent(), factory.services[0])[:2] == (0, "too few requests")


def test_a_trace_that_begins_after_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "late.csv").write_text("99999\n")
    factory = described(arrival=f"trace: {tmp_path / 'late.csv'}")
    with pytest.raises(ArrivalError, match=r"late\.csv comes at 99,999 s and the run ends at 120 s"):
        limit(Judge(factory, 0), sent(), factory.services[0], 1.2)


def test_a_trace_that_begins_late_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "late.csv").write_text("".join(f"{70 + k / 10}\n" for k in range(20)))
    factory = described(arrival=f"trace: {tmp_path / 'late.csv'}")
    judge, service = Judge(factory, 0), factory.services[0]
    assert judge.say(sent(), 1.0, SEARCH, 1, judge.until_s(1.0)).verdicts["look"].requests == 20
    assert most_devices(judge, sent(), service)[0] == service.devices
    assert asked_hz(service, 60.0) == 0.0
    assert asked_hz(service, 100.0) == 0.2


@pytest.mark.parametrize("q", [1, 20, 33, 50, 99])
def test_the_slow_requests_of_any_percentile_are_some(q: float) -> None:
    """Oracle: of 0 to 99 ms, the middle of the ranks as far below the percentile as halfway to the last is above."""
    ms, at = np.arange(100.0)[:, None], np.arange(100) / 10
    ((_, mean_ms),) = verdict([Readings("look", (Span("air", "up", "hall"),), at, at * 0, ms)], q, None).slow
    half = (100 - q) / 2
    assert mean_ms == pytest.approx((max(0, q - half) + q + half) / 2, abs=1)


# -- devices that are shared, and requests that are given -------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "others"),
    [
        (4, [busy(devices=10)]),
        (4, [busy(devices=10, devices_of="look")]),  # look has the devices, the other is on the first of them
        (4, [busy(devices=10), busy(name="too", devices=3, slice="video", devices_of="busy")]),
        (12, [busy(devices=10)]),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_room_is_what_the_cell_takes(devices: int, others: list[dict[str, object]], shared: bool) -> None:
    """The cell itself: so many devices stand, and one more does not."""
    mine = {"devices_of": "busy"} if shared and not any(one.get("devices_of") == "look" for one in others) else {}
    factory = described(*others, cell={"sr_resources": 3}, devices=devices, **mine)
    network = factory.network

    def stands(number: int) -> bool:
        flows = flows_of(factory, sent(), devices={"look": number})
        slices = [network.slice_index(flow.slice) for flow in flows for _ in range(flow.devices)]
        try:
            mac.initial(network, slices, seed=1, device_of=device_of(flows))
        except mac.MacError:
            return False
        return True

    most, said = room(Judge(factory, 0), factory.services[0])
    assert stands(most)
    assert not stands(most + 1)
    assert said == "scheduling requests on the PUCCH of cell hall: there are 24 for all its devices"


def test_a_trace_is_bounded_by_its_requests_and_not_by_a_rate(tmp_path: Path) -> None:
    file = tmp_path / "day.csv"
    file.write_text("".join(f"{k / 2},{k % 6}\n" for k in range(100)))
    factory = described(rate_hz=1000, arrival=f"trace: {file}")
    service = factory.services[0]
    assert asked_hz(service, 10.0) == pytest.approx(2.0)
    chosen, judge = sent(site_s=0.01), Judge(factory, 0)  # by the rate 60 cores, by the trace a fiftieth of one
    low = bound(chosen["look"], service, factory.network, 10.0)
    assert low.overload == ""
    assert low.ms <= judge.say(chosen, 1.0, SEARCH, 1, 10.0).verdicts["look"].value_ms < 100
    assert most_devices(judge, chosen, service)[:2] == (6, "the trace fixes its requests")
    slow = sent(site_s=5.0)
    assert most_devices(judge, slow, service)[:2] == (0, "the trace fixes its requests")


@pytest.mark.parametrize("first", [True, False])
def test_the_bound_is_below_any_trace(tmp_path: Path, first: bool) -> None:
    """All at the start; or a tenth of the requests, which the percentile leaves out, in a burst at the end."""
    at_s = np.zeros(100) if first else np.append(np.arange(90) * 0.1, np.full(10, 9.9))
    file = tmp_path / "day.csv"
    file.write_text("".join(f"{second:g},0\n" for second in at_s))
    factory = described(arrival=f"trace: {file}")
    judge = Judge(factory, 0)
    for site_s in (0.15, 0.25, 0.4):
        low = bound(sent(site_s=site_s)["look"], factory.services[0], factory.network, 10.0)
        assert low.ms <= judge.say(sent(site_s=site_s), 1.0, SEARCH, 1, 10.0).verdicts["look"].value_ms


@pytest.mark.parametrize("law", ["ftp3,bytes=50000", "xr", "trace"])
def test_a_model_sends_its_own_bytes_whatever_the_law(tmp_path: Path, law: str) -> None:
    """As docs/network.md has it, and as the driver does. What a service without a model sends, the law may say."""
    if law == "trace":
        file = tmp_path / "sizes.csv"
        file.write_text("arrival_s,bytes_up,bytes_down\n" + "".join(f"{k / 10},5000,6000\n" for k in range(20)))
        law = f"trace: {file}"
    factory = described(busy(arrival=law, rate_hz=20), arrival=law, rate_hz=20)
    work = flows_of(factory, sent())
    found = requests(factory.network, work, 2.0, 1.0, np.random.SeedSequence(1).spawn(len(work)))
    model, stated = (found[found["flow"] == number] for number in (0, 1))
    assert set(model["up"]) == {900}
    assert set(model["down"]) == {200}
    assert set(zip(stated["up"], stated["down"], strict=True)) != {(100, 100)}
