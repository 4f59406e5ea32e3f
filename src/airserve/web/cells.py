"""A map of cells and devices, coloured by SINR: SVG that needs no script, and a table beside it that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import cos, hypot, pi, sin
from typing import Any

import numpy as np

from airserve.network.many import Many
from airserve.web import words
from airserve.web.sections import Safe, table

STEPS_DB = (0, 7, 14, 21, 28)  # of the colours; from the last on, all links are at the EVM ceiling
WIDTH, EDGE = 640, 18  # of the drawing
FEW = 12  # cells whose table is not folded
LINES_M = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # of the scale


def seen(many: Many) -> dict[str, Any]:
    """What the map shows, as plain data: metres, radians and dB; None for a device that received nothing."""
    there, down = many.there, many.device_sinr_db[:, 0]
    rows = many.rows()
    return {
        "cells": [
            {
                **row,
                "at_m": [round(float(x), 1) for x in there.cell_position_m[k]],
                "boresight": None if np.isnan(there.boresight[k]) else round(float(there.boresight[k]), 4),
                "mbps_per_s": [round(float(x), 3) for x in many.mbps[:, k, 0]],
            }
            for k, row in enumerate(rows)
        ],
        "devices": [
            [round(float(x), 1), round(float(y), 1), int(k), None if np.isnan(db) else round(float(db), 1)]
            for (x, y), k, db in zip(many.position_m, many.serving, down, strict=True)
        ],
    }


def section(found: dict[str, Any]) -> Safe:
    """The map and the table of a run with several cells; nothing for one cell."""
    if not found:
        return Safe("")
    note = (
        "mean SINR of what each device was sent (one layer, before EVM, with the interference there was), "
        "at its place at the end; a wedge is a sector and the way it looks"
    )
    rows = _table(found)
    if len(found["cells"]) > FEW:
        rows = Safe(f"<details><summary>All {len(found['cells'])} cells, as a table</summary>{rows}</details>")
    return Safe(
        '<section class="panel wide"><div class="head"><h2>Cells and devices</h2>'
        f'<span class="note">{escape(note)}</span></div><div class="map">{_drawn(found)}{_key()}</div>{rows}</section>'
    )


def _drawn(found: dict[str, Any]) -> str:
    cells, devices = found["cells"], found["devices"]
    places = np.array([one["at_m"] for one in cells] + [one[:2] for one in devices])
    low, high = places.min(axis=0), places.max(axis=0)
    scale = (WIDTH - 2 * EDGE) / max(high[0] - low[0], 1.5 * (high[1] - low[1]), 1.0)
    height = round(2 * EDGE + 24 + scale * (high[1] - low[1]))
    left = (WIDTH - scale * (high[0] - low[0])) / 2

    def at(x: float, y: float) -> tuple[float, float]:
        return left + scale * (x - low[0]), EDGE + scale * (high[1] - y)

    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_said(found)}">']
    for x_m, y_m, k, db in devices:
        x, y = at(x_m, y_m)
        what = "received nothing" if db is None else f"{db:g} dB"
        title = f"<title>{escape(cells[k]['name'])}: {what}</title>"
        drawn.append(f'<circle class="sinr-{_step(db)}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">{title}</circle>')
    reach = min(14.0, 0.2 * scale * _apart(cells))
    for one in cells:
        x, y = at(*one["at_m"])
        title = f"<title>{escape(one['name'])}: {one['devices']} devices</title>"
        if one["boresight"] is None:
            drawn.append(f'<rect class="mast" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10">{title}</rect>')
            continue
        tips = [
            (x + reach * cos(one["boresight"] + a), y - reach * sin(one["boresight"] + a)) for a in (-pi / 6, pi / 6)
        ]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in ((x, y), *tips))
        drawn.append(f'<polygon class="mast" points="{points}">{title}</polygon>')
    line_m = max(m for m in LINES_M if m * scale <= WIDTH / 4 or m == 1)
    drawn.append(f'<path class="line" d="M{EDGE} {height - 8}h{line_m * scale:.1f}"/>')
    drawn.append(f'<text x="{EDGE}" y="{height - 13}">{line_m} m</text></svg>')
    return "".join(drawn)


def _apart(cells: Sequence[dict[str, Any]]) -> float:
    """Least distance of two sites in metres."""
    places = sorted({tuple(one["at_m"]) for one in cells})
    return min((hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(places) for b in places[:i]), default=50.0)


def _step(db: float | None) -> str:
    """
    >>> _step(-3.0), _step(0.0), _step(25.0), _step(None)
    ('0', '1', '4', 'none')
    """
    return "none" if db is None else str(sum(db >= step for step in STEPS_DB))


def _key() -> str:
    words_of = [f"under {STEPS_DB[0]} dB", *(f"from {step}" for step in STEPS_DB), "nothing received"]
    names = [*map(str, range(len(STEPS_DB) + 1)), "none"]
    shown = "".join(
        '<li><svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
        f'<circle class="sinr-{name}" cx="5" cy="5" r="4"/></svg> {escape(word)}</li>'
        for name, word in zip(names, words_of, strict=True)
    )
    return f'<ul class="key">{shown}</ul>'


def _said(found: dict[str, Any]) -> str:
    return f"map of {len(found['cells'])} cells and {len(found['devices'])} devices"


def _table(found: dict[str, Any]) -> Safe:
    ways = (f"#{arrow} {what}" for arrow in "↑↓" for what in ("used", "Mbit/s", "SINR p5", "p50"))
    head = ["cell", "#devices", *ways, "#handovers", "#failed", "#ping-pong"]
    return table(
        "Cells",
        head,
        [
            [
                one["name"], words.count(one["devices"]),
                *(
                    cell
                    for way in ("up", "down")
                    for cell in (
                        words.per_cent(one[way]["share_used"]), words.plain(one[way]["mbps"]),
                        *(_db(one[way]["sinr_db"][key]) for key in ("p5", "p50")),
                    )
                ),
                *(words.count(one["handovers"][key]) for key in ("made", "failed", "ping_pong")),
            ]
            for one in found["cells"]
        ],
    )  # fmt: skip


def _db(value: float | None) -> str:
    return "–" if value is None else f"{value:g} dB"
