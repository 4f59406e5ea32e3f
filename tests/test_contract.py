"""Readings, judgements, and data that survives being written down."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve.contract import (
    Air,
    AirSite,
    Asker,
    Deployment,
    Endpoint,
    Promise,
    Readings,
    Route,
    SiteProcess,
    Span,
    from_plain,
    judge,
    percentile,
    to_plain,
)
from airserve.model import Function


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_numpys(values, q):
    assert percentile(np.array(values), q) == pytest.approx(np.percentile(values, q), abs=1e-6)


def test_requests_not_answered_rank_last():
    assert percentile(np.array([1.0] * 98 + [np.inf] * 2), 99) == np.inf
    assert percentile(np.array([1.0] * 98 + [np.inf] * 2), 90) == 1.0


def test_least_requests_expect_ten_above():
    assert [Promise(1, q).least for q in (90, 95, 99, 99.9)] == [100, 200, 1000, 10000]


def exponential(n, mean, seed):
    rng = np.random.default_rng(seed)
    return rng.exponential(mean, n), rng.uniform(0, 30, n)


def test_interval_covers_the_true_percentile_about_as_often_as_it_says():
    """Oracle: the 95th percentile of an exponential is -ln(0.05) times its mean."""
    truth = -np.log(0.05) * 10
    covered = 0
    for seed in range(100):
        latency, sent = exponential(1500, 10, seed)
        low, high = judge(latency, sent, Promise(50, 95), np.random.default_rng(seed)).interval_ms
        covered += low <= truth <= high
    assert covered >= 88


def test_requests_of_a_moment_widen_the_interval():
    """Blocks that are slow as a whole say less than as many independent requests."""
    rng = np.random.default_rng(0)
    sent = np.sort(rng.uniform(0, 30, 3000))
    slow = rng.exponential(10, 30)[sent.astype(int)]
    together = judge(slow, sent, Promise(50, 95), rng).interval_ms
    alone = judge(rng.permutation(slow), sent, Promise(50, 95), rng).interval_ms
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("limit", "n", "word"),
    [(100, 3000, "kept"), (10, 3000, "not kept"), (30, 3000, "too close to call"), (100, 50, "too few requests")],
)
def test_the_four_words(limit, n, word):
    latency, sent = exponential(n, 10, 3)
    assert judge(latency, sent, Promise(limit, 95), np.random.default_rng(0)).word == word


def test_no_request_is_too_few():
    assert judge(np.array([]), np.array([]), Promise(1, 99), np.random.default_rng(0)).word == "too few requests"


def test_a_row_of_spans_is_a_latency():
    spans = (Span("air", "up", "hall"), Span("compute", "", "mast"))
    readings = Readings("x", spans, np.zeros(2), np.zeros(2, int), np.array([[1.0, 2.0], [np.nan, np.nan]]))
    assert list(readings.latency_ms) == [3.0, np.inf]
    assert readings.answered == 1


def test_a_deployment_survives_json():
    process = SiteProcess(
        "camera",
        "127.1.0.1",
        7800,
        1,
        (Endpoint("a", (Function("a", "head", "/x", 0.1),), Route("127.2.0.1", 7801, "a-tail", "127.1.0.1", True)),),
        1,
    )
    air = Air({"cells": []}, ("127.1.0.1",), (0,), (AirSite("mast", "127.2.0.1", 7801, "127.0.0.1", 7801, 1.0),), 3, 50)
    asker = Asker(
        "a", "a", "s.npz", "", ("127.1.0.1",), (0,), 5.0, "periodic", False, "device", "mast", "camera", Promise(50, 99)
    )
    one = Deployment("factory", (process,), air, (asker,))
    assert from_plain(Deployment, json.loads(json.dumps(to_plain(one)))) == one
    assert process.key == "camera-1"
