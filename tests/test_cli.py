"""The command line as a stranger types it: mistakes get one sentence and status 2, tables have their JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACTORY = ROOT / "examples/factory/factory.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def airserve(home, *words, timeout=120):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "airserve.cli", *map(str, words)],
        env={**os.environ, "AIRSERVE_HOME": str(home), "COLUMNS": "200"},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


MISTAKES = [
    (["trian", "mlp", "digits"], "trian"),
    (["train", "mpl", "digits"], "no net named 'mpl'; perhaps mlp"),
    (["train", "mlp", "digit"], "no task named 'digit'; perhaps digits?"),
    (["train", "mlp,widht=3", "digits"], "widht"),
    (["train", "mlp", "digits", "--seed", "-1"], "Invalid value for '--seed'"),
    (["train", "mlp", "digits", "--seed", "18446744073709551616"], "Invalid value for '--seed'"),
    (["compress", "nothing"], "nothing"),
    (["models", "show", "nothing"], "nothing"),
    (["import", "nowhere.onnx", "--name", "x"], "nowhere.onnx"),
    (["plan", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    (["plan", FACTORY], "resnet8-fashion"),
    (["simulate", FACTORY], "resnet8-fashion"),
    (["status", "nothing"], "no deployment named 'nothing'"),
    (["drive"], "no deployment yet"),
    (["report", "nothing"], "nothing"),
    (["traces", "inf-xx"], "inf-xx"),
    (["plan", FACTORY, "--seed", "-5"], "Invalid value for '--seed'"),
    (["simulate", FACTORY, "--seed", "-1"], "Invalid value for '--seed'"),
    (["drive", "--seed", "-1"], "Invalid value for '--seed'"),
    (["drive", "--seconds", "soon"], "Invalid value for '--seconds'"),
    (["serve", "x.onnx", "--port", "99999"], "Invalid value for '--port'"),
    (["serve", "x.onnx", "--grpc-port", "99999"], "Invalid value for '--grpc-port'"),
    (["key", "x", "--to", "keys.json", "--rate-hz", "-5"], "Invalid value for '--rate-hz'"),
    (["admit", FACTORY, "Line 2", "--devices", "1"], "'Line 2' is not a name for a slice"),
]


@pytest.mark.parametrize(
    ("words", "says"), MISTAKES, ids=lambda v: " ".join(map(str, v)) if isinstance(v, list) else ""
)
def test_a_mistake_gets_a_sentence(home, words, says):
    run = airserve(home, *words)
    assert run.returncode == 2, run.stdout + run.stderr
    assert says in run.stderr
    assert "Traceback" not in run.stdout + run.stderr


def test_a_file_that_is_not_onnx_leaves_nothing(home, tmp_path):
    file = tmp_path / "no.onnx"
    file.write_bytes(b"this is not a graph")
    run = airserve(home, "import", file, "--name", "no")
    assert run.returncode == 2
    assert "no.onnx cannot be opened as an ONNX model" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert json.loads(airserve(home, "models", "--json").stdout) == []


def test_simulate_says_what_silence_adds_to_a_slow_request(home, tmp_path):
    """The connection that is set up is most of the latency of a device that speaks every 20 s."""
    file = tmp_path / "silent.yaml"
    file.write_text(
        "network:\n  cells: [{name: hall, always_on: false}]\n  slices: [{name: all}]\n"
        "  sites: [{name: mast, kind: edge}]\nservices:\n"
        "  - {name: meters, bytes_up: 300, bytes_down: 100, compute_ms: 1, site: mast, devices: 5, rate_hz: 0.05,\n"
        "     slice: all}\n"
    )
    run = airserve(home, "simulate", file, "--seconds", "100")
    assert run.returncode == 0, run.stderr
    head, row = run.stdout.splitlines()[:2]
    assert head.split()[-3:] == ["access", "in", "p99"]
    assert 80 < int(row.split()[-1].rstrip("%")) < 100


SIZES = (
    FACTORY.read_text().partition("services:")[0] + "services:\n"
    "  - {name: backups, bytes_up: 120000, bytes_down: 200, compute_ms: 2, site: mast, devices: 4, rate_hz: 1,\n"
    "     slice: video, arrival: poisson}\n"
)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seconds", "inf"], "the run would last inf s; it may last 10,000,000 s"),
        (["--seconds", "9e6"], "send about 36,000,004 requests in 9e+06 s; a run has room for 10,000,000: lower"),
        (["--seconds", "1", "--html", "."], "the page . cannot be written (is a directory); name a file"),
    ],
)
def test_a_run_that_cannot_be_is_no_fault_of_airserve(home, tmp_path, words, says):
    (tmp_path / "sizes.yaml").write_text(SIZES)
    run = airserve(home, "simulate", tmp_path / "sizes.yaml", *words, timeout=300)
    assert run.returncode == 2, run.stderr
    assert says in run.stderr


def test_simulate_speaks_of_sizes_alone_in_the_promised_shape(home, tmp_path):
    file = tmp_path / "sizes.yaml"
    file.write_text(SIZES)
    run = airserve(home, "simulate", file, "--seconds", "10", "--seed", "1", "--json", timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    (service,) = found["services"]
    assert set(found) == {"services", "slices", "base_stations", "realtime_factor"}
    assert 55 < found["base_stations"][0]["power"] < 280
    assert 89 < service["power"] < 150
    keys = {"name", "sent", "answered", "latency_ms", "share_of_p99", "spans_ms", "power", "share_of_time"}
    assert set(service) == keys
    assert set(service["latency_ms"]) == {"p50", "p90", "p99", "max"}
    assert {"kind", "direction", "site", "p50", "p99"} == set(service["spans_ms"][0])
    assert service["sent"] == service["answered"] > 10
    assert [set(one) for one in found["slices"]] == [{"name", "up", "down"}] * 2
    assert set(found["slices"][1]["up"]) == {"share_used", "mbps"}
    pages = [tmp_path / f"{i}.html" for i in (1, 2)]
    for page in pages:
        again = airserve(home, "simulate", file, "--seconds", "10", "--seed", "1", "--html", page, "--json")
        assert json.loads(again.stdout) | {"realtime_factor": 0} == found | {"realtime_factor": 0}
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_simulate_says_which_promise_would_not_be_kept(home, tmp_path):
    """Of a service that states its sizes; its compute and the way to its site alone are 4 ms."""
    file = tmp_path / "promised.yaml"
    text = (
        "network:\n  cells: [{name: hall}]\n  slices: [{name: all}]\n"
        "  sites: [{name: mast, kind: edge, delay_ms: 1}]\nservices:\n"
        "  - {name: meters, bytes_up: 300, bytes_down: 100, compute_ms: 2, site: mast, devices: 5, rate_hz: 10,\n"
        "     slice: all, promise: {latency_ms: LATENCY, percentile: 90}}\n"
    )
    for latency_ms, status, words in [
        (4, 1, "The promise would not be kept. meters: p90"),
        (400, 0, "The promise would be kept."),
    ]:
        file.write_text(text.replace("LATENCY", str(latency_ms)))
        run = airserve(home, "simulate", file, "--seconds", "10")
        assert run.returncode == status, run.stderr
        assert words in run.stdout.splitlines()[-1]
        run = airserve(home, "simulate", file, "--seconds", "10", "--json")
        assert run.returncode == status
        promise = json.loads(run.stdout)["services"][0]["promise"]
        assert (promise["promise_ms"], promise["percentile"], promise["kept"]) == (latency_ms, 90, status == 0)
        assert 4 < promise["value_ms"] < 400
    run = airserve(home, "simulate", file, "--seconds", "1")
    assert run.returncode == 0
    assert "Too few requests to judge the promise" in run.stdout.splitlines()[-1]


def test_a_slice_is_booked_or_refused_with_what_could(home):
    """Minima of 20 and 30 % are taken: half of the cell is free, and the devices that it keeps can then be booked."""
    made = json.loads(airserve(home, "admit", FACTORY, "new", "--devices", 10, "--up-mbps", 2, "--json").stdout)
    part = made["capacity"]["up_mbps"] / 100
    assert made["slice"]["min"] == pytest.approx(20 / part, abs=0.4)  # up to a whole PRB of 273
    refused = airserve(home, "admit", FACTORY, "new", "--devices", 1000, "--up-mbps", 2)
    assert refused.returncode == 2
    assert f"50 % are free; 50 % could be booked, for {int(50 * part / 2)} devices." in " ".join(refused.stderr.split())


def test_status_writes_addresses_as_people_do(capsys):
    from airserve.cli.deployments import _status

    unit = {"state": "ready", "error": "", "addresses": ["127.1.0.1:7800", "127.1.0.1:7801"]}
    _status({"name": "hall", "up": True, "units": {"scanner-1": unit}}, False)
    assert "127.1.0.1:7800, 127.1.0.1:7801" in capsys.readouterr().out


def test_schema_is_json(home):
    assert "properties" in json.loads(airserve(home, "schema").stdout)


@pytest.mark.parametrize(("where", "says"), [("kept", "log and report it"), ("/dev/null", "see above and report it")])
def test_a_fault_of_our_own_is_said_and_kept_where_it_can_be(tmp_path, where, says):
    code = (
        "from airserve.cli import __main__, app, deployments, models, network, services\n"
        "app.app = lambda: 1 / 0\n__main__.main()"
    )
    made = tmp_path / where  # an absolute one stays itself
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "AIRSERVE_HOME": str(made)}, capture_output=True, text=True
    )
    assert done.returncode == 70
    assert "a fault of airserve itself (ZeroDivisionError)" in done.stderr
    assert says in " ".join(done.stderr.split())
    told = (made / "crash.log").read_text() if where == "kept" else done.stderr
    assert "ZeroDivisionError: division by zero" in told


def test_a_closed_pipe_is_quiet(home):
    run = subprocess.run(
        f"{sys.executable} -m airserve.cli schema | head -1",
        shell=True, capture_output=True, text=True, check=False, env={**os.environ, "AIRSERVE_HOME": str(home)},
    )  # fmt: skip
    assert run.stdout == "{\n"
    assert run.stderr == ""


def test_ctrl_c_while_the_commands_are_imported_is_quiet_too(home):
    text = """
import builtins, sys
from airserve.cli.__main__ import main

def interrupted(name, *rest, known=builtins.__import__):
    if name == "airserve.cli":
        raise KeyboardInterrupt
    return known(name, *rest)

builtins.__import__ = interrupted
sys.argv = ["airserve", "models"]
main()
"""
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr == "airserve: interrupted; what was started has been stopped.\n"


@pytest.mark.parametrize("words", [["schema"], ["simulate", "--seconds", "1"], ["simulate", "--json"], ["--help"]])
def test_a_closed_pipe_is_no_broken_promise(home, tmp_path, words):
    """Whoever writes into it: rich its tables, typer its help, or Python what is left at the end."""
    (tmp_path / "sizes.yaml").write_text(SIZES)
    file = [tmp_path / "sizes.yaml"] if "simulate" in words else []
    run = subprocess.Popen(
        [sys.executable, "-m", "airserve.cli", *words, *file],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "AIRSERVE_HOME": str(home)},
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert run.stderr.read() == b""
    run.stderr.close()
    assert run.wait(300) == 0
