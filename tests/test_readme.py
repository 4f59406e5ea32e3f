"""The README is a test: its commands and its Python run as they stand, in a home of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.realtime

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVICE = {
    "name", "model", "variant", "cut", "sites", "slice", "promise_ms", "percentile", "predicted_ms",
    "predicted_interval_ms", "measured_ms", "measured_interval_ms", "sent", "answered", "failed", "score", "why",
    "runners_up", "max_devices", "kept",
}  # fmt: skip
MAY_MISS = {
    "drive": {0, 1, 4},
    "report": {0, 1, 4},
}  # a busy machine may break a promise, or the run; never the command


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    yield home
    subprocess.run(
        [sys.executable, "-m", "airserve.cli", "down", "digits"], cwd=ROOT, env=environment(home), check=False
    )


def environment(home):
    return {**os.environ, "AIRSERVE_HOME": str(home), "COLUMNS": "100"}


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [line for line in lines if line.startswith("airserve ")]


def test_the_steps_run(home):
    assert len(commands()) >= 10
    for line in commands():
        verb, *rest = shlex.split(line)[1:]
        run = subprocess.run(
            [sys.executable, "-m", "airserve.cli", verb, *rest],
            cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode in MAY_MISS.get(verb, {0}), f"{line}\n{run.stdout}\n{run.stderr}"
        assert "Traceback" not in run.stdout + run.stderr
    assert (home / "run/digits/report.html").stat().st_size > 10_000
    (service,) = reported(home)["services"]
    assert service["sent"] == service["answered"] + service["failed"] > 300
    assert set(service) >= SERVICE
    for column in ("median_ms", "slow_ms", "predicted_slow_ms"):  # whole requests: their spans add up to latencies
        assert sum(row[column] or 0 for row in service["waterfall"]) > 1
    median = sum(row["median_ms"] or 0 for row in service["waterfall"])
    assert median == pytest.approx(service["measured_p50_ms"], rel=0.05)
    assert service["score"]["metric"] == "accuracy"
    assert 0.9 < service["score"]["value"] <= 1


def reported(home):
    """What `airserve report --json` says: the shape that programs rely on."""
    run = subprocess.run(
        [sys.executable, "-m", "airserve.cli", "report", "digits", "--json"],
        cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert {"services", "slices", "emulation", "valid", "lateness_ms_p99"} <= set(found)
    assert {"name", "up", "down"} <= set(found["slices"][0])
    return found


def test_the_python_runs(home):
    for block in blocks("python"):
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "p99" in run.stdout


def test_the_make_targets_exist():
    made = (ROOT / "Makefile").read_text()
    targets = [word for block in blocks("sh") for word in re.findall(r"^make (\w+)", block, re.MULTILINE)]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", made, re.MULTILINE)


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
