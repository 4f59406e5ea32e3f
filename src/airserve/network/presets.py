"""Parameters of a cell's MAC "from" a stack: values that its makers ship or that it was measured to have.

They make a cell act more like one that runs that stack; they do not make it validated on it. docs/mac.md says where
each value is from and what of the stacks they leave out.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["ideal", "srsran", "oai"]

PRESETS: dict[Preset, dict[str, Any]] = {
    # What no stack reaches: a bound to compare with
    "ideal": {"grant": "configured", "buffer_status": "exact", "k2_slots": 1, "reference_signals": False},
    # srsRAN Project: sr_period_ms of its example configurations, p0_nominal_with_grant of its default cell
    "srsran": {"grant": "sr", "sr_period_ms": 20.0, "k2_slots": 4, "p0_dbm": -76.0, "buffer_status": "short"},
    # OpenAirInterface: grants unasked, once in a TDD period; min_rxtxtime 6, as its software device needs
    "oai": {"grant": "configured", "k2_slots": 6},
}
