"""Arrival laws: rates, independence of phases, and files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.arrivals import ArrivalError, times


@pytest.mark.parametrize("arrival", ["periodic", "poisson"])
@settings(deadline=None, max_examples=30)
@given(devices=st.integers(1, 40), rate=st.floats(0.2, 20), seed=st.integers(0, 2**31))
def test_rate_order_and_range(arrival, devices, rate, seed):
    until = 400 / rate
    at, device = times(arrival, devices, rate, until, np.random.default_rng(seed))
    assert (np.diff(at) >= 0).all()
    assert at.min() >= 0
    assert at.max() < until
    assert set(device) <= set(range(devices))
    spread = 6 * np.sqrt(400 * devices) if arrival == "poisson" else 2.5 * devices
    assert abs(len(at) - 400 * devices) <= spread


def test_poisson_gaps_are_exponential():
    """Oracle: mean and standard deviation of the gaps are both 1 / rate."""
    at, _ = times("poisson", 10, 10, 300, np.random.default_rng(1))
    gaps = np.diff(at)
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)


def test_periodic_phases_do_not_freeze_against_a_period_of_20_ms():
    """Oracle: a uniform phase of 20 ms has the standard deviation 20 / sqrt(12)."""
    at, device = times("periodic", 20, 5, 60, np.random.default_rng(2))
    for k in range(20):
        phase_ms = (at[device == k] * 1000) % 20
        assert phase_ms.std() == pytest.approx(20 / np.sqrt(12), rel=0.15)


def test_trace_file(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("0.5,1\n0.1,0\n7.0,0\n")
    at, device = times(f"trace: {file}", 2, 1, 5, np.random.default_rng(0))
    assert list(at) == [0.1, 0.5]
    assert list(device) == [0, 1]


@pytest.mark.parametrize(("text", "says"), [("x\n", "seconds"), ("1,5\n", "outside"), ("-1,0\n", "negative")])
def test_bad_trace_says_what(tmp_path, text, says):
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(ArrivalError, match=says):
        times(f"trace:{file}", 2, 1, 5, np.random.default_rng(0))


def test_missing_trace_and_unknown_law():
    with pytest.raises(ArrivalError, match="cannot be read"):
        times("trace: nowhere.csv", 1, 1, 1, np.random.default_rng(0))
    with pytest.raises(ArrivalError, match="periodic, poisson"):
        times("sometimes", 1, 1, 1, np.random.default_rng(0))
