"""Multi-user MIMO: overlap and SINR of a group by their definitions, and what a cell gains and never loses by it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.network import radio
from airserve.network.cell import Cell
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.pairing import Beams, beams, overlap, products, shared_snr, shares
from airserve.network.radio import TraceError
from airserve.network.topology import Network

HALVES = Network.model_validate(
    {
        "cells": [{"name": "street", "scenario": "umi", "mimo": "mu"}],
        "slices": [{"name": "left", "min": 30, "max": 50}, {"name": "right", "max": 50}],
        "sites": [{"name": "mast", "kind": "edge"}],
    }
)


def covariance(vectors, share, layers):
    """Of so many layers of power 1: what of them lies in some directions, and the rest alike in all."""
    ports = vectors.shape[1]
    return (vectors.T * share) @ vectors.conj() + (layers - share.sum()) * np.eye(ports) / ports


@given(st.integers(0, 2**32), st.integers(2, 32), st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_overlap_is_that_of_the_covariances(seed, ports, drawn):
    """tr(R S) / tr R, with the covariances of one layer or two written out."""
    rng = np.random.default_rng(seed)
    made = []
    for first, second in (drawn[:2], drawn[2:]):
        both = np.linalg.qr(rng.standard_normal((ports, 2)) + 1j * rng.standard_normal((ports, 2)))[0].T
        part = np.sort([first, (1 - first) * second])[::-1]
        made.append((both, shares(part)))
    (one, own), (other, its) = made
    common = products(one, other)
    for layers in (1, 2):
        for others in (1, 2):
            r, s = covariance(one, own[layers - 1], layers), covariance(other, its[others - 1], others)
            found = overlap(common, own[layers - 1], its[others - 1], layers, others, ports)
            assert found == pytest.approx(min(np.trace(r @ s).real / layers, 1), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_a_direction_holds_one_of_two_layers_at_most(drawn):
    part = np.sort([drawn[0], (1 - drawn[0]) * drawn[1]])[::-1]
    one, two = shares(part)
    np.testing.assert_array_equal(one, part)
    assert (two <= 1).all()
    assert two.sum() <= 2 + 1e-9
    assert (two >= part - 1e-9).all()


def test_two_layers_of_a_channel_of_two_directions_fill_both():
    """Random channels of four antennas that see two directions unevenly: their two strongest layers, RBG by RBG."""
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((2, 500, 4, 2))
    h = (draws[0] + 1j * draws[1]) * np.sqrt([0.8, 0.2])
    _, layers = np.linalg.eigh(np.swapaxes(h, 1, 2).conj() @ h)
    in_each = (np.abs(layers) ** 2).sum(axis=2).mean(axis=0)
    assert shares(np.array([0.8, 0.2]))[1] == pytest.approx(in_each)


@pytest.mark.parametrize(("devices", "layers"), [(2, 1), (4, 1), (8, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("leak_db", [0, 15, 30])
def test_a_receiver_rejects_what_csi_has_wrong(devices, layers, leak_db):
    """Against MMSE receivers of 16 antennas for random interferers, in the mean: the formula is exact for many."""
    rng, antennas, snr, streams = np.random.default_rng(devices), 16, 1000.0, devices * layers
    leak = 10 ** (leak_db / 10) * (streams - layers)
    found, alone = [], []
    for _ in range(300):
        draws = rng.standard_normal((2, antennas, streams)) * np.sqrt(0.5 / antennas)
        h = draws[0] + 1j * draws[1]
        power = np.array([*np.full(layers, snr), *np.full(streams - layers, leak / (streams - layers))])
        for last, share, into in ((layers, layers, alone), (streams, streams, found)):
            noise = (h[:, 1:last] * power[1:last] / share) @ h[:, 1:last].conj().T + np.eye(antennas)
            into.append(power[0] / share * (h[:, 0].conj() @ np.linalg.solve(noise, h[:, 0])).real)
    predicted_db = 10 * np.log10(shared_snr(np.mean(alone), 1.0, leak, streams, antennas, layers))
    assert predicted_db == pytest.approx(10 * np.log10(np.mean(found)), abs=0.4)


@given(st.floats(0.1, 1e5), st.floats(0.01, 1), st.floats(0, 1e6), st.integers(2, 8), st.sampled_from([1, 2, 4]))
def test_sharing_never_gains(snr, clear, leak, devices, antennas):
    """At most the device's part of the power on what is clear; less with more leaking in."""
    shared = shared_snr(snr, clear, leak, devices, antennas)
    assert 0 < shared <= snr * clear / devices * (1 + 1e-9)
    assert shared_snr(snr, clear, 2 * leak + 1, devices, antennas) < shared * (1 + 1e-9)


@pytest.mark.parametrize("scenario", ["umi", "inh", "inf-dh"])
def test_what_directions_hold_is_part_of_the_power(scenario):
    cell = Cell(name="cell", scenario=scenario, mimo="mu")
    found = beams(cell, radio.load(cell))
    assert 0 < found.share[:, :, 0].min() <= found.share[:, :, 0].sum(axis=-1).max() <= 1 + 1e-6
    np.testing.assert_allclose((np.abs(found.vector) ** 2).sum(axis=3), 1, rtol=1e-4)


def saturated(network, direction, mimo, ues=16, seconds=0.25, **cell):
    """Bytes that devices get in order, each of which always has more to send; and the MAC."""
    mac = Mac(network(mimo=mimo, **cell), [0] * ues, seed=1)
    for ue in range(ues):
        mac.offer(ue, direction, 100_000, 0.0)
    for piece in range(1, 41):
        for ue in range(ues):
            mac.offer(ue, direction, 4_000_000 // ues, piece * 1e-4)
    mac.run(seconds)
    return mac.usage().nbytes.sum(), mac


@pytest.mark.parametrize(
    ("scenario", "direction", "gain"),
    [("inh", DOWN, 1.3), ("inf-sh", DOWN, 1.5), ("umi", DOWN, 1.0), ("umi", UP, 2.0), ("inf-dh", UP, 3.0)],
)
def test_sixteen_devices_get_more_together(network, scenario, direction, gain):
    alone, _ = saturated(network, direction, "su", scenario=scenario)
    together, mac = saturated(network, direction, "mu", scenario=scenario)
    assert together >= gain * alone
    assert (mac.usage().prbs_used.sum(axis=0) <= mac.usage().prbs).all()


def test_few_devices_share_on_two_layers_each(network):
    """Four devices on one layer each would be no more than one on four."""
    alone, _ = saturated(network, DOWN, "su", ues=4, scenario="inf-sl")
    together, mac = saturated(network, DOWN, "mu", ues=4, scenario="inf-sl")
    assert together >= 1.05 * alone
    block = mac._state.block
    assert 2 in block["layers"][block["shift_db"] < 0]


def test_a_cell_with_room_pairs_nobody(network):
    """Where all that is asked for fits, multi-user MIMO is single-user MIMO, to the byte."""
    done = []
    for mimo in ("su", "mu"):
        mac = Mac(network(mimo=mimo), [0] * 10, seed=1)
        for ue in range(10):
            for piece in range(20):
                mac.offer(ue, (ue + piece) % 2, 2_000, ue * 0.0013 + piece * 0.009)
        done.append(mac.run(0.5))
    np.testing.assert_array_equal(*done)


@given(st.integers(0, 1000), st.lists(st.integers(1, 60_000), min_size=20, max_size=60))
@settings(max_examples=10, deadline=None)
def test_groups_lose_and_double_nothing(seed, sizes):
    """A burst that fills the cell: every record arrives once, in order of its flow, and slices keep to their share."""
    mac = Mac(HALVES, [0] * 6 + [1] * 6, seed=seed)
    flows = {}
    for i, nbytes in enumerate(sizes):
        ue, direction = i % 12, (i // 12) % 2
        flows.setdefault((ue, direction), []).append(mac.offer(ue, direction, nbytes, i * 1e-4))
    done = mac.run(30.0)
    used = mac.usage()
    stuck = sum(map(len, flows.values())) - len(done)
    for key, numbers in flows.items():
        mine = done[(done["ue"] == key[0]) & (done["direction"] == key[1])]
        assert mine["id"].tolist() == numbers[: len(mine)]
    assert stuck == 0 or used.given_up > 0  # a device that no MCS reaches is never given up
    assert (used.share_used.max(axis=0) <= 0.5).all()


def test_a_trace_without_directions_is_refused(network, flat):
    with pytest.raises(TraceError, match="mimo: mu needs; make it again with `airserve traces`"):
        Mac(network(mimo="mu"), [0, 0], seed=1, trace=flat(60))
    assert isinstance(beams(Cell(name="cell"), flat(60)), Beams)
