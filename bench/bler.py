"""Make the BLER tables of `airserve.network.link` (extra `radio`): bench/bler.py [--fresh] [--words SHARE] [--check].

Counts block errors of every MCS of TS 38.214 tables 1 to 3 at several code-block sizes, where the waterfall is. What is
done is kept under AIRSERVE_HOME after every curve; begun again, it goes on. At the end the table of the package is
replaced. Without `--fresh` only curves that it lacks are made. `--check` counts errors where it promises 1e-3, and at
sizes between those that it has.
"""

import argparse
import json
import os
import time
from math import log2, sqrt
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from airserve.network import ldpc, link

FILE = Path(link.__file__).parent / "tables" / "ts38212_ldpc_awgn.json"
WORDS = {64: 6_000, 200: 6_000, 640: 3_000, 2000: 2_000, 8448: 900}  # of a curve, about
SIZES = (2000, 200, 8448, 640, 64)  # in the order in which they are made
LARGEST_AT_LOW_RATE = 3840  # base graph 2, all that rates of 1/4 and less use: TS 38.212 5.2.2
AIMS = (0.1, 0.5, 0.02, 0.1, 0.02, 0.006)  # BLER at which words are spent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--words", type=float, default=1.0, help="share of the words (default 1)")
    options.add_argument("--fresh", action="store_true", help="make every curve, not only those that are missing")
    options.add_argument("--check", action="store_true", help="count errors where the table makes promises")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    check() if chosen.check else make(chosen.words, chosen.fresh)


def wanted() -> list[tuple[int, float, int]]:
    """Modulation order, code rate x 1024 and code-block size of every curve, those of table 2 first."""
    codes: list[tuple[int, float]] = []
    for index in (2, 1, 3):
        qm, rate = link.mcs_table(index)
        codes += [c for c in zip(qm.tolist(), (rate * 1024).tolist(), strict=True) if c not in codes]
    of_table_2 = codes[: len(link.mcs_table(2)[0])]
    first = [(*c, size) for size in SIZES[:3] for c in of_table_2]
    later = [(*c, size) for size in SIZES for c in codes if (*c, size) not in first]
    return [(qm, x, size(qm, x, k)) for qm, x, k in first + later]


def size(qm: int, rate_x1024: float, about: int) -> int:
    """Bits of a code block that fill whole symbols at their rate: else short blocks are sent at a lower one."""
    if about >= 2000:
        return min(about, LARGEST_AT_LOW_RATE) if rate_x1024 <= 256 else about
    return int(round(about / (qm * rate_x1024 / 1024)) * qm * rate_x1024 / 1024)


def make(share: float, fresh: bool) -> None:
    torch.manual_seed(0)
    work = Path(os.environ.get("AIRSERVE_HOME") or ".airserve") / FILE.name
    known = work if work.exists() else FILE
    table = {"cpu_s": 0.0, "curves": []} if fresh and known == FILE else json.loads(known.read_text())
    done = {(c["modulation_order"], c["code_rate_x1024"], c["code_block_bits"]) for c in table["curves"]}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("curves", total=len(wanted()), completed=len(done))
        for qm, x, k in wanted():
            if (qm, x, k) in done:
                continue
            started = time.process_time()
            rng = np.random.default_rng([qm, int(2 * x), k])
            code = ldpc.code(k, x / 1024, qm)
            points = measure(code, int(WORDS[min(WORDS, key=lambda about: abs(log2(about / k)))] * share), rng)
            middle_db, width_db = ldpc.fit(*points.T)
            spent_s = time.process_time() - started
            table["curves"].append({
                "modulation_order": qm, "code_rate_x1024": x, "code_block_bits": k, "sent_bits": code.n,
                "middle_db": round(middle_db, 4), "width_db": round(width_db, 4), "cpu_s": round(spent_s, 1),
                "snr_db": points[:, 0].round(2).tolist(), "words": points[:, 1].astype(int).tolist(),
                "errors": points[:, 2].astype(int).tolist(),
            })  # fmt: skip
            table["cpu_s"] = round(table["cpu_s"] + spent_s, 1)
            write(table, work)
            bar.update(task, advance=1, description=f"Qm {qm} R {x:g}/1024 k {k}: {middle_db:.2f} ± {width_db:.3f} dB")

    write(table, FILE)
    work.unlink(missing_ok=True)


def measure(code: ldpc.Code, words: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of SNR in dB, words sent and words lost: first where the waterfall is, then along it."""
    counted: dict[float, list[int]] = {}

    def send(snr_db: float, some: int) -> float:
        snr_db = round(round(snr_db / 0.02) * 0.02, 2)  # points that are nearly one become one
        entry = counted.setdefault(snr_db, [0, 0])
        entry[0] += some
        lost = ldpc.count_errors(code, snr_db, some, rng)
        entry[1] += lost
        return lost / some

    efficiency = code.qm * code.k / code.n
    shannon_db = 10 * np.log10(2**efficiency - 1)
    low_db, high_db = shannon_db, shannon_db + 2 + 0.25 * efficiency + 60 / sqrt(code.k)  # all lost, none lost
    while send(high_db, ldpc.LANES) > 0.1:
        low_db, high_db = high_db, high_db + 1
    narrow_db = max(0.05, 2 / sqrt(code.k))
    while high_db - low_db > narrow_db:
        middle_db = (low_db + high_db) / 2
        lost = send(middle_db, ldpc.LANES)
        if 0.1 < lost < 0.9:
            break
        low_db, high_db = (middle_db, high_db) if lost >= 0.9 else (low_db, middle_db)
    some = max(ldpc.LANES, words // (2 * len(AIMS)) // ldpc.LANES * ldpc.LANES)
    for aim in AIMS * 2:
        middle_db, width_db = ldpc.fit(*rows(counted).T)
        send(middle_db + width_db * ldpc.deviation(aim), some)
    return rows(counted)


def rows(counted: dict[float, list[int]]) -> np.ndarray:
    return np.array([[snr_db, *entry] for snr_db, entry in sorted(counted.items())])


def write(table: dict, path: Path) -> None:
    head = {
        "source": (
            "Simulated with bench/bler.py: LDPC code and graph of TS 38.212 as in Sionna 2.2, 20 flooding boxplus "
            "iterations, interleaver of TS 38.212 5.4.2.2, Gray QAM of TS 38.211 5.1, AWGN; MCS of TS 38.214 tables "
            "5.1.3.1-1 to -3. SNR is Es/N0. BLER = Q((SNR - middle_db) / width_db) fitted to the counts."
        ),
        "cpu_s": table["cpu_s"],
        "words": sum(sum(c["words"]) for c in table["curves"]),
    }
    lines = ",\n  ".join(json.dumps(c) for c in table["curves"])
    text = json.dumps(head)[:-1] + ',\n "curves": [\n  ' + lines + "\n]}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def check() -> None:
    """Errors where the tables promise 1e-3, and at 4,000 bits, between two sizes, where they promise 0.1."""
    rng = np.random.default_rng(1)
    for mcs, k, aim, words in (
        *((mcs, 200, 1e-3, 20_000) for mcs in (1, 6, 20)),
        *((mcs, 2000, 1e-3, 10_000) for mcs in (3, 9, 27)),
        (13, 8448, 1e-3, 5_000),
        *((mcs, 4000, 0.1, 600) for mcs in (3, 12, 25)),
        (3, 110, 0.1, 3_000),
        (14, 1000, 0.1, 2_000),
    ):
        snr_db = round(link.threshold_db(mcs, aim, k), 3)
        errors = ldpc.count_errors(ldpc.code(k, link.RATE[mcs], int(link.QM[mcs])), snr_db, words, rng)
        found = errors / words
        decades_per_db = -np.log10(link.code_block_error(snr_db + 0.01, mcs, k) / aim) / 0.01
        off_db = np.log10(max(found, 0.5 / words) / aim) / decades_per_db
        print(
            f"MCS {mcs}, {k} bits, {snr_db:.2f} dB: BLER {found:.2e} ± {sqrt(errors) / words:.1e}, promised {aim:g}; "
            f"the table is {off_db:+.3f} dB optimistic"
        )


if __name__ == "__main__":
    main()
