"""What a report says is what plan and run said: figures against hand-worked ones, nothing that JSON cannot hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve.contract import Asker, Deployment, Promise, Readings, Span
from airserve.errors import UserError
from airserve.place.description import Factory
from airserve.place.plan import Candidate, Choice, Plan, RunnerUp, Stated
from airserve.serve.comparing import Score
from airserve.serve.driving import Drive, Used, digest, save
from airserve.web.contents import contents, emulation, keep, measured, of_run, waterfall
from airserve.web.report import render
from airserve.web.view import view

PROMISE = Promise(latency_ms=50.0, percentile=90.0, max_accuracy_drop=0.01)
SPANS = (Span("air", "up", "hall"), Span("compute", "", "mast"))


def readings(air_ms: Any, compute_ms: Any) -> Readings:
    """One request every 0.1 s."""
    ms = np.column_stack([np.asarray(air_ms, float), np.asarray(compute_ms, float)])
    return Readings("look", SPANS, np.arange(len(ms)) / 10, np.zeros(len(ms), int), ms)


def candidate(cut: str, seconds: float, score: float = 0.9, site: str = "mast") -> Candidate:
    size = np.array([1000.0])
    return Candidate(
        "look", "m@1/fp32", "fp32", cut, "raw", "camera", "" if cut == "none" else site, (), (),
        np.array([0.0 if cut == "input" else seconds]), np.array([0.0 if cut == "none" else seconds]),
        size, size, False, "accuracy", score, 0.9, 100,
    )  # fmt: skip


def lost(cut: str, ms: float, score: float = 0.9) -> RunnerUp:
    return RunnerUp(candidate(cut, ms / 1e3, score), ms, (ms - 1, ms + 1), "twin", 1.0, "it is slower", None)


@pytest.fixture
def factory() -> Factory:
    return Factory.model_validate(
        {
            "network": {
                "cells": [{"name": "hall"}],
                "slices": [{"name": "all"}],
                "sites": [
                    {"name": "camera", "kind": "device", "speed": 0.1},
                    {"name": "mast", "kind": "edge", "cores": 2, "delay_ms": 1},
                    {"name": "unused", "kind": "cloud", "delay_ms": 20},
                ],
            },
            "services": [
                {"name": "look", "model": "m", "device": "camera", "devices": 4, "rate_hz": 5, "slice": "all",
                 "promise": {"latency_ms": 50, "percentile": 90, "max_accuracy_drop": 0.01}}
            ],
        }
    )  # fmt: skip


def planned(chosen: Candidate, ms: float, *runners_up: RunnerUp) -> Plan:
    choice = Choice(
        "look", PROMISE, chosen, ms, (ms - 1, ms + 1), 1.0, True, "the cheapest", runners_up, 9, "uplink",
        ((4, ms, ms - 1, ms + 1), (9, float("inf"), ms, float("inf"))),
    )  # fmt: skip
    return Plan("digest", (choice,), (0.1,), (0.1,), 0.2, 0, 1.0)


def driven(found: Readings) -> Drive:
    n = len(found.sent_s)
    return Drive(
        {"look": found}, {"look": Score("accuracy", 0.89, n)}, {"look": n}, {"look": found.answered},
        {"look": n - found.answered}, {}, 10.0, 7, 0.1, 0.1, 0, {}, True, "", {"relay": "SCHED_FIFO 10"},
    )  # fmt: skip


def asker() -> Asker:
    return Asker("look", "m", "", "", (), (), 5.0, "periodic", False, "air", "mast", "camera", PROMISE)


def test_waterfall_is_the_mean_of_whole_requests() -> None:
    """Latencies 1 to 100: the median ones are ranks 46 to 55, those about p90 ranks 86 to 95."""
    rank = np.random.default_rng(0).permutation(100) + 1.0
    found = readings(rank / 4, 3 * rank / 4)
    rows = waterfall(found, found, PROMISE)
    assert [row["kind"] for row in rows] == ["air", "compute"]
    assert [row["median_ms"] for row in rows] == pytest.approx([50.5 / 4, 50.5 * 3 / 4])
    assert [row["slow_ms"] for row in rows] == pytest.approx([90.5 / 4, 90.5 * 3 / 4])
    assert [row["predicted_slow_ms"] for row in rows] == [row["slow_ms"] for row in rows]


def test_rates_are_as_simulate_has_them(factory: Factory) -> None:
    used = {"all": {way: Used(0.1, 0.0970754, (0.1,)) for way in ("up", "down")}}
    run = replace(driven(readings([1.0], [1.0])), usage=used)
    said = contents("hall", factory, planned(candidate("input", 0.01), 12.0), run)
    assert [said["slices"][0][way]["mbps"] for way in ("up", "down")] == [0.097, 0.097]


def test_waterfall_leaves_out_who_was_not_answered() -> None:
    found = readings([1.0] * 9 + [np.nan], [2.0] * 9 + [np.nan])
    assert [row["slow_ms"] for row in waterfall(found, found, PROMISE)] == [1.0, 2.0]
    nobody = readings([np.nan], [np.nan])
    assert [row["slow_ms"] for row in waterfall(nobody, nobody, PROMISE)] == [None, None]


def test_a_plan_alone_reports_no_measurement(factory: Factory) -> None:
    said = contents("hall", factory, planned(candidate("input", 0.01), 12.0))
    one = said["services"][0]
    assert said["life"] == "twin"
    assert said["emulation"] == ["everything: no packet was sent, the twin computed this"]
    assert one["measured_ms"] is None
    assert one["sent"] is None
    assert one["kept"] is True
    assert {key: one["score"][key] for key in ("metric", "value", "n", "before", "drop", "verdict")} == {
        "metric": "accuracy", "value": 0.9, "n": 100, "before": 0.9, "drop": 0.0, "verdict": "kept",
    }  # fmt: skip
    assert one["capacity"]["ms"] == [12.0, None]  # infinite: JSON has no word for it
    assert one["cdf"]["predicted"][-1] == 1.0
    assert one["cdf"]["measured"] is None


def test_a_promise_of_stated_sizes_counts_with_the_others(factory: Factory) -> None:
    tree = factory.model_dump(mode="json")
    tree["services"].append(
        {"name": "tele", "slice": "all", "devices": 2, "rate_hz": 4, "bytes_up": 300, "bytes_down": 100,
         "compute_ms": 2, "site": "mast", "promise": {"latency_ms": 2, "percentile": 99}}
    )  # fmt: skip
    both = Factory.model_validate(tree)
    tele = Stated("tele", Promise(2, 99), 34.5, (30.0, 39.0), False)
    report = contents("c", both, replace(planned(candidate("input", 0.01), 12.0), stated=(tele,)))
    seen = view(report)
    assert seen["headline"] == "Nothing is measured yet; the plan is predicted to keep 1 of 2 promises."
    assert "tele: p99 predicted 34.5 of 2 ms promised." in seen["detail"]
    alone = view(report | {"services": []})
    assert alone["headline"] == "Nothing is measured yet; the plan is predicted to keep 0 of 1 promise."


def test_a_run_is_reported_as_it_was(factory: Factory) -> None:
    latency = np.arange(1.0, 101.0)
    found = readings(latency / 2, latency / 2)
    said = contents("hall", factory, planned(candidate("input", 0.01), 12.0), driven(found))
    one = said["services"][0]
    assert (one["sent"], one["answered"], one["failed"]) == (100, 100, 0)
    assert one["measured_ms"] == 90.1  # between ranks, as NumPy has it
    assert one["measured_interval_ms"][0] <= 90.1 <= one["measured_interval_ms"][1]
    assert one["verdict"] == "not kept"
    assert one["kept"] is False
    assert one["score"]["value"] == 0.89
    assert [span["ms"] for span in one["worst"]] == [50.0, 50.0]
    over = one["over_time"]  # a window of 5 s ends at each second; the first five hold what there is so far
    assert over["t_s"] == [float(k) for k in range(1, 11)]
    assert over["percentile_ms"][0] == 9.1
    assert over["percentile_ms"][-1] == 95.1
    at = np.searchsorted(one["cdf"]["ms"], 50.0)
    assert one["cdf"]["measured"][at] == pytest.approx(0.5, abs=0.01)
    json.dumps(said, allow_nan=False)


def test_accuracy_is_part_of_the_promise(factory: Factory) -> None:
    """A latency that is kept does not make up for answers that are wrong, in verdict, headline and exit status."""
    made = planned(candidate("input", 0.01), 12.0)
    run = driven(readings(np.full(200, 5.0), np.full(200, 5.0)))
    wrong = replace(run, scores={"look": Score("accuracy", 0.5, 40, 0.925, (0.3, 0.6))})
    said = contents("hall", factory, made, wrong)
    one = said["services"][0]
    assert (one["latency_verdict"], one["verdict"], one["kept"]) == ("kept", "not kept", False)
    assert (one["score"]["planned_value"], one["score"]["planned_n"]) == (0.9, 100)  # as the runners-up are scored
    seen = view(said)
    assert seen["headline"] == "look: promise not kept."
    assert "accuracy 0.925 before, 0.500 now on the same 40 samples; drop 0.425 (0.300 to 0.600)" in seen["detail"]
    assert "0.01 ✗ more than allowed" in render(said)
    same = replace(run, scores={"look": Score("accuracy", 0.925, 40, 0.925, (0.0, 0.0))})
    assert contents("hall", factory, made, same)["services"][0]["verdict"] == "kept"
    told = measured(Deployment("hall", (), None, (asker(),)), wrong, made)["services"][0]
    assert (told["kept"], told["score"]["drop"]) == (False, 0.425)


def test_unanswered_requests_count_against_the_promise(factory: Factory) -> None:
    air = np.full(200, 1.0)
    air[::4] = np.nan
    one = contents("hall", factory, planned(candidate("input", 0.01), 12.0), driven(readings(air, air)))["services"][0]
    assert (one["sent"], one["answered"], one["failed"]) == (200, 150, 50)
    assert one["measured_ms"] is None
    assert one["kept"] is False
    assert one["cdf"]["measured"][-1] == 0.75


def test_a_cut_is_held_against_the_best_without_one(factory: Factory) -> None:
    """Not against one that is faster and wrong: its score falls by more than the promise allows."""
    wrong = lost("none", 5.0, score=0.8)
    made = planned(candidate("relu", 0.01), 30.0, lost("input", 40.0), lost("none", 60.0), wrong)
    why = contents("hall", factory, made)["services"][0]["why"]
    assert why.startswith("the cheapest; 10 ms less than the best without a cut (send the input (raw), fp32 on mast)")
    slower = planned(candidate("input", 0.01), 30.0, lost("relu", 45.0))
    assert (
        "15 ms more than the best without a cut"
        in contents("hall", factory, slower)["services"][0]["runners_up"][0]["why"]
    )


def test_emulation_names_what_is_used_and_nothing_else(factory: Factory) -> None:
    lines = emulation(factory, planned(candidate("input", 0.01), 12.0))
    assert [line.split(":")[0] for line in lines] == ["the air of hall", "mast", "mast"]
    alone = emulation(factory, planned(candidate("none", 0.01), 12.0))
    assert [line.split(":")[0] for line in alone] == ["camera"]


def test_what_is_kept_is_reported_later(factory: Factory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was never brought up; airserve up FILE"):
        of_run(tmp_path)
    keep(tmp_path, factory, planned(candidate("input", 0.01), 12.0))
    with pytest.raises(UserError, match="airserve drive"):
        of_run(tmp_path)


def test_a_run_is_reported_against_its_own_plan(factory: Factory, tmp_path: Path) -> None:
    """Not against the promise of a later one; when the earlier plan is started again, its run counts again."""
    first, second = planned(candidate("input", 0.01), 12.0), planned(candidate("none", 0.01), 40.0)
    run = driven(readings(np.full(200, 5.0), np.full(200, 5.0)))
    keep(tmp_path, factory, first)
    save(replace(run, seed=1), tmp_path)  # of an earlier version: it does not say which plan it ran
    with pytest.raises(UserError, match="not measured since this plan was started: its last run, drive-001, is of"):
        of_run(tmp_path)
    save(replace(run, seed=2, plan=digest(tmp_path)), tmp_path)
    assert of_run(tmp_path)["seed"] == 2
    keep(tmp_path, factory, second)
    with pytest.raises(UserError, match=f"drive-002, .*run `airserve drive {tmp_path.name}`"):
        of_run(tmp_path)
    save(replace(run, seed=3, plan=digest(tmp_path)), tmp_path)
    assert of_run(tmp_path)["seed"] == 3
    keep(tmp_path, factory, replace(first, seconds=9.0))  # made anew, the same
    assert of_run(tmp_path)["seed"] == 2


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("factory.json", r"factory\.json is not a saved description .*airserve up FILE"),
        ("plan.json", r"plan\.json is not a saved plan .*airserve up FILE"),
        (
            "drive-001.json",
            r"drive-001\.json is not a saved run .*move drive-001\.\* away, or drive again",
        ),
        ("drive-001.npz", r"drive-001\.npz is not a saved run .*airserve drive"),
    ],
)
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_file_is_one_sentence(
    factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, says: str, damage: bytes
) -> None:
    keep(tmp_path, factory, planned(candidate("input", 0.01), 12.0))
    plan = digest(tmp_path)
    save(replace(driven(readings([1.0], [1.0])), plan=plan), tmp_path)
    monkeypatch.setattr("airserve.serve.driving.digest", lambda _: plan)
    (tmp_path / file).write_bytes(damage)
    says = "not measured since" if (file, damage) == ("drive-001.json", b"{}") else says  # a run that names no plan
    with pytest.raises(UserError, match=says) as told:
        of_run(tmp_path)
    assert "\n" not in str(told.value)


def test_an_invalid_run_says_why(factory: Factory) -> None:
    run = replace(driven(readings([1.0], [1.0])), valid=False, invalid_why="the relay was late")
    said = contents("hall", factory, planned(candidate("input", 0.01), 12.0), run)
    assert (said["valid"], said["invalid_why"]) == (False, "the relay was late")
    assert said["services"][0]["verdict"] == "too few requests"
