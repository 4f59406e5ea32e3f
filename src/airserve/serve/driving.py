"""Drive a deployment: its devices ask with real samples at their rates, and every request becomes a Reading.

The devices live in a process of their own, which wakes on time: `python -m airserve.serve.driving RUN_DIR SECONDS
SEED`. Afterwards the answers are scored, beside those of the original Model to the same samples.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from airserve import airlog
from airserve.contract import Deployment, Readings, Span, from_plain, to_plain
from airserve.errors import UserError
from airserve.linux import cores_awake, die_with_parent, run_as_others, run_on_time
from airserve.model import Array
from airserve.serve.asking import Voice, ask, schedule
from airserve.serve.comparing import Score, score
from airserve.serve.joining import join
from airserve.serve.validity import computed_over_ms, released_late_ms, why_invalid

PRIORITY = 5  # of SCHED_FIFO: below the relay, for the air comes first
LOG_S = 5.0  # to wait for the relay's log; it is written each second
DOWN, UP = 0, 1
DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)
FACTORY, PLAN = "factory.json", "plan.json"  # what a deployment was made from, in its folder


class DriveError(UserError):
    """A run that could not be made; the message is one sentence for the user."""


@dataclass(frozen=True)
class Used:
    """What a slice used of the cell in one direction: share of PRBs, application Mbit/s, share by the second."""

    share_used: float
    mbps: float
    per_s: tuple[float, ...]


@dataclass(frozen=True)
class Drive:
    """A measured run. Dictionaries are by service; `usage` by slice, then "up" and "down"."""

    readings: dict[str, Readings]
    scores: dict[str, Score]
    sent: dict[str, int]
    answered: dict[str, int]
    failed: dict[str, int]
    failures: dict[str, dict[str, int]]  # what was said, and how often
    seconds: float
    seed: int
    lateness_ms_p99: float  # of the relay's releases, in this run
    driver_lateness_ms_p99: float  # from the intended send time to the actual; it is in the Readings
    overruns: int  # computations longer than those of the emulated site
    overrun_ms: dict[str, float]  # by how much, at the percentile of each service's promise
    valid: bool
    invalid_why: str
    scheduling: dict[str, str] = field(default_factory=dict)  # what relay, driver and cores obtained
    usage: dict[str, dict[str, Used]] = field(default_factory=dict)
    plan: str = ""  # digest of the description and plan that were run, "" where none was kept


def drive(
    deployment: Deployment,
    *,
    seconds: float,
    seed: int,
    run_dir: Path,
    progress: Callable[[float, float], None] | None = None,
) -> Drive:
    """Have the devices of every Asker ask for so long, and return what was measured.

    `run_dir` is the folder of the deployment, which is up; the run is saved there for `load`. `progress` is told the
    seconds that have passed, of how many. Raises `DriveError`, one sentence, where the run could not be made: a
    deployment is driven once at a time.
    """
    if not deployment.askers:
        raise DriveError(f"deployment {deployment.name} has nobody who asks; give it a service with a model.")
    with _only_one(run_dir):
        (run_dir / "driven.json").write_text(json.dumps(to_plain(deployment)), encoding="utf-8")
        _drive(run_dir, seconds, seed, progress)
        return load(run_dir)


@contextlib.contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Hold a deployment's lock, which the kernel frees with this process. Raises `DriveError` where another has it."""
    with open(run_dir / "drive.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DriveError(
                f"{run_dir.name} is being driven already, and a second drive would add to the load that the first one "
                "measures; wait until that has ended."
            ) from None
        yield


def _drive(run_dir: Path, seconds: float, seed: int, progress: Callable[[float, float], None] | None) -> None:
    """The run itself, in a process of its own that saves it."""
    command = [sys.executable, "-m", "airserve.serve.driving", str(run_dir), str(seconds), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if progress is not None:
                    progress(min(float(line), seconds), seconds)
            said = process.stderr.read().strip().splitlines()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise DriveError(said[-1] if said else f"the driver ended with status {process.returncode}.")


def load(run_dir: Path, number: int | None = None) -> Drive:
    """A run saved in a deployment's folder, by default the last. Raises `DriveError` where there is none."""
    found = _saved(run_dir)
    if not found or (number is not None and number not in found):
        which = "no run" if number is None else f"no run {number}"
        raise DriveError(f"{run_dir} holds {which}; make one with `airserve drive`.")
    number = max(found) if number is None else number
    stem = run_dir / f"drive-{number:03d}"
    plain = _record(stem.with_suffix(".json"))
    try:
        return _run(plain, stem.with_suffix(".npz"))
    except DAMAGE as error:
        raise _damaged(stem.with_suffix(".npz"), error) from None


def _run(plain: dict[str, Any], arrays: Path) -> Drive:
    with np.load(arrays, allow_pickle=False) as file:
        readings = {
            service: Readings(
                service,
                tuple(from_plain(Span, span) for span in columns),
                *(file[f"{service}/{name}"] for name in ("sent_s", "device", "ms")),
            )
            for service, columns in plain.pop("spans").items()
        }
    plain["scores"] = {service: from_plain(Score, score) for service, score in plain["scores"].items()}
    plain["usage"] = {
        name: {way: from_plain(Used, used) for way, used in ways.items()} for name, ways in plain["usage"].items()
    }
    return Drive(readings=readings, **plain)


def _record(path: Path) -> dict[str, Any]:
    """What stands in a run's JSON. Raises `DriveError` where it cannot be read."""
    try:
        plain = _json(path)
    except DAMAGE as error:
        raise _damaged(path, error) from None
    if not isinstance(plain, dict):
        raise _damaged(path, TypeError(f"it holds a {type(plain).__name__}"))
    return plain


def _damaged(path: Path, error: Exception) -> DriveError:
    return DriveError(
        f"{path} is not a saved run ({str(error)[:80]}); move drive-{path.stem[6:]}.* away, or drive again: "
        f"airserve drive {path.parent.name}."
    )


def of_plan(run_dir: Path) -> Drive:
    """The last run of the plan that a deployment's folder holds. Raises `DriveError` where there is none."""
    found, plan = _saved(run_dir), digest(run_dir)
    for number in reversed(found):
        if plan and _record(run_dir / f"drive-{number:03d}.json").get("plan") == plan:
            return load(run_dir, number)
    if not found:
        return load(run_dir)
    raise DriveError(
        f"{run_dir.name} was not measured since this plan was started: its last run, drive-{found[-1]:03d}, is of "
        f"another plan or does not say of which; run `airserve drive {run_dir.name}`."
    )


def digest(run_dir: Path) -> str:
    """SHA-256 of the description and the plan that a deployment's folder holds, "" where it holds none.

    How long planning took is no part of it: the same plan may have been made twice.
    """
    try:
        description, plan = (run_dir / FACTORY).read_bytes(), (run_dir / PLAN).read_bytes()
    except OSError:
        return ""
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # damaged: who reads it says so
        plan = json.dumps({**json.loads(plan), "seconds": 0}).encode()
    return hashlib.sha256(description + b"\n" + plan).hexdigest()


def save(run: Drive, run_dir: Path) -> Path:
    """Keep a run in a deployment's folder under the next number; returns the path of its JSON."""
    stem = run_dir / f"drive-{max(_saved(run_dir), default=0) + 1:03d}"
    arrays = {
        f"{service}/{name}": getattr(readings, name)
        for service, readings in run.readings.items()
        for name in ("sent_s", "device", "ms")
    }
    np.savez_compressed(stem.with_suffix(".npz"), **arrays)
    plain = {name: to_plain(value) for name, value in vars(run).items() if name != "readings"}
    plain["spans"] = {service: to_plain(readings.spans) for service, readings in run.readings.items()}
    new = stem.with_suffix(".new")
    new.write_text(json.dumps(plain, indent=1), encoding="utf-8")
    return new.replace(stem.with_suffix(".json"))


def measure(
    deployment: Deployment,
    *,
    seconds: float,
    seed: int,
    run_dir: Path,
    progress: Callable[[float], None] | None = None,
) -> Drive:
    """As `drive`, in this process and unsaved. Raises `UserError`."""
    voices = [Voice(deployment, asker) for asker in deployment.askers]
    asked = [
        schedule(asker, voice.rows, seconds, (seed, k))
        for k, (asker, voice) in enumerate(zip(deployment.askers, voices, strict=True))
    ]
    overrun_before = _overruns(deployment)
    skip = {name: airlog.size(run_dir, name) for name in (airlog.LOG, airlog.USAGE_LOG)}
    with cores_awake() as cores:
        scheduling = {"driver": run_on_time(PRIORITY), "cores": cores}
        began_s = ask(voices, asked, seconds=seconds, progress=progress)
        ended_s = time.monotonic()
        run_as_others()
    overruns = sum(max(0, now - overrun_before.get(key, 0)) for key, now in _overruns(deployment).items())
    log, usage, lateness_ms = None, {}, 0.0
    if deployment.air is not None:
        scheduling["relay"] = _wait_for_log(run_dir, ended_s)
        log = airlog.read(run_dir, since=skip[airlog.LOG])
        usage = _usage(deployment, airlog.read(run_dir, airlog.USAGE_LOG, skip[airlog.USAGE_LOG]), began_s, seconds)
        lateness_ms = released_late_ms(deployment, log)
    readings, unexplained = {}, 0
    for asker, one in zip(deployment.askers, asked, strict=True):
        readings[asker.service], more = join(deployment, asker, one, log, began_s)
        unexplained += more
    late = np.concatenate([one.late_s for one in asked])
    driver_ms = float(np.percentile(1e3 * late, 99)) if len(late) else 0.0
    overrun_ms = {
        asker.service: computed_over_ms(deployment, asker, readings[asker.service]) for asker in deployment.askers
    }
    why = why_invalid(deployment, asked, lateness_ms, driver_ms, overrun_ms, unexplained)
    services = list(zip(deployment.askers, voices, asked, strict=True))
    return Drive(
        readings=readings,
        scores={a.service: score(a, v.samples, one, rng=np.random.default_rng(seed)) for a, v, one in services},
        sent={a.service: len(one.sent_s) for a, _, one in services},
        answered={a.service: one.answered for a, _, one in services},
        failed={a.service: len(one.sent_s) - one.answered for a, _, one in services},
        failures={a.service: one.failures for a, _, one in services},
        seconds=seconds,
        seed=seed,
        lateness_ms_p99=lateness_ms,
        driver_lateness_ms_p99=driver_ms,
        overruns=overruns,
        overrun_ms=overrun_ms,
        valid=not why,
        invalid_why=why,
        scheduling=scheduling,
        usage=usage,
    )


def _usage(deployment: Deployment, rows: Array, began_s: float, seconds: float) -> dict[str, dict[str, Used]]:
    """What each slice used in the whole seconds while the devices asked, or where there are none, about them."""
    assert deployment.air is not None
    inside = (rows["until_s"] - 1 >= began_s) & (rows["until_s"] <= began_s + seconds)
    about = (rows["until_s"] > began_s) & (rows["until_s"] - 1 < began_s + seconds)
    rows = rows[inside] if inside.any() else rows[about]
    found: dict[str, dict[str, Used]] = {}
    for k, one in enumerate(deployment.air.network["slices"]):
        for way, name in ((UP, "up"), (DOWN, "down")):
            mine = rows[(rows["slice"] == k) & (rows["direction"] == way)]
            share = mine["prbs_used"] / np.maximum(mine["prbs"], 1)
            found.setdefault(str(one["name"]), {})[name] = Used(
                float(mine["prbs_used"].sum() / max(mine["prbs"].sum(), 1)),
                float(mine["nbytes"].sum() * 8e-6 / max(len(mine), 1)),
                tuple(share.tolist()),
            )
    return found


def _wait_for_log(run_dir: Path, ended_s: float) -> str:
    """Wait until the relay has written all until a time; returns the scheduling that it obtained."""
    until_s = time.monotonic() + LOG_S
    while (status := airlog.status(run_dir))["until_s"] < ended_s:
        if time.monotonic() > until_s:
            raise DriveError(f"the relay has not written to {run_dir} for {LOG_S:.0f} s; see that it runs.")
        time.sleep(0.1)
    return str(status["scheduling"])


def _overruns(deployment: Deployment) -> dict[str, int]:
    """How many computations of each process lasted longer than the emulated site's would, since its start."""
    found = {}
    for process in deployment.processes:
        connection = http.client.HTTPConnection(process.host, process.port, timeout=5)
        try:
            connection.request("GET", "/v2/models/stats")
            models = json.loads(connection.getresponse().read())["model_stats"]
        except (OSError, http.client.HTTPException) as error:
            raise DriveError(
                f"{process.key} does not answer at {process.host}:{process.port} ({error}); is the deployment up?"
            ) from None
        finally:
            connection.close()
        found[process.key] = sum(int(model["padding"]["overruns"]) for model in models)
    return found


def _saved(run_dir: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("drive-")) for path in run_dir.glob("drive-[0-9]*.json"))


def main(arguments: Sequence[str]) -> int:
    """The driver's process: prints the seconds that have passed; status 2 with a sentence where it could not run."""
    run_dir, seconds, seed = Path(arguments[0]), float(arguments[1]), int(arguments[2])
    die_with_parent(os.getppid())
    try:
        deployment, plan = from_plain(Deployment, _json(run_dir / "driven.json")), digest(run_dir)
        run = measure(deployment, seconds=seconds, seed=seed, run_dir=run_dir, progress=lambda s: print(s, flush=True))
        save(replace(run, plan=plan), run_dir)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
