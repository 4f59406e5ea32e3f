"""Plans: equal to brute force, bounded truly, refused with numbers; devices counted where the twin says they break."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, default_rng

from airserve.contract import Readings, Span, from_plain, to_plain
from airserve.model import Engine
from airserve.network import radio, twin
from airserve.place.bounds import air_ms, bound, dominates, loads, mean_bps, peak_bits, slots_for
from airserve.place.candidates import PlanError, Weights, candidates, cost, refusals, too_far
from airserve.place.counting import count_said, most_devices, step
from airserve.place.description import Factory, Service
from airserve.place.judging import SEARCH, Judge, flows, flows_of, verdict
from airserve.place.plan import Candidate, Plan
from airserve.place.planners.exhaustive import choose
from airserve.place.planning import digest, known_plan, load, plan, save
from airserve.place.profiling import Profile, profile
from airserve.place.searching import Search
from airserve.registry import Registry
from airserve.samples import load_samples


def described(
    registry: Registry,
    *,
    device_ms: float = 60.0,
    promise_ms: float = 45.0,
    model: str = "digits",
    cells: int = 1,
    **service: object,
) -> Factory:
    """A factory whose sensor takes `device_ms` for the whole fp32 model, whatever this machine is."""
    speed = _whole_s(registry) / (device_ms / 1e3)
    one = {
        "name": "look",
        "model": model,
        "device": "sensor",
        "devices": 6,
        "rate_hz": 5,
        "slice": "control",
        "promise": {"latency_ms": promise_ms, "percentile": 90},
        **service,
    }
    return Factory.model_validate(
        {
            "network": {
                "cells": [{"name": "hall", "bandwidth_mhz": 10, **({"trps": cells} if cells > 1 else {})}],
                "slices": [{"name": "control", "min": 5, "max": 10}, {"name": "video", "min": 30}],
                "sites": [
                    {"name": "sensor", "kind": "device", "speed": min(1.0, speed)},
                    {"name": "mast", "kind": "edge", "cores": 2, "delay_ms": 1},
                    {"name": "region", "kind": "cloud", "cores": 8, "delay_ms": 20},
                ],
            },
            "services": [one],
        }
    )


def _whole_s(registry: Registry) -> float:
    known = profile(_bare(), registry=registry, progress=False).of("digits").variants[0]
    return float(np.median(known.way("none").head_s))


def _bare() -> Factory:
    return Factory.model_validate(
        {
            "network": {
                "cells": [{"name": "hall"}],
                "slices": [{"name": "control"}],
                "sites": [{"name": "sensor", "kind": "device"}, {"name": "mast", "kind": "edge"}],
            },
            "services": [
                {"name": "look", "model": "digits", "device": "sensor", "devices": 1, "rate_hz": 1,
                 "slice": "control", "promise": {"latency_ms": 50}},
            ],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def factory(registry: Registry) -> Factory:
    return described(registry)


@pytest.fixture(scope="module")
def known(factory: Factory, registry: Registry) -> Profile:
    return profile(factory, registry=registry, progress=False)


@pytest.fixture(scope="module")
def made(factory: Factory, registry: Registry) -> Plan:
    return plan(factory, registry=registry, progress=False)


@pytest.fixture(scope="module")
def every(factory: Factory, known: Profile, registry: Registry) -> list[Candidate]:
    return candidates(factory.services[0], factory, known.of("digits"), registry)


def drawn(rng: Generator, one: Candidate) -> Candidate:
    """A candidate with random seconds and bytes."""

    def some(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high))) * rng.uniform(0.8, 1.2, int(rng.integers(1, 20)))

    return replace(
        one,
        device_seconds=some(1e-3, 0.1) if one.device_functions else np.zeros(1),
        site_seconds=some(1e-4, 0.02) if one.site else np.zeros(1),
        bytes_up=np.rint(some(100, 300_000)) if one.site else np.zeros(1),
        bytes_down=np.rint(some(100, 300_000)) if one.site else np.zeros(1),
    )


# -- the search -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 9), st.floats(0, 9), st.booleans()), max_size=12))
def test_choosing_equals_brute_force(rows: list[tuple[int, float, float, bool]]) -> None:
    bounds = [min(low, value) for _, low, value, _ in rows]

    def dominates(a: int, b: int) -> bool:
        return rows[a][0] <= rows[b][0] and rows[a][2] <= rows[b][2]

    best, said = choose(
        range(len(rows)),
        cost=lambda i: rows[i][0],
        bound_ms=lambda i: bounds[i],
        promise_ms=5.0,
        judge=lambda i: rows[i][2],
        keeps=lambda value: value <= 5.0,
        accepted=lambda i: rows[i][3],
        dominates=dominates,
    )
    good = [i for i, row in enumerate(rows) if row[2] <= 5.0 and row[3]]
    assert (best is None) == (not good)
    if best is not None:
        assert rows[best][0] == min(rows[i][0] for i in good)
        assert best in good
    assert all(said[i] == rows[i][2] for i in said)


@pytest.mark.parametrize(
    ("device_ms", "promise_ms", "cells"),
    [(60, 45, 1), (60, 30, 1), (35, 45, 1), (400, 90, 1), (400, 70, 1), (400, 90, 3)],
)
def test_a_plan_equals_brute_force(registry: Registry, device_ms: float, promise_ms: float, cells: int) -> None:
    """The cheapest of all that keep the promise, each judged by the twin: no bound, no dominance."""
    factory = described(registry, device_ms=device_ms, promise_ms=promise_ms, cells=cells)
    service = factory.services[0]
    known = profile(factory, registry=registry, progress=False)
    search = Search(factory, known, registry, Judge(factory, 0), 1.2, Weights(), "exhaustive")
    open_now = search.open["look"]
    best, _ = search.one(service, open_now, {}, ())
    judge = Judge(factory, 0)
    kept = [one for one in open_now if judge.keeps(judge.search({"look": one}, 1.2, "look"), ["look"])]
    kept = [one for one in kept if not search.accepted(service, one)]
    costs = [search.cost(service, one) for one in kept]
    assert (best is None) == (not kept)
    if best is not None:
        assert search.cost(service, best) == min(costs)


def test_the_search_judges_few(factory: Factory, known: Profile, registry: Registry) -> None:
    judge = Judge(factory, 0)
    search = Search(factory, known, registry, judge, 1.2, Weights(), "exhaustive")
    search.one(factory.services[0], search.open["look"], {}, ())
    assert judge.runs < 3 * len(search.open["look"]) / 2


def test_a_plan_is_determined_by_its_seed(factory: Factory, registry: Registry, made: Plan) -> None:
    again = plan(factory, registry=registry, progress=False)
    assert to_plain(replace(again, seconds=0.0)) == to_plain(replace(made, seconds=0.0))


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "drawn_ways"), [(1, 24), (3, 9)])
def test_the_bound_is_below_the_twin(registry: Registry, every: list[Candidate], cells: int, drawn_ways: int) -> None:
    factory = described(registry, cells=cells)
    rng = default_rng(1)
    judge = Judge(factory, 3)
    service = factory.services[0]
    families = [next(one for one in every if one.cut == cut) for cut in ("none", "input")]
    families.append(next(one for one in every if one.device_functions and one.site))
    for k in range(drawn_ways):
        one = drawn(rng, families[k % 3])
        until_s = judge.until_s(1.0)
        said = judge.say({"look": one}, 1.0, SEARCH, 1, until_s).verdicts["look"].value_ms
        assert bound(one, service, factory.network, until_s).ms <= said + 1e-6, one.label


def test_bounds_by_hand(factory: Factory, every: list[Candidate]) -> None:
    network, service = factory.network, factory.services[0]
    one = next(one for one in every if one.cut == "input" and one.site == "region")
    one = replace(one, site_seconds=np.array([0.004]), bytes_up=np.array([900.0]), bytes_down=np.array([200.0]))
    assert bound(one, service, network, 10).ms == pytest.approx(4 + 2 * 20 + 2 * 0.5)
    alone = next(one for one in every if one.cut == "none")
    slow = replace(alone, device_seconds=np.array([0.3]))  # 5 Hz: one and a half seconds a second
    found = bound(slow, service, network, 10)
    assert found.ms == pytest.approx(0.5 * 0.9 * 0.88 * 10_000)
    assert "sensor computes 1.5 s a second" in found.overload
    assert [load for load, _ in loads(slow, service, network, 1.0, asked=30)] == pytest.approx([1.5])


def test_slots_against_counting() -> None:
    for tdd in ("DDDSU", "DSUUD", "DU", "DDDDDDDSUU"):
        for letters in ("U", "DS"):
            for blocks in range(1, 9):
                best = 99
                for start in range(len(tdd)):
                    seen, at = 0, start
                    while seen < blocks:
                        seen += tdd[at % len(tdd)] in letters
                        at += 1
                    best = min(best, at - start)
                assert slots_for(tuple(letter in letters for letter in tdd), blocks) == best


def test_the_air_carries_no_more_than_its_peak(factory: Factory) -> None:
    cell = factory.network.cell
    block = peak_bits(cell, "up") / 8
    assert air_ms(cell, "up", block) == 0.5
    assert air_ms(cell, "up", block + 1) == 0.5 * 6  # the next uplink slot of DDDSU
    up, down = mean_bps(cell)
    assert up < peak_bits(cell, "up") * 0.2 / 0.5e-3
    assert down < peak_bits(cell, "down") * 0.8 / 0.5e-3


def test_dominance(factory: Factory, every: list[Candidate]) -> None:
    one = next(one for one in every if one.device_functions and one.site == "mast" and one.encoding == "raw")
    worse = replace(one, bytes_up=one.bytes_up * 3, site_seconds=one.site_seconds * 2)
    assert dominates(one, worse)
    assert not dominates(worse, one)
    assert not dominates(one, replace(worse, site="region"))  # nearer is not more
    assert not dominates(replace(one, encoding="int8", score=None), worse)  # it may yet be refused
    service, network = factory.services[0], factory.network
    assert cost(one, service, network, Weights()) <= cost(worse, service, network, Weights())
    judge = Judge(factory, 0)
    values = [judge.say({"look": c}, 1.0, SEARCH, 2, 8.0).verdicts["look"].value_ms for c in (one, worse)]
    assert values[0] <= values[1]


# -- candidates -------------------------------------------------------------------------------------------------------


def test_padding_makes_a_site_slower_as_a_whole(factory: Factory, known: Profile, every: list[Candidate]) -> None:
    speed = factory.network.site("sensor").speed
    for one in every:
        if not one.device_functions:
            continue
        way = next(v for v in known.of("digits").variants if v.variant == one.variant).way(one.cut, one.encoding)
        extra = way.pack_s if one.compress else 0.0
        assert one.device_seconds == pytest.approx((np.median(way.head_s) + extra) / speed)
        padded = sum(f.padded_s or 0 for f in one.device_functions)
        assert padded + extra == pytest.approx(float(one.device_seconds[0]))
    assert all(f.padded_s is None for one in every for f in one.site_functions)  # speed 1


def test_cost_by_hand(factory: Factory, every: list[Candidate]) -> None:
    one = next(one for one in every if one.cut == "input" and one.site == "region")
    one = replace(one, site_seconds=np.array([0.01]), bytes_up=np.array([1e4]), bytes_down=np.array([1e3]))
    up, down = mean_bps(factory.network.cell)
    wanted = 30 * (0.5 * 0.01 + 4 * (8e4 / up + 8e3 / down))
    assert cost(one, factory.services[0], factory.network, Weights()) == pytest.approx(wanted)
    alone = next(one for one in every if one.cut == "none")
    assert cost(alone, factory.services[0], factory.network, Weights()) == 0


def test_refusals_say_the_numbers(known: Profile, registry: Registry) -> None:
    one = known.of("digits")
    fp32, int8 = one.variants
    strict = described(registry, promise={"latency_ms": 50, "max_accuracy_drop": 0.02}).services[0]
    int8 = replace(int8, against=0.5)
    bad = replace(int8, score=0.85, metric="agreement", scored=80)
    assert refusals(strict, replace(one, variants=(fp32, bad))) == {
        "int8": "int8 agrees with fp32 on 85.0 % of 80 samples; the allowed drop is 0.02"
    }
    assert too_far("accuracy", 0.9, 0.92, 1000, 0.01).startswith("has an accuracy of 90.0 % on 1000 samples")
    assert too_far("r2", 0.3, 0.34, 1000, 0.01).startswith("has an r2 of 0.300 on 1000 samples, fp32 0.340")
    slow = replace(int8, score=1.0, against=1.2)
    said = refusals(strict, replace(one, variants=(fp32, slow)))["int8"]
    assert said.startswith("int8 is not faster than fp32: it takes 1.20 times as long")
    fast = replace(int8, score=1.0)
    assert refusals(strict, replace(one, variants=(fp32, fast))) == {}


def test_no_samples_no_accuracy_promise(registry: Registry) -> None:
    factory = described(registry, model="blind", promise={"latency_ms": 50, "max_accuracy_drop": 0.1})
    with pytest.raises(PlanError, match="blind has no samples to measure it on"):
        plan(factory, registry=registry, progress=False)


def test_a_site_that_cannot_hold_the_model(registry: Registry) -> None:
    factory = described(registry)
    small = [site.model_copy(update={"memory_mb": 0.001}) for site in factory.network.sites]
    factory = factory.model_copy(update={"network": factory.network.model_copy(update={"sites": tuple(small)})})
    with pytest.raises(PlanError, match=r"does not fit (sensor|mast|region): it needs 0\.\d MB of 0\.001 MB"):
        plan(factory, registry=registry, progress=False)


def test_pins_are_respected(registry: Registry, known: Profile) -> None:
    way = next(w for w in known.of("digits").variants[0].ways if w.encoding == "int8")
    pin = {"variant": "fp32", "cut": way.cut, "encoding": "int8", "sites": ["sensor", "mast"]}
    chosen = plan(described(registry, pin=pin), registry=registry, progress=False).choices[0]
    one = chosen.chosen
    assert (one.variant, one.cut, one.encoding, one.sites) == ("fp32", way.cut, "int8", ("sensor", "mast"))
    assert one.score is not None
    assert {up.candidate.cut for up in chosen.runners_up} >= {"none", "input"}  # compared with what was not pinned
    whole = Engine(registry.get(one.reference).path)
    head, tail = (Engine(functions[0].path) for functions in (one.device_functions, one.site_functions))
    held = load_samples(registry.get("digits").samples_path).held()  # type: ignore[arg-type]
    rows = held.inputs[:8]
    np.testing.assert_allclose(tail.run(head.run([rows]))[0], whole.run([rows])[0], atol=0.2)


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        ({"cut": "nowhere"}, "pins cut 'nowhere', which does not exist; there is none, input, stem-act-relu"),
        ({"variant": "int4"}, "pins variant 'int4', which does not exist; there is fp32, int8"),
        ({"cut": "none", "sites": ["mast"]}, "pins cut 'none', sites 'mast', which do not go together"),
    ],
)
def test_a_pin_that_does_not_exist(registry: Registry, pin: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        plan(described(registry, pin=pin), registry=registry, progress=False)


# -- what a plan says -------------------------------------------------------------------------------------------------


def test_a_plan_says_why(made: Plan) -> None:
    (choice,) = made.choices
    assert made.kept
    assert made.limits == ()
    assert choice.predicted_ms <= 45
    low, high = choice.predicted_interval_ms
    assert low <= choice.predicted_ms <= high
    assert re.search(r"the cheapest of \d+ ways that keeps 45 ms, at cost \S+: p90 \S+ ms, \S+ ms with 20 % headroom",
                     choice.why)  # fmt: skip
    labels = [one.candidate.label for one in choice.runners_up]
    assert choice.chosen.label not in labels
    assert len(set(labels)) == len(labels)
    families = {(one.candidate.cut if one.candidate.cut in ("none", "input") else "cut") for one in choice.runners_up}
    own = choice.chosen.cut if choice.chosen.cut in ("none", "input") else "cut"
    assert families | {own} == {"none", "input", "cut"}
    for one in choice.runners_up:
        assert re.search(r"\d", one.why)
        assert (one.gain_ms is None) == (one.judged_by == "bound")


def test_nothing_keeps_it(registry: Registry) -> None:
    """What the sentence says would free it, frees it."""
    made = plan(described(registry, promise_ms=8.0), registry=registry, progress=False)
    assert not made.kept
    assert not made.choices[0].kept
    (text,) = made.limits
    said = r"nothing keeps p90 within 8 ms; .* comes nearest with (\S+) ms with 20 % headroom, \S+ ms of it .*; "
    found = re.search(said + r"it would hold with a promise of (\d+) ms", text)
    assert found, text
    assert float(found[1]) > 8
    assert made.choices[0].max_devices == 0
    freed = plan(described(registry, promise_ms=float(found[2])), registry=registry, progress=False)
    assert freed.kept


def with_stated(factory: Factory, **stated: object) -> Factory:
    """The same with a service that states its sizes."""
    tree = factory.model_dump(mode="json")
    sizes = {"devices": 9, "rate_hz": 10, "bytes_up": 1000, "bytes_down": 100, "compute_ms": 20, "site": "mast"}
    tree["services"].append({"name": "crunch", "slice": "video", **sizes, **stated})
    return Factory.model_validate(tree)


def test_the_promise_of_a_service_that_states_its_sizes_is_judged_too(registry: Registry) -> None:
    """What the sentence says would free it, frees it."""
    small = {"bytes_up": 3000, "compute_ms": 2}
    tight = with_stated(described(registry), **small, promise={"latency_ms": 2.0, "percentile": 90})
    made = plan(tight, registry=registry, progress=False)
    (one,) = made.stated
    assert (one.service, one.kept, made.choices[0].kept, made.kept) == ("crunch", False, True, False)
    assert one.predicted_interval_ms[0] <= one.predicted_ms <= one.predicted_interval_ms[1]
    assert one.predicted_ms > 2 + 2 * 1  # its compute, and twice the way to the mast
    (text,) = made.limits
    found = re.search(r"^crunch: nothing keeps p90 within 2 ms; .*would hold with a promise of (\d+) ms", text)
    assert found, text
    loose = with_stated(described(registry), **small, promise={"latency_ms": float(found[1]), "percentile": 90})
    freed = plan(loose, registry=registry, progress=False)
    assert freed.kept
    assert freed.stated[0].kept
    alone = Factory.model_validate({**loose.model_dump(mode="json"), "services": loose.model_dump()["services"][1:]})
    assert [one.kept for one in plan(alone, registry=registry, progress=False).stated] == [True]


def test_a_way_that_breaks_the_promise_of_stated_sizes_is_out(registry: Registry) -> None:
    """The cheapest of all ways that keep both promises, each judged by the twin, is not the cheapest that keeps one."""
    stated = {"slice": "control", "devices": 4, "bytes_up": 2200, "compute_ms": 1}
    factory = with_stated(
        described(registry, promise_ms=100.0, rate_hz=10), **stated, promise={"latency_ms": 74.0, "percentile": 90}
    )
    weights = Weights(device=1.0)
    known = profile(factory, registry=registry, progress=False)
    search = Search(factory, known, registry, Judge(factory, 0), 1.2, weights, "exhaustive")
    judge, service = Judge(factory, 0), factory.services[0]

    def cheapest(*names: str) -> str:
        ways = [one for one in search.open["look"] if not search.accepted(service, one)]
        kept = [one for one in ways if judge.keeps(judge.search({"look": one}, 1.2, *names), names)]
        return min(kept, key=lambda one: search.cost(service, one)).label

    assert cheapest("look").startswith("send the input")
    assert cheapest("look", "crunch") == "fp32 on sensor alone"
    made = plan(factory, registry=registry, progress=False, weights=weights)
    assert made.kept
    assert made.choices[0].chosen.label == "fp32 on sensor alone"
    assert any("breaks that of crunch" in one.why for one in made.choices[0].runners_up)


def test_what_would_free_it_does(registry: Registry) -> None:
    """A faster sensor where it answers alone; more frequent scheduling requests where the radio binds."""
    alone = described(registry, promise_ms=40.0, pin={"cut": "none", "variant": "fp32"})
    (text,) = plan(alone, registry=registry, progress=False).limits
    speed = re.search(r"or a sensor of speed (\S+)\.$", text)
    assert speed, text
    assert "72 ms of it compute of sensor" in text  # 60 ms and headroom
    sites = [{"name": s.name, "kind": s.kind, "cores": s.cores, "speed": s.speed, "delay_ms": s.delay_ms} for s in
             alone.network.sites]  # fmt: skip
    sites[0]["speed"] = float(speed[1])
    assert plan(_changed(alone, sites=sites), registry=registry, progress=False).kept

    radio = described(registry, promise_ms=20.0, device_ms=500.0)
    (text,) = plan(radio, registry=registry, progress=False).limits
    period = re.search(r"a scheduling-request period of (\S+) ms", text)
    assert period, text
    cell = radio.network.cell.model_dump() | {"sr_period_ms": float(period[1])}
    assert plan(_changed(radio, cells=[cell]), registry=registry, progress=False).kept


def _changed(factory: Factory, **network: object) -> Factory:
    tree = factory.model_dump(mode="json")
    return Factory.model_validate({**tree, "network": {**tree["network"], **network}})


def test_the_break_is_where_the_twin_says(factory: Factory, every: list[Candidate]) -> None:
    one = next(one for one in every if one.cut == "input" and one.site == "mast")
    one = replace(one, site_seconds=np.array([0.02]))  # two cores: 100 a second, 20 devices at 5 Hz
    chosen, service = {"look": one}, factory.services[0]
    judge = Judge(factory, 0)
    most, binds, points = most_devices(judge, chosen, service)
    assert 6 <= most <= 20  # queueing theory's end
    assert binds == "compute at mast (2 cores)"
    assert judge.keeps(count_said(judge, chosen, service, most), ["look"])
    assert not judge.keeps(count_said(judge, chosen, service, most + step(most)), ["look"])
    assert [row[0] for row in points] == sorted(row[0] for row in points)


def test_the_control_channel_may_end_before_the_promise(factory: Factory, every: list[Candidate]) -> None:
    """Answers at once: the PUCCH runs out of scheduling requests first, and another 40 devices hold some of them."""
    one = next(one for one in every if one.cut == "input" and one.site == "mast")
    one = replace(one, site_seconds=np.array([1e-6]))
    cell = factory.network.cell.model_copy(update={"sr_resources": 8})  # in each of 8 uplink slots of a period
    service = factory.services[0].model_copy(update={"rate_hz": 1.0, "devices": 4})
    others = Service(
        name="others", slice=service.slice, devices=40, rate_hz=0.1, bytes_up=100, bytes_down=100, compute_ms=0,
        site="mast",
    )  # fmt: skip
    small = factory.model_copy(
        update={
            "network": factory.network.model_copy(update={"cells": (cell,)}),
            "services": (service, others),
        }
    )
    most, binds, points = most_devices(Judge(small, 0), {"look": one}, service)
    assert (most, binds) == (24, "scheduling requests on the PUCCH of cell hall: there are 64 for all its devices")
    assert max(row[0] for row in points) == 24


def test_several_cells_hold_more_devices_than_one(registry: Registry, every: list[Candidate]) -> None:
    """Of three cells' requests, one cell's run out first: devices do not spread evenly. The bound counts all three."""
    one = next(one for one in every if one.cut == "input" and one.site == "mast")
    one = replace(one, site_seconds=np.array([1e-6]))
    found = {}
    for cells in (1, 3):
        factory = described(registry, cells=cells, promise_ms=200.0, devices=8, rate_hz=0.5)
        cell = factory.network.cell.model_copy(update={"sr_resources": 2})  # 16 devices a cell
        factory = factory.model_copy(update={"network": factory.network.model_copy(update={"cells": (cell,)})})
        service = factory.services[0]
        judge = Judge(factory, 0)
        most, binds, _ = most_devices(judge, {"look": one}, service)
        assert judge.keeps(count_said(judge, {"look": one}, service, most), ["look"])
        of = "each of 3 cells" if cells == 3 else "cell hall"
        assert binds == f"scheduling requests on the PUCCH of {of}: there are 16 for all its devices"
        found[cells] = most, loads(one, service, factory.network, 1.0, asked=4)[-1][0]
    assert found[1][0] == 16 < found[3][0] < 48
    assert found[3][1] == pytest.approx(found[1][1] / 3)


def test_devices_alone_do_not_break(factory: Factory, every: list[Candidate]) -> None:
    one = next(one for one in every if one.cut == "none")
    fast = replace(one, device_seconds=np.array([0.01]))
    most, binds, _ = most_devices(Judge(factory, 0), {"look": fast}, factory.services[0])
    assert (most, binds) == (10_000, "nothing: every device answers alone")
    slow = replace(one, device_seconds=np.array([0.1]))
    most, binds, _ = most_devices(Judge(factory, 0), {"look": slow}, factory.services[0])
    assert (most, binds) == (0, "compute of sensor, whatever the number")


def test_a_plan_depends_on_the_traces_behind_it(
    factory: Factory, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "asked.csv"
    file.write_text("0.1\n0.2\n")
    service = factory.services[0].model_copy(update={"arrival": f"trace: {file}"})
    traced = factory.model_copy(update={"services": (service, *factory.services[1:])})
    before = digest(traced, registry)
    assert digest(traced, registry) == before != digest(factory, registry)
    file.write_text("0.1\n0.3\n")
    assert digest(traced, registry) != before
    known, trace = digest(factory, registry), radio.load(factory.network.cell)
    monkeypatch.setattr(radio, "load", lambda cell: replace(trace, made_by={**trace.made_by, "seed": -1}))
    assert digest(factory, registry) != known


def test_a_plan_survives_its_file(factory: Factory, registry: Registry, made: Plan, tmp_path: Path) -> None:
    path = save(made, "factory", registry)
    back = load(path)
    assert to_plain(back) == to_plain(made)
    assert isinstance(back.choices[0].chosen.bytes_up, np.ndarray)
    assert to_plain(from_plain(Plan, json.loads(json.dumps(to_plain(made))))) == to_plain(made)
    assert to_plain(known_plan(factory, "factory", registry)) == to_plain(made)
    assert known_plan(described(registry, promise_ms=46.0), "factory", registry) is None
    assert known_plan(factory, "another", registry) is None
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(PlanError, match="is not a saved plan"):
        load(tmp_path / "broken.json")


# -- the twin as a judge ----------------------------------------------------------------------------------------------


def test_sizes_in_place_of_a_model_are_load(factory: Factory, every: list[Candidate]) -> None:
    loaded = with_stated(factory)
    one = next(one for one in every if one.cut == "input" and one.site == "mast")
    work = flows_of(loaded, {"look": one})
    assert [flow.name for flow in work] == ["look", "crunch"]
    assert work[1].site_seconds.tolist() == [0.02]
    alone, beside = (Judge(f, 0).say({"look": one}, 1.0, SEARCH, 2, 10.0) for f in (factory, loaded))
    assert beside.verdicts["look"].value_ms > alone.verdicts["look"].value_ms + 3  # 1.8 of 2 cores are busy
    doubled = flows_of(loaded, {"look": one}, scale=2.0)
    assert doubled[1].bytes_up.tolist() == [2000]
    assert doubled[0].bytes_up.tolist() == (2 * one.bytes_up).tolist()


def test_a_plan_s_flows(factory: Factory, made: Plan) -> None:
    (flow,) = flows(factory, made.choices)
    assert (flow.name, flow.slice, flow.devices, flow.site) == ("look", "control", 6, made.choices[0].chosen.site)


def test_the_site_queue_is_m_d_1(factory: Factory, every: list[Candidate]) -> None:
    """Poisson arrivals, one core, constant seconds: the mean wait is rho D / (2 (1 - rho))."""
    one = next(one for one in every if one.cut == "input" and one.site == "mast")
    one = replace(one, site_seconds=np.array([0.01]))
    tree = factory.model_dump(mode="json")
    tree["network"]["sites"][1]["cores"] = 1
    tree["services"][0] |= {"devices": 12, "arrival": "poisson"}  # 60 a second: rho 0.6
    single = Factory.model_validate(tree)
    outcome = twin.run(single.network, flows_of(single, {"look": one}), until_s=120.0, seed=4)
    readings = outcome.readings["look"]
    column = next(i for i, span in enumerate(readings.spans) if span.kind == "queue")
    assert np.nanmean(readings.ms[:, column]) == pytest.approx(0.6 * 10 / (2 * 0.4), rel=0.2)


def test_an_interval_covers_the_difference_from_run_to_run() -> None:
    rng = default_rng(0)
    span = (Span("air", "up", "hall"),)

    def run(mean: float) -> Readings:
        at = np.sort(rng.uniform(0, 20, 400))
        return Readings("look", span, at, np.zeros(400, int), rng.normal(mean, 1, (400, 1)))

    said = verdict([run(mean) for mean in (10, 14, 12, 11)], 90, rng)
    assert said.interval_ms[0] < 12 < 14.5 < said.interval_ms[1]
    steady = verdict([run(10) for _ in range(4)], 90, rng)
    assert steady.interval_ms[1] - steady.interval_ms[0] < 1
    assert steady.value_ms == pytest.approx(10 + 1.2816, abs=0.25)  # the normal's 90th
    assert sum(ms for _, ms in steady.slow) == pytest.approx(steady.value_ms, abs=0.2)


def test_runs_of_a_judge_are_remembered(factory: Factory, every: list[Candidate]) -> None:
    judge = Judge(factory, 0)
    one = next(one for one in every if one.cut == "input")
    first = judge.say({"look": one}, 1.0, SEARCH, 2, 8.0)
    assert judge.runs == 2
    assert judge.say({"look": one}, 1.0, SEARCH, 2, 8.0) == first
    assert judge.runs == 2
    cell = factory.network.cell.model_copy(update={"sr_period_ms": 2.5})
    faster = factory.network.model_copy(update={"cells": (cell,)})
    changed = judge.say({"look": one}, 1.0, SEARCH, 2, 8.0, network=faster)
    assert judge.runs == 4
    assert changed.verdicts["look"].value_ms < first.verdicts["look"].value_ms
