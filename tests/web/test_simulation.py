"""The simulation's page: all numbers in the HTML, nothing asked of the network, the same for the same run."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from airserve.contract import Promise, judge
from airserve.network import twin
from airserve.network.topology import Network
from airserve.network.traffic import Flow
from airserve.web.simulation import contents, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HALL = Network.model_validate(
    {
        "cells": [{"name": "hall"}],
        "slices": [{"name": "control", "dedicated": 10, "min": 20}, {"name": "bulk"}],
        "sites": [{"name": "mast", "kind": "edge", "delay_ms": 1}, {"name": "cam", "kind": "device"}],
    }
)
FLOWS = [
    Flow("robots", "control", 5, 10, site="mast", bytes_up=[900], bytes_down=[200], site_seconds=[0.001]),
    Flow("files", "bulk", 3, 2, "poisson", site="mast", bytes_up=[60_000], bytes_down=[200], transport="tcp-cold"),
    Flow("alone", "bulk", 2, 2, device_site="cam", device_seconds=[0.02]),
    Flow("flood", "bulk", 2, 5, site="mast", bytes_up=[9_000_000], bytes_down=[200]),
]


@pytest.fixture(scope="module")
def found():
    outcome = twin.run(HALL, FLOWS, until_s=4, seed=1, drain_s=1)
    promises = {"robots": Promise(50, 90), "files": Promise(20, 50)}
    return contents("hall", HALL, FLOWS, outcome, promises, 4, 1), outcome


def test_distributions_are_those_of_the_readings(found):
    page, outcome = found
    for one in page["services"]:
        readings = outcome.readings[one["name"]]
        grid = np.array(one["cdf"]["ms"])
        assert (np.diff(grid) > 0).all()
        for at in (3, len(grid) // 2, len(grid) - 1):
            assert one["cdf"]["total"][at] == pytest.approx((readings.latency_ms <= grid[at] + 1e-6).mean(), abs=1e-6)
            for k, shares in enumerate(one["cdf"]["spans"]):
                known = readings.ms[~np.isnan(readings.ms).any(axis=1), k]
                assert shares[at] == pytest.approx((known <= grid[at] + 1e-6).sum() / len(readings.ms), abs=1e-6)
        means = [span["mean"] for span in one["spans"]]
        if one["answered"]:
            assert sum(means) == pytest.approx(readings.latency_ms[np.isfinite(readings.latency_ms)].mean(), rel=1e-3)


def test_the_page_says_it_without_scripts(found):
    html = render(found[0])
    text = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)
    text = " ".join(text.split())
    assert "1 of 2 promises would not be kept." in text
    assert "files: p50" in text
    assert "Simulated: no packet was sent." in text
    robots = found[0]["services"][0]
    assert f"{robots['latency_ms']['p99']:.1f}" in text
    assert "wait ↑ · transport" in text
    assert "∞" in text
    assert len(html) < 300_000
    own = html.replace("http://www.w3.org/2000/svg", "").replace("https://github.com/leeoniya/uPlot", "")
    assert not re.search(r"https?:|\bsrc=|@import", own)
    assert "default-src &#x27;none&#x27;" in html


def test_an_empty_run_has_a_page():
    quiet = [Flow("rare", "bulk", 1, 1e-6, "poisson", site="mast", bytes_up=[1], bytes_down=[1])]
    outcome = twin.run(HALL, quiet, until_s=1, seed=1)
    assert "1 service, 0 requests." in render(contents("hall", HALL, quiet, outcome, {}, 1, 1))
    html = render(contents("hall", HALL, quiet, outcome, {"rare": Promise(50, 99)}, 1, 1))
    assert "Too few requests to judge the promise." in html
    assert "would not be kept" not in html


def test_a_promise_is_judged_on_as_many_requests_as_in_a_report(found):
    """Of the same readings the page has the verdict of `contract.judge`, here 200 requests of the robots."""
    readings = found[1].readings["robots"]
    for q in (90, 95, 99):
        promise = Promise(500, q)
        word = judge(readings.latency_ms, readings.sent_s, promise, np.random.default_rng(0)).word
        html = render(contents("hall", HALL, FLOWS, found[1], {"robots": promise}, 4, 1))
        said = {"kept": "The promise would be kept.", "too few requests": "Too few requests to judge the promise."}
        assert said.pop(word) in html
        assert not any(other in html for other in said.values())


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_draws_it(found, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render(found[0]), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "CONSOLE" not in done.stderr  # no error, and the policy refused nothing
    assert done.stdout.count("<canvas") == len(FLOWS) + len(HALL.slices)


def test_a_map_of_several_cells():
    """Every device is drawn once, in the colour of its SINR, and the table says what the summary says."""
    hall = HALL.model_dump()
    hall["cells"] = [{**hall["cells"][0], "trps": 4, "speed_kmh": 20}]
    net, flows = Network.model_validate(hall), [FLOWS[0]]
    outcome = twin.run(net, flows, until_s=3, seed=1)
    page = contents("hall", net, flows, outcome, {}, 3, 1)
    assert len(page["map"]["devices"]) == 5
    assert [one["name"] for one in page["map"]["cells"]] == ["hall-1", "hall-2", "hall-3", "hall-4"]
    html = render(page)
    assert 'aria-label="map of 4 cells and 5 devices"' in html
    shown = html.split("<h2>Cells and devices</h2>")[1].split("</svg>")[0]
    assert len(re.findall(r"<circle", shown)) == 5
    assert shown.count('class="mast"') == 4
    for (_, _, k, db), drawn in zip(page["map"]["devices"], re.findall(r'class="sinr-(\w+)"', shown), strict=True):
        assert drawn == ("none" if db is None else str(sum(db >= step for step in (0, 7, 14, 21, 28))))
        assert 0 <= k < 4
    for row in outcome.summary()["cells"]:
        assert f'<td>{row["name"]}</td><td class="n">{row["devices"]}</td>' in html
    assert render(contents("hall", net, flows, twin.run(net, flows, until_s=3, seed=1), {}, 3, 1)) == html
    alone = contents("hall", HALL, flows, twin.run(HALL, flows, until_s=1, seed=1), {}, 1, 1)
    assert "Cells and devices" not in render(alone)
