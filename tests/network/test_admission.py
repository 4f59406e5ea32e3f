"""Admission against brute force: every share in steps of a tenth, every number of devices, by the definition."""

import math
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airserve import catalog
from airserve.network.admission import AdmissionError, Booking, Capacity, admit, capacity, share
from airserve.network.mac import DOWN, UP, Mac, MacError
from airserve.network.topology import Network, Slice

rates = st.integers(0, 40).map(lambda tenths: tenths / 10)


@settings(deadline=None)
@given(
    minima=st.lists(st.integers(0, 330).map(lambda x: x / 10), max_size=3),
    devices=st.integers(1, 60), up=rates, down=rates, capacity=st.tuples(st.integers(20, 90), st.integers(100, 900)),
    dedicated=st.booleans(), prbs=st.sampled_from([11, 51, 273, 1000]),
)  # fmt: skip
def test_a_booking_is_met_or_refused_with_what_could(minima, devices, up, down, capacity, dedicated, prbs):
    assume(up or down)
    slices = [Slice(name=f"s{k}", min=one) for k, one in enumerate(minima)]
    booking, there = Booking(devices, up, down, dedicated), Capacity(*capacity, prbs)

    def keeps(tenths: int, number: int) -> bool:
        part = math.floor(tenths * prbs / 1000 + 1e-9) / prbs
        return part * there.up_mbps >= number * up - 1e-7 and part * there.down_mbps >= number * down - 1e-7

    def fits(tenths: int) -> bool:
        return sum(minima) + tenths / 10 <= 100 + 1e-7

    least = next((t for t in range(1, 12_001) if keeps(t, devices)), None)
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
        if any(int(one * prbs / 100 + 1e-9) == 0 for one in minima if one) or prbs == 1000:
            return
        mhz = {11: 5, 51: 20, 273: 100}[prbs]
        cell = {"cells": [{"name": "hall", "bandwidth_mhz": mhz}], "sites": [{"name": "mast", "kind": "edge"}]}
        Network.model_validate({**cell, "slices": [*(s.model_dump() for s in slices), made.model_dump()]})


@pytest.mark.parametrize(
    ("name", "booking", "says"),
    [
        ("a", (1, 1.0), "slice a is there already"),
        ("b", (0, 1.0), "for 0 devices at 1 Mbit/s up and 0 down cannot be met; give 1 to 10000 devices"),
        ("b", (10**400, 1.0), "give 1 to 10000 devices"),
        ("b", (1, -1.0), "one rate or both of 0.000001 to 100000"),
        ("b", (1,), "at 0 Mbit/s up and 0 down cannot be met"),
        ("b", (1, 1e-300), "cannot be met"),
        ("b", (1, math.nan), "at nan Mbit/s up"),
        ("b", (1, 1.0, math.inf), "and inf down"),
        ("b", (1, 1e308), "cannot be met"),
        ("Line 2", (1, 1.0), "'Line 2' is not a name for a slice; use up to 40 lower-case letters"),
    ],
)
def test_bookings_that_make_no_sense(name, booking, says):
    with pytest.raises(AdmissionError, match=says) as told:
        admit([Slice(name="a")], name, Booking(*booking), Capacity(10, 10))
    assert "\n" not in str(told.value)


@given(devices=st.integers(1, 10_000), rate=st.floats(1e-6, 1e5), up=st.floats(1e-3, 1e5), prbs=st.integers(11, 275))
def test_every_rate_is_booked_or_refused(devices, rate, up, prbs):
    try:
        made = admit([], "b", Booking(devices, rate), Capacity(up, up, prbs))
    except AdmissionError as error:
        assert devices * rate > 0.99 * up
        assert "100 % could be booked" in str(error)
    else:
        assert made.min * prbs / 100 >= 1


def test_more_devices_than_the_pucch_hears_are_not_booked(network, flat):
    """As many as the twin takes, of those that are there and those that are booked together."""
    net = network(sr_resources=4)
    there = capacity(net, seconds=0.1)
    book = Booking(20, 0.001)
    admit([], "b", book, there, known=12)
    Mac(net, [0] * 32, seed=1, trace=flat(20))
    with pytest.raises(MacError):
        Mac(net, [0] * 33, seed=1, trace=flat(20))
    with pytest.raises(AdmissionError, match=r"requests of 32 devices and 33 would be there; raise the cell's sr_per"):
        admit([], "b", book, there, known=13)
    admit([], "b", book, capacity(network(sr_resources=4, grant="configured"), seconds=0.1), known=13)


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
