"""5QI against rows typed from TS 23.501 Table 5.7.4-1."""

import pytest

from airserve.network.qos import QosError, quality, table


@pytest.mark.parametrize(
    ("five_qi", "resource", "priority", "delay_ms", "error_rate", "burst"),
    [
        (1, "GBR", 20, 100, 1e-2, None),
        (3, "GBR", 30, 50, 1e-3, None),
        (9, "non-GBR", 90, 300, 1e-6, None),
        (65, "GBR", 7, 75, 1e-2, None),
        (79, "non-GBR", 65, 50, 1e-2, None),
        (80, "non-GBR", 68, 10, 1e-6, None),
        (82, "delay-critical", 19, 10, 1e-4, 255),
        (83, "delay-critical", 22, 10, 1e-4, 1354),
        (85, "delay-critical", 21, 5, 1e-5, 255),
        (90, "delay-critical", 25, 20, 1e-4, 63000),
    ],
)
def test_rows(five_qi, resource, priority, delay_ms, error_rate, burst):
    row = quality(five_qi)
    assert (row.resource, row.priority, row.delay_budget_ms) == (resource, priority, delay_ms)
    assert (row.error_rate, row.max_burst_bytes) == (error_rate, burst)


def test_the_table_is_whole():
    """31 rows: GBR 1-4, 65-67, 71-74, 76; non-GBR 5-10, 69, 70, 79, 80; delay-critical 82-90."""
    rows = table()
    kinds = [row.resource for row in rows.values()]
    assert [kinds.count(kind) for kind in ("GBR", "non-GBR", "delay-critical")] == [12, 10, 9]
    assert all(0 < row.radio_budget_ms < row.delay_budget_ms for row in rows.values())
    assert {row.core_delay_ms for row in rows.values()} == {1, 2, 5, 10, 20}


def test_another_is_refused():
    with pytest.raises(QosError, match="5QI 75 is not standardised; TS 23"):
        quality(75)
