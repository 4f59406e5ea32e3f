"""Admission against brute force: every share in steps of a tenth, every number of devices, by the definition."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import catalog
from airserve.network.admission import AdmissionError, Booking, Capacity, admit, capacity, share
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.topology import Network, Slice

rates = st.integers(0, 40).map(lambda tenths: tenths / 10)


@settings(deadline=None)
@given(
    minima=st.lists(st.integers(0, 330).map(lambda x: x / 10), max_size=3),
    devices=st.integers(1, 60), up=rates, down=rates, capacity=st.tuples(st.integers(20, 90), st.integers(100, 900)),
    dedicated=st.booleans(),
)  # fmt: skip
def test_a_booking_is_met_or_refused_with_what_could(minima, devices, up, down, capacity, dedicated):
    slices = [Slice(name=f"s{k}", min=one) for k, one in enumerate(minima)]
    booking, there = Booking(devices, up, down, dedicated), Capacity(*capacity)

    def keeps(tenths: int, number: int) -> bool:
        part = tenths / 1000
        return part * there.up_mbps >= number * up - 1e-7 and part * there.down_mbps >= number * down - 1e-7

    def fits(tenths: int) -> bool:
        return sum(minima) + tenths / 10 <= 100 + 1e-7

    least = next((t for t in range(12_001) if keeps(t, devices)), None)
    most = max((t for t in range(1001) if fits(t)), default=0)
    assert least is not None
    assert share(booking, there) == pytest.approx(least / 10)
    try:
        made = admit(slices, "new", booking, there)
    except AdmissionError as error:
        assert not fits(least)
        could, number = re.search(r"; ([\d.]+) % could be booked, for (\d+) devices\.$", str(error)).groups()
        assert float(could) == pytest.approx(most / 10)
        assert int(number) == max(n for n in range(devices + 1) if keeps(most, n))
        assert "\n" not in str(error)
    else:
        assert fits(least)
        assert made.min == pytest.approx(least / 10)
        assert made.dedicated == (made.min if dedicated else 0)
        cell = {"cells": [{"name": "hall"}], "sites": [{"name": "mast", "kind": "edge"}]}
        Network.model_validate({**cell, "slices": [*(s.model_dump() for s in slices), made.model_dump()]})


@pytest.mark.parametrize(
    ("name", "booking", "says"),
    [
        ("a", Booking(1, 1.0), "slice a is there already"),
        ("b", Booking(0, 1.0), "0 devices; give 1 or more"),
        ("b", Booking(1, -1.0), "rates of 0 or more"),
        ("Line 2", Booking(1, 1.0), "'Line 2' is not a name for a slice; use up to 40 lower-case letters"),
    ],
)
def test_bookings_that_make_no_sense(name, booking, says):
    with pytest.raises(AdmissionError, match=says):
        admit([Slice(name="a")], name, booking, Capacity(10, 10))


@pytest.mark.parametrize(
    "cell", [{}, {"duplex": "fdd"}, {"mimo": "mu"}, {"duplex": "fdd", "mimo": "mu"}, {"bandwidth_mhz": 5}]
)
def test_more_offered_is_no_more_carried(network, cell):
    net = network([{"name": "all", "min": 100}], **cell)
    there = capacity(net, seconds=0.3)
    mac = Mac(net, [0] * 20, seed=0, grant="configured")
    for direction in (DOWN, UP):
        mac.offer_all(np.arange(20_000) % 20, direction, 20_000, 0.0)
    mac.run(0.3)
    assert mac.usage().mbps[0] == pytest.approx([there.down_mbps, there.up_mbps], rel=0.02)


def test_few_devices_share_no_prbs_of_many(network):
    """Multi-user: two devices booked are carried on fewer layers than twenty, and so on more of the PRBs."""
    net = network(duplex="fdd", mimo="mu")
    assert capacity(net, booked=2, seconds=0.3).up_mbps < 0.6 * capacity(net, seconds=0.3).up_mbps


@pytest.mark.parametrize("policy", catalog.slices)
def test_the_capacity_is_that_of_the_cell_whatever_its_policy(network, policy):
    net = network()
    other = net.model_copy(update={"cells": (net.cell.model_copy(update={"slicing": policy}),)})
    assert vars(capacity(other, seconds=0.2)) == pytest.approx(vars(capacity(net, seconds=0.2)), rel=0.01)


def test_a_cell_that_carries_nothing_takes_no_booking():
    with pytest.raises(AdmissionError, match=r"slice b cannot be booked: the cell carries 10 Mbit/s up and 0 down"):
        admit([], "b", Booking(1, 1.0), Capacity(10, 0))


def test_the_capacity_is_what_a_booked_slice_gets_its_part_of(network):
    """Booked at 30 % of what the cell carries up, a slice gets its rate while the other floods."""
    there = capacity(network())
    booking = Booking(devices=10, up_mbps=0.03 * there.up_mbps)
    other = Slice(name="other", min=40)
    booked = admit([other], "booked", booking, there)
    assert booked.min == pytest.approx(30, abs=0.2)
    net = network([other.model_dump(), booked.model_dump()])
    mac = Mac(net, [0] * 10 + [1] * 10, seed=5, grant="configured")
    for ue in range(20):
        for record in range(200):
            mac.offer(ue, UP, 20_000, 0.0 if ue < 10 else record * 20_000 * 8e-6 / booking.up_mbps)
    mac.run(2.0)
    assert mac.usage().mbps[1, UP] > 0.85 * 10 * booking.up_mbps  # other positions, less than 15 % apart
