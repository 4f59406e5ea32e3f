"""From a Plan to processes that run: what is wanted as data, and the verbs up, status and down.

Devices count from 1 over all services: device k has the address 127.1.(k >> 8).(k & 255), site s is reached over the
air at 127.2.0.s, and everything of this machine listens at 127.0.0.1. A deployment NAME lives in HOME/run/NAME.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airserve.airlog import STATUS
from airserve.contract import (
    Air,
    AirSite,
    Asker,
    Deployment,
    Endpoint,
    Route,
    SiteProcess,
    from_plain,
    to_plain,
)
from airserve.errors import Unknown, UserError
from airserve.linux import born, command
from airserve.place.sites.process import EMULATOR, SERVICE
from airserve.place.supervisor import DEPLOYMENT, SIGNALS, STATE, write

if TYPE_CHECKING:  # a supervisor's parent needs neither pydantic nor a database to take a deployment down
    from airserve.place.description import Factory, Service
    from airserve.place.plan import Candidate, Plan
    from airserve.registry import Registry

SUPERVISOR = "airserve.place.supervisor"
PORT = 7800
START_S = 300.0  # to be ready: the MAC is compiled when it runs for the first time on a machine
STOP_S = 8.0  # longer than the supervisor gives its children
MAX_DEVICES = (1 << 16) - 2
Progress = Callable[[int, int], None]


class DeploymentError(UserError):
    """A deployment that cannot be made or does not start; the message is one sentence for the user."""


@dataclass(frozen=True)
class Running:
    """A deployment that is up: its folder and its supervisor."""

    name: str
    run_dir: Path
    supervisor: int  # process


def device_address(k: int) -> str:
    """The address of device k, which counts from 1 over all services.

    >>> device_address(1), device_address(300)
    ('127.1.0.1', '127.1.1.44')
    """
    if not 1 <= k <= MAX_DEVICES:
        raise DeploymentError(f"a deployment has at most {MAX_DEVICES} devices; ask with fewer.")
    return f"127.1.{k >> 8}.{k & 255}"


def wanted(
    factory: Factory, plan: Plan, *, registry: Registry, name: str = "factory", port: int = PORT, seed: int = 0
) -> Deployment:
    """What a Plan asks to run: a process per site used and per device that computes, the air, and who asks.

    Site s listens at 127.0.0.1:port+s and is reached over the air at 127.2.0.s:port+s, s counting from 1 in the
    file's order; a device's process listens at its own address. `seed` is the MAC's. Raises `DeploymentError`.
    """
    sites = {site.name: k for k, site in enumerate(factory.servers(), 1)}
    if not 1 <= port < (1 << 16) - len(sites):
        raise DeploymentError(f"port {port} leaves no room for {len(sites)} sites; choose one from 1024 to 65000.")
    endpoints: dict[str, list[Endpoint]] = {}
    processes: list[SiteProcess] = []
    askers: list[Asker] = []
    on_air: list[str] = []
    slice_of: list[int] = []
    kinds: list[str] = []
    first: dict[str, int] = {}  # of each service, its first device in `on_air`
    k = 0
    for choice in plan.choices:
        service, chosen = factory.service(choice.service), choice.chosen
        addresses = tuple(device_address(k + 1 + i) for i in range(service.devices))
        asker = _asker(service, chosen, addresses, registry)
        if chosen.site:
            asker = replace(asker, air=tuple(range(len(on_air), len(on_air) + len(addresses))))
            first[service.name] = len(on_air)
            on_air.extend(addresses)
            slice_of.extend([factory.network.slice_index(service.slice)] * len(addresses))
            kinds.extend([service.ue] * len(addresses))
            endpoints.setdefault(chosen.site, []).append(Endpoint(_at_site(chosen), chosen.site_functions))
        if chosen.device_functions:
            cores = factory.network.site(chosen.device_site).cores
            for i, address in enumerate(addresses):
                onward = _route(chosen, sites, port, address) if chosen.site else None
                served = Endpoint(service.name, chosen.device_functions, onward)
                processes.append(SiteProcess(chosen.device_site, address, port, cores, (served,), k + 1 + i))
        k += service.devices
        askers.append(asker)
    if sized := [service.name for service in factory.services if service.model is None]:
        raise DeploymentError(
            f"service {sized[0]} has sizes in place of a model: it can be simulated and not deployed; "
            "give it a model, or take it out of the file."
        )
    for site, served_there in endpoints.items():
        s, cores = sites[site], factory.network.site(site).cores
        processes.append(SiteProcess(site, "127.0.0.1", port + s, cores, tuple(served_there)))
    air = None
    if on_air:
        air = Air(
            network=factory.network.model_dump(mode="json"),
            devices=tuple(on_air),
            slice_of=tuple(slice_of),
            kinds=tuple(kinds),
            device_of=_device_of(factory, first),
            channels=tuple(s.channel.model_dump() for s in map(factory.service, first) for _ in range(s.devices)),
            sites=tuple(
                AirSite(site, f"127.2.0.{s}", port + s, "127.0.0.1", port + s, factory.network.site(site).delay_ms)
                for site, s in sites.items()
                if site in endpoints
            ),
            seed=seed,
            tightest_ms=min(choice.promise.latency_ms for choice in plan.choices),
        )
    return Deployment(name, tuple(processes), air, tuple(askers))


def _device_of(factory: Factory, first: dict[str, int]) -> tuple[int, ...]:
    """The device behind every address on the air: that of another service, where `devices_of` says so and has it."""
    found: list[int] = []
    for name, own in first.items():
        service = factory.service(name)
        of = service.devices_of if service.devices_of in first else None
        there = factory.service(of).devices if of else 0
        found += [first[of] + k if of and k < there else own + k for k in range(service.devices)]
    return tuple(found)


def _at_site(chosen: Candidate) -> str:
    return chosen.service if chosen.cut == "input" else f"{chosen.service}-tail"


def _route(chosen: Candidate, sites: dict[str, int], port: int, source: str) -> Route:
    s = sites[chosen.site]
    return Route(f"127.2.0.{s}", port + s, _at_site(chosen), source, chosen.compress)


def _asker(service: Service, chosen: Candidate, addresses: tuple[str, ...], registry: Registry) -> Asker:
    parent = registry.get(chosen.reference.partition("/")[0])
    first = (*chosen.device_functions, *chosen.site_functions)[0]
    assert service.promise is not None  # a service with a model has one
    return Asker(
        service=service.name,
        model=service.name,
        samples=str(parent.samples_path or ""),
        reference=str(parent.path),
        addresses=addresses,
        air=(),
        rate_hz=service.rate_hz,
        arrival=service.arrival,
        encoded=first.kind == "preprocess",
        to="device" if chosen.device_functions else "air",
        site=chosen.site,
        device_site=chosen.device_site,
        promise=service.promise.plain(),
        compress=chosen.compress and not chosen.device_functions,
    )


# -- up, status, down -------------------------------------------------------------------------------------------------


def folder(name: str, home: Path) -> Path:
    """Where a deployment lives."""
    return home.absolute() / "run" / name


def up(deployment: Deployment, home: Path, progress: Progress | None = None) -> Running:
    """Start what is wanted and return when all of it is ready; harmless where it runs already.

    A Deployment that differs from the one that runs under its name replaces it, and only what differs is restarted.
    `progress` is told how many are ready, of how many. Raises `DeploymentError` with what a process said; then, and
    when interrupted, nothing that this call started is left, and what it was to replace is started again.
    """
    run_dir = folder(deployment.name, home)
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    data = json.dumps(to_plain(deployment), indent=1).encode()
    pid = _supervisor(run_dir)
    began_here = pid is None
    former = data if began_here else (run_dir / DEPLOYMENT).read_bytes()
    try:
        if pid is None:
            _end_orphans(run_dir)
            (run_dir / STATE).unlink(missing_ok=True)
            write(run_dir / DEPLOYMENT, data)
            pid = _spawn(run_dir)
        elif former != data:
            write(run_dir / DEPLOYMENT, data)
            os.kill(pid, signal.SIGHUP)
        _wait(run_dir, pid, hashlib.sha256(data).hexdigest(), progress)
    except BaseException:
        if began_here:
            down(deployment.name, home)
        elif pid is not None and former != data:
            write(run_dir / DEPLOYMENT, former)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        raise
    return Running(deployment.name, run_dir, pid)


def status(name: str, home: Path) -> dict[str, Any]:
    """What runs of a deployment: `up`, its `units` with state, process and restarts, and the relay's own `air`.

    Raises `Unknown` where there never was one of this name.
    """
    run_dir = folder(name, home)
    if not (run_dir / DEPLOYMENT).exists():
        raise Unknown("deployment", name, names(home))
    pid = _supervisor(run_dir)
    state = _state(run_dir) if pid is not None else {}
    air = None
    if pid is not None and (run_dir / STATUS).exists():
        air = _read(run_dir / STATUS)
    return {
        "name": name,
        "up": pid is not None,
        "supervisor": pid,
        "run_dir": str(run_dir),
        "units": dict(sorted(state.get("units", {}).items(), key=lambda unit: _natural(unit[0]))),
        "air": air,
    }


def _natural(key: str) -> list[tuple[int, str]]:
    """For sorting: numbers in a name count as numbers.

    >>> sorted(["scanner-10", "scanner-2", "closet"], key=_natural)
    ['closet', 'scanner-2', 'scanner-10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]


def load(name: str, home: Path) -> Deployment:
    """The Deployment last brought up under a name. Raises `Unknown`."""
    path = folder(name, home) / DEPLOYMENT
    if not path.exists():
        raise Unknown("deployment", name, names(home), "Start one with `airserve up`.")
    try:
        return from_plain(Deployment, _read(path))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from None


def names(home: Path) -> list[str]:
    """The deployments of a home, up or not."""
    return sorted(path.parent.name for path in home.absolute().glob(f"run/*/{DEPLOYMENT}"))


def only(home: Path) -> str:
    """The one deployment that is up, else the one there is. Raises `DeploymentError` where that is not one."""
    every = names(home)
    running = [name for name in every if _supervisor(folder(name, home)) is not None]
    if len(found := running or every) == 1:
        return found[0]
    if not found:
        raise DeploymentError("there is no deployment yet; start one with `airserve up FILE`.")
    raise DeploymentError(f"which deployment: {', '.join(found)}? Name one.")


def down(name: str, home: Path) -> bool:
    """Stop a deployment, and what a killed supervisor may have left; returns whether anything ran."""
    run_dir = folder(name, home)
    pid = _supervisor(run_dir)
    if pid is not None:
        _end(pid)
    orphans = _end_orphans(run_dir)
    (run_dir / STATE).unlink(missing_ok=True)
    return pid is not None or orphans > 0


def _spawn(run_dir: Path) -> int:
    """A supervisor in a session of its own, so that the terminal's Ctrl-C does not reach it."""
    log = os.open(run_dir / "logs" / "supervisor.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", SUPERVISOR, str(run_dir)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), *[(os.POSIX_SPAWN_DUP2, log, fd) for fd in (1, 2)]],
            setsid=True,
            setsigmask=SIGNALS,  # they wait for the supervisor to ask for them
        )
    finally:
        os.close(log)
        os.close(null)


def _wait(run_dir: Path, pid: int, digest: str, progress: Progress | None) -> None:
    until_s = time.monotonic() + START_S
    while True:
        alive = born(pid) is not None
        state = _state(run_dir)
        units = state.get("units", {}) if state.get("deployment") == digest else {}
        for key, unit in units.items():
            if unit["error"] and not unit["ready_once"]:
                raise DeploymentError(f"{key} does not start: {unit['error']}")
        ready = sum(unit["state"] == "ready" for unit in units.values())
        if progress is not None and units:
            progress(ready, len(units))
        if alive and state.get("deployment") == digest and ready == len(units):
            return
        if not alive:
            said = (run_dir / "logs" / "supervisor.txt").read_text(encoding="utf-8", errors="replace").splitlines()
            raise DeploymentError(f"the supervisor does not start: {said[-1] if said else 'it says nothing'}")
        if time.monotonic() > until_s:
            late = ", ".join(key for key, unit in units.items() if unit["state"] != "ready")
            raise DeploymentError(
                f"{late or 'the supervisor'} was not ready within {START_S:.0f} s; see {run_dir / 'logs'}."
            )
        time.sleep(0.05)


def _state(run_dir: Path) -> dict[str, Any]:
    try:
        return _read(run_dir / STATE)
    except FileNotFoundError:
        return {}


def _read(path: Path) -> dict[str, Any]:
    """A file of a deployment's folder. Raises `DeploymentError` where it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, error) from None
    if not isinstance(found, dict):
        raise _damaged(path, TypeError(f"it holds a {type(found).__name__}"))
    return found


def _damaged(path: Path, error: Exception) -> DeploymentError:
    name = path.parent.name
    return DeploymentError(
        f"{path} is damaged ({str(error)[:80]}); start the deployment again: airserve down {name}, then "
        "airserve up FILE."
    )


def _supervisor(run_dir: Path) -> int | None:
    """The living supervisor of a folder; the file that names it may be of another life, so the process is looked at."""
    with suppress(DeploymentError, KeyError, TypeError):  # a damaged file names nobody
        me = _state(run_dir)["supervisor"]
        if born(me["pid"]) == me["born"] and _ours(me["pid"], run_dir) == SUPERVISOR:
            return int(me["pid"])
    return next(iter(_processes(run_dir, {SUPERVISOR})), None)


def _ours(pid: int, run_dir: Path) -> str:
    """The module of ours that a process runs for a deployment's folder, "" for any other process."""
    words = command(pid)
    if len(words) > 3 and words[1] == "-m" and words[2] in (SUPERVISOR, SERVICE, EMULATOR):
        return words[2] if words[3] in (str(run_dir), str(run_dir / DEPLOYMENT)) else ""
    return ""


def _processes(run_dir: Path, modules: set[str]) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _ours(pid, run_dir) in modules and born(pid) is not None]


def _end(pid: int) -> None:
    """Ask a process to end, and force it where it does not."""
    for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 2.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            break
        until_s = time.monotonic() + patience_s
        while born(pid) is not None and time.monotonic() < until_s:
            time.sleep(0.02)
    _reap(pid)


def _reap(pid: int) -> None:
    """Take note of the end of a child; harmless where it is another's."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _end_orphans(run_dir: Path) -> int:
    """End the processes of a deployment that has no supervisor; the kernel did so where it could."""
    found = _processes(run_dir, {SERVICE, EMULATOR})
    for pid in found:
        _end(pid)
    return len(found)
