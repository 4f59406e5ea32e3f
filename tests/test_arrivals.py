"""Arrival laws: rates, independence of phases, and files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.arrivals import ArrivalError, draw, parse, times


@pytest.mark.parametrize("arrival", ["periodic", "poisson", "ftp3", "xr"])
@settings(deadline=None, max_examples=30)
@given(devices=st.integers(1, 40), rate=st.floats(0.2, 20), seed=st.integers(0, 2**31))
def test_rate_order_and_range(arrival, devices, rate, seed):
    until = 400 / rate
    at, device = times(arrival, devices, rate, until, np.random.default_rng(seed))
    assert (np.diff(at) >= 0).all()
    assert at.min() >= 0
    assert at.max() < until
    assert set(device) <= set(range(devices))
    spread = 2.5 * devices if arrival in ("periodic", "xr") else 6 * np.sqrt(400 * devices)
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


def test_bursts_are_an_interrupted_poisson_process():
    """Oracle: mean and variance of counts, the closed form of an on-off Markov process that switches a Poisson one."""
    rate, on_s, off_s, window = 20.0, 0.5, 1.5, 1.0
    drawn = draw(f"bursts,on_s={on_s},off_s={off_s}", 60, rate, 400, np.random.default_rng(3))
    counts = np.array([np.bincount((drawn.at_s[drawn.device == k] / window).astype(int), minlength=400)
                       for k in range(60)])  # fmt: skip
    assert counts.mean() == pytest.approx(rate * window, rel=0.03)
    peak, share, decay = rate * (on_s + off_s) / on_s, on_s / (on_s + off_s), 1 / on_s + 1 / off_s
    spread = 2 * peak**2 * share * (1 - share) * (decay * window - 1 + np.exp(-decay * window)) / decay**2
    assert counts.var() == pytest.approx(rate * window + spread, rel=0.06)


def test_ftp_model_3_sends_files_of_half_a_megabyte():
    drawn = draw("ftp3", 50, 0.5, 200, np.random.default_rng(4))
    assert len(drawn.at_s) == pytest.approx(5000, abs=6 * np.sqrt(5000))
    assert drawn.up is None
    assert set(drawn.down) == {500_000.0}
    assert set(draw("ftp3,bytes=1e5", 5, 1, 20, np.random.default_rng(4)).down) == {1e5}


def test_xr_frames_are_those_of_tr_38_838():
    """60 a second, jitter of 2 ms cut at 4, sizes of 10.5 % cut at half and one and a half."""
    drawn = draw("xr", 1, 60, 300, np.random.default_rng(5))
    assert len(drawn.at_s) == pytest.approx(18_000, abs=2)
    period = np.polyfit(np.arange(len(drawn.at_s)), drawn.at_s, 1)
    off_ms = 1e3 * (drawn.at_s - np.polyval(period, np.arange(len(drawn.at_s))))
    assert np.abs(off_ms).max() < 4.1
    assert off_ms.std() == pytest.approx(2 * 0.8796, rel=0.03)  # of a normal law cut at two deviations
    assert drawn.scale.mean() == pytest.approx(1, abs=0.005)
    assert drawn.scale.std() == pytest.approx(0.105, rel=0.03)
    assert drawn.scale.min() >= 0.5
    assert drawn.scale.max() <= 1.5


def test_a_trace_may_give_bytes(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("arrival_s,bytes_up,bytes_down,device\n0.5,900,200,1\n0.25,14500,40,0\n9,1,1,0\n")
    drawn = draw(f"trace: {file}", 2, 1, 5, np.random.default_rng(0))
    assert drawn.at_s.tolist() == [0.25, 0.5]
    assert drawn.up.tolist() == [14500, 900]
    assert drawn.down.tolist() == [40, 200]
    assert drawn.device.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival_s,bytes_up,bytes_down\n1,2,3\n2,3\n", r"line 3: '2,3' is not `arrival_s,bytes_up,bytes_down`"),
        ("arrival_s,bytes_up,bytes_down\n1,2,3\n2,3,", "cut short"),
        ("arrival_s,bytes_up,bytes_down\n1,nan,3\n", "line 2, has a negative number or one that is none"),
        ("arrival_s,bytes_up\n1,2\n", "lacks the column bytes_down"),
        ("arrival_s,bytes_up,bytes_down\n1,0,3\n", "0 bytes"),
        ("arrival_s,bytes_up,bytes_down\n1,1e300,3\n", r"1e\+300 bytes; one has at most 100,000,000,000"),
        ("nan\n", "negative number or one that is none"),
        ("", r"t\.csv has no requests; write a line of `seconds\[,device\]` for each"),
        ("\n\n", "has no requests"),
        ("arrival_s,bytes_up,bytes_down\n", "has no requests"),
        (
            "1700000000.5,0\n",
            r"t\.csv comes at 1,700,000,000\.5 s and the run ends at 5 s; write times that begin at 0",
        ),
        ("arrival_s,bytes_up,bytes_down\n5,2,3\n", "comes at 5 s and the run ends at 5 s"),
    ],
)
def test_a_broken_trace_gets_one_sentence(tmp_path, text, says):
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(ArrivalError, match=says) as told:
        draw(f"trace:{file}", 2, 1, 5, np.random.default_rng(0))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "wrong", ["bursts,on=1", "bursts,on_s=-1", "bursts,on_s=soon", "periodic,x=1", "xr,jitter_ms=nan"]
)
def test_parameters_that_cannot_be(wrong):
    with pytest.raises(ArrivalError, match=r"it has .*each above 0"):
        parse(wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("ftp3,bytes=0.5", "arrival ftp3 has bytes=0.5; from 1 to 1e\\+11 is wanted"),
        ("ftp3,bytes=1e300", "bytes=1e300; from 1 to"),
        ("bursts,on_s=1e-12,off_s=1e-12", "on_s=1e-12; from 0.001 to"),
        ("bursts,off_s=1e300", "off_s=1e300; from 0.001 to"),
        ("xr,size_std=1e9", "size_std=1e9; from 0 to 1 is wanted"),
    ],
)
def test_parameters_have_ends(wrong, says):
    with pytest.raises(ArrivalError, match=says):
        parse(wrong)


def test_frames_jitter_by_less_than_a_period():
    with pytest.raises(ArrivalError, match="jitter_ms=1e\\+09 and a period of 20 ms, 1 of 50 a second"):
        draw("xr,jitter_ms=1e9", 2, 50, 5, np.random.default_rng(0))


def test_a_trace_is_told_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArrivalError, match=f"the trace {tmp_path}/nowhere.csv cannot be read"):
        draw("trace: nowhere.csv", 1, 1, 1, np.random.default_rng(0))
