"""Two services under a mixed load through the router, while workers are killed, hang, and models are replaced.

    python bench/soak.py [--seconds 600] [--askers 4] [--seed 0] [--json]

Every answer is compared with onnxruntime's own for the graphs that may have answered it: those that were served at any
moment between the request and its answer. Kept where none is wrong, none is lost, every worker that was killed is back
in under 2 s while the others answer (where none of them hangs just then), the memory of the services and of the
router stays flat within 5 %, and workers were killed and hung and models replaced at all. The first service loses
workers (SIGKILL); the second keeps its own for the whole time, so that a leak would show, but for a worker that hangs
now and then (SIGSTOP). Status 1 where not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import uvloop
from onnx import TensorProto, helper, numpy_helper

from airserve import wire
from airserve.contract import Route
from airserve.model import Engine, Tensor
from airserve.serve.balancing import Balancer
from airserve.serve.connecting import UpstreamFailed, UpstreamLate

ROWS = 16  # different inputs of a model
DEADLINE_S = 10.0
BACK_S, FLAT = 2.0, 0.05  # the promises
FAULTS_S = 30.0  # a run so long has every kind of fault at least once
INPUT = {"mlp": (784,), "conv": (3, 64, 64), "wide": (256,)}


def graph(name: str, scale: float) -> onnx.ModelProto:
    """A net with an output that `scale` tells from another's of the same name: cheap, costly, or with large answers."""
    rng = np.random.default_rng(sum(map(ord, name)))
    weights: dict[str, np.ndarray] = {}

    def weight(key: str, *shape: int) -> str:
        weights[key] = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return key

    last: list[int | str] = ["n", 10]
    if name == "conv":
        nodes = [
            helper.make_node("Conv", ["x", weight("w0", 32, 3, 3, 3)], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", weight("w1", 32, 32, 3, 3)], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["c"], ["d"]),
            helper.make_node("Flatten", ["d"], ["e"]),
            helper.make_node("MatMul", ["e", weight("w2", 32, 10)], ["f"]),
        ]
    else:
        wide = INPUT[name][0]
        last = ["n", 10 if name == "mlp" else 4096]
        nodes = [
            helper.make_node("MatMul", ["x", weight("w0", wide, 128)], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", weight("w1", 128, int(last[1]))], ["f"]),
        ]
    weights["scale"] = np.array(scale, np.float32)
    nodes.append(helper.make_node("Mul", ["f", "scale"], ["y"]))
    made = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *INPUT[name]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, last)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@dataclass
class Subject:
    """A model that is asked: inputs, and for every graph that may be served what it answers to each."""

    name: str
    inputs: np.ndarray
    answers: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def make(cls, name: str, scales: tuple[float, ...]) -> Subject:
        rng = np.random.default_rng(1)
        one = cls(name, rng.normal(size=(ROWS, *INPUT[name])).astype(np.float32))
        for scale in scales:
            one.answers.append(Engine(graph(name, scale).SerializeToString()).run([one.inputs])[0])
        return one


@dataclass
class Site:
    """`airserve serve` on a folder, and when each graph was in service there: (which, from, until)."""

    name: str
    folder: Path
    process: subprocess.Popen[str]
    port: int
    workers: int
    spans: dict[str, list[list[float]]]

    def pids(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def listening(self) -> int:
        """Workers that take connections: each has a socket of its own at the port."""
        wanted = f":{self.port:04X}"
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return sum(row[1].endswith(wanted) and row[3] == "0A" for row in rows)

    def memory_mb(self) -> float:
        return sum(_pss_mb(pid) for pid in [self.process.pid, *self.pids()])

    def could_answer(self, model: str, from_s: float, until_s: float) -> set[int]:
        return {int(which) for which, a, b in self.spans[model] if a <= until_s and b >= from_s}


@dataclass
class Tally:
    asked: int = 0
    answered: int = 0
    wrong: int = 0
    lost: int = 0
    by_model: dict[str, int] = field(default_factory=dict)
    lost_why: dict[str, int] = field(default_factory=dict)
    killed: int = 0
    hung: int = 0
    hangs: bool = False  # a worker does, just now
    replaced: int = 0
    loads_again: int = 0
    back_s: list[float] = field(default_factory=list)
    answered_meanwhile: list[int] = field(default_factory=list)
    longest_gap_s: float = 0.0
    last_s: float = 0.0
    memory: dict[str, list[float]] = field(default_factory=dict)


def start(name: str, workers: int, subjects: list[Subject], top: Path) -> Site:
    folder = top / name
    for subject in subjects:
        place = folder / subject.name / "1" / "model.onnx"
        place.parent.mkdir(parents=True)
        onnx.save(graph(subject.name, 1.0), place)
    command = [sys.executable, "-m", "airserve.cli", "serve", str(folder), "--port", "0", "--workers", str(workers)]
    log = (top / f"{name}.log").open("w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    found = re.search(r":(\d+) ", process.stdout.readline())
    if found is None:
        sys.exit(f"airserve serve did not start: {(top / f'{name}.log').read_text()}")
    now_s = time.monotonic()
    spans = {subject.name: [[0, now_s, float("inf")]] for subject in subjects}
    return Site(name, folder, process, int(found[1]), workers, spans)


async def ask(balancer: Balancer, sites: list[Site], subject: Subject, tally: Tally, rng: random.Random) -> None:
    """One request of one to four rows, as binary; what comes back is judged."""
    row, rows = rng.randrange(ROWS - 4), rng.randint(1, 4)
    x = subject.inputs[row : row + rows]
    request = wire.infer_request(subject.name, [(Tensor("x", "float32", x.shape), x)], host="soak")
    tally.asked += 1
    begun_s = time.monotonic()
    try:
        answer = (await balancer.send(lambda route: request, begun_s + DEADLINE_S)).answer
        if answer.status != 200:
            raise UpstreamFailed(f"status {answer.status}: {wire.parse_error(answer.body)}")
    except (UpstreamFailed, UpstreamLate) as error:
        tally.lost += 1
        why = re.sub(r":\d+", "", str(error))
        tally.lost_why[why] = tally.lost_why.get(why, 0) + 1
        return
    now_s = time.monotonic()
    y = wire.parse_response(answer.body, int(answer.headers["inference-header-content-length"])).outputs[0][1]
    could = set().union(*(site.could_answer(subject.name, begun_s, now_s) for site in sites))
    references = [subject.answers[k][row : row + rows] for k in could]
    if not any(y.shape == r.shape and np.allclose(y, r, rtol=1e-4, atol=1e-5) for r in references):
        tally.wrong += 1
    tally.answered += 1
    tally.by_model[subject.name] = tally.by_model.get(subject.name, 0) + 1
    if tally.last_s:
        tally.longest_gap_s = max(tally.longest_gap_s, now_s - tally.last_s)
    tally.last_s = now_s


async def kill(site: Site, tally: Tally, rng: random.Random) -> None:
    """Kill a worker; wait until as many as before take connections, and note how long that was."""
    if site.listening() < site.workers:
        return
    pid = rng.choice(site.pids())
    before, hung = tally.answered, tally.hung
    others_live = not tally.hangs
    os.kill(pid, signal.SIGKILL)
    begun_s = time.monotonic()
    tally.killed += 1
    while site.listening() == site.workers and time.monotonic() < begun_s + 0.5:
        await asyncio.sleep(0.002)
    while site.listening() < site.workers:
        if time.monotonic() > begun_s + 60:
            break
        await asyncio.sleep(0.005)
    tally.back_s.append(time.monotonic() - begun_s)
    if others_live and tally.hung == hung:
        tally.answered_meanwhile.append(tally.answered - before)


async def hang(site: Site, tally: Tally) -> None:
    pid = site.pids()[0]
    tally.hung += 1
    tally.hangs = True
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(1.5)
    finally:
        os.kill(pid, signal.SIGCONT)
        tally.hangs = False


async def replace(site: Site, subject: Subject, tally: Tally, rng: random.Random) -> None:
    """Another graph in the place of the one that is served, loaded while it is asked."""
    now = int(site.spans[subject.name][-1][0])
    which = rng.choice([k for k in range(len(subject.answers)) if k != now])
    place = site.folder / subject.name / "1" / "model.onnx"
    onnx.save(graph(subject.name, 1.0 + which), place.with_suffix(".new"))
    os.replace(place.with_suffix(".new"), place)
    spans = site.spans[subject.name]
    spans.append([which, time.monotonic(), float("inf")])
    for _ in range(20):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            path = f"/v2/repository/models/{subject.name}/load"
            writer.write(f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Length: 0\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
        except OSError:
            line = b""
        if b" 200 " in line:
            spans[-2][2] = time.monotonic()
            tally.replaced += 1
            del spans[: max(0, len(spans) - 50)]
            return
        tally.loads_again += 1  # the worker that was to lead it died, or the file came too early: ask again
        await asyncio.sleep(0.1)
    sys.exit(f"{subject.name} could not be loaded at {site.name}: {line!r}")


async def soak(sites: list[Site], subjects: list[Subject], seconds: float, askers: int, seed: int) -> dict[str, object]:
    rng, tally = random.Random(seed), Tally()
    balancer = Balancer([Route("127.0.0.1", site.port, "") for site in sites], rng=random.Random(seed))
    for k in range(18 * len(sites)):  # memory that replacing needs is had before it is watched
        await replace(sites[k % len(sites)], subjects[k % len(subjects)], Tally(), rng)
    until_s = time.monotonic() + seconds
    shares = [4, 1, 2]  # requests by model

    async def asking() -> None:
        while time.monotonic() < until_s:
            await ask(balancer, sites, rng.choices(subjects, shares)[0], tally, rng)

    async def every(mean_s: float, what: object) -> None:
        while (pause_s := rng.uniform(0.5, 1.5) * mean_s) < until_s - time.monotonic() - 3.0:
            await asyncio.sleep(pause_s)
            await what()  # type: ignore[operator]

    async def watching() -> None:
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):  # a worker that ended just now
                for name, mb in [*((s.name, s.memory_mb()) for s in sites), ("router", _pss_mb(os.getpid()))]:
                    tally.memory.setdefault(name, []).append(mb)
            await asyncio.sleep(0.5)

    await asyncio.gather(
        *(asking() for _ in range(askers)),
        every(4.0, lambda: kill(sites[0], tally, rng)),
        every(15.0, lambda: hang(sites[1], tally)),
        every(3.0, lambda: replace(rng.choice(sites), rng.choice(subjects), tally, rng)),
        watching(),
    )
    balancer.close()
    return judged(tally, balancer, seconds)


def judged(tally: Tally, balancer: Balancer, seconds: float) -> dict[str, object]:
    """All figures, and which promises are kept."""
    grown = {}
    for name, mb in tally.memory.items():
        rest = mb[len(mb) // 3 :]  # the first third warms up
        first, last = np.median(rest[: len(rest) // 3]), np.median(rest[-len(rest) // 3 :])
        grown[name] = float(last / first - 1)
    kept = {
        "wrong": tally.wrong == 0 and tally.answered > 0,
        "lost": tally.lost == 0,
        "workers back": max(tally.back_s, default=0.0) < BACK_S and min(tally.answered_meanwhile, default=1) > 0,
        "memory": max(grown.values()) <= FLAT,
        # Nothing is shown where nothing went wrong; a shorter run may end before its first worker hangs.
        "faults": seconds < FAULTS_S or min(tally.killed, tally.hung, tally.replaced) > 0,
    }
    return {
        "seconds": seconds,
        "asked": tally.asked, "answered": tally.answered, "by_model": tally.by_model,
        "wrong": tally.wrong, "lost": tally.lost, "lost_why": tally.lost_why,
        "killed": tally.killed, "hung": tally.hung, "replaced": tally.replaced, "loads_again": tally.loads_again,
        "back_s_median": float(np.median(tally.back_s)) if tally.back_s else 0.0,
        "back_s_worst": max(tally.back_s, default=0.0),
        "answered_meanwhile_least": min(tally.answered_meanwhile, default=0),
        "longest_gap_s": tally.longest_gap_s,
        "retries": balancer.counts.retries, "ejections": balancer.counts.ejections,
        "memory_mb": {name: float(np.median(mb[-len(mb) // 3 :])) for name, mb in tally.memory.items()},
        "memory_grown": grown,
        "kept": kept,
    }  # fmt: skip


def _pss_mb(pid: int) -> float:
    """Resident memory, of shared pages the share."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) / 1024  # type: ignore[index]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--askers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="airserve-soak-"))
    subjects = [Subject.make(name, (1.0, 2.0, 3.0)) for name in INPUT]
    sites: list[Site] = []
    try:
        sites = [start("killed", 2, subjects, top), start("kept", 1, subjects, top)]
        found = uvloop.run(soak(sites, subjects, given.seconds, given.askers, given.seed))
    finally:
        for site in sites:
            site.process.terminate()
        for site in sites:
            site.process.wait(20)
        shutil.rmtree(top)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
            print(f"{name.replace('_', ' '):<26}{f'{value:.4g}' if isinstance(value, float) else value}")
    return 0 if all(found["kept"].values()) else 1  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
