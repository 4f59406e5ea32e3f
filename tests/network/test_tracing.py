"""Oracles: channels whose SNR is known in closed form, Monte Carlo mutual information, and a still device."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from airserve.network import coupling, lattice, radio, tracing
from airserve.network.cell import Cell

RNG = np.random.default_rng
needs_sionna = pytest.mark.skipif(find_spec("sionna") is None, reason="makes channels with Sionna")


def test_information_of_256qam_equals_monte_carlo():
    rng = RNG(0)
    for snr_db in (5.0, 15.0, 25.0):
        axis = np.arange(-15, 16, 2) / np.sqrt(170)
        points = (axis[:, None] + 1j * axis).ravel()
        sent = rng.choice(points, 4000)
        noise_power = 10 ** (-snr_db / 10)
        noise = rng.standard_normal((2, 4000)) * np.sqrt(noise_power / 2)
        seen = sent + noise[0] + 1j * noise[1]
        likely = np.exp(-(np.abs(seen[:, None] - points) ** 2) / noise_power)
        true = np.exp(-(np.abs(seen - sent) ** 2) / noise_power)
        bits = 8 - np.log2(likely.sum(axis=1) / true).mean()
        assert tracing._information(np.array([snr_db]))[0] == pytest.approx(bits, abs=0.08)


def test_information_has_its_limits():
    low, high = tracing._information(np.array([-10.0, 45.0]))
    assert low == pytest.approx(np.log2(1.1), rel=0.01)  # Shannon's, where the constellation does not matter
    assert high == pytest.approx(8, abs=1e-6)


@pytest.mark.parametrize("snr_db", [-20, -3, 0, 14, 27, 35, 47, 55])
def test_a_flat_channel_keeps_its_snr(snr_db):
    assert tracing._effective_db(np.full((2, 3, 18, 4), 10 ** (snr_db / 10))).tolist() == [[snr_db] * 3] * 2


def test_a_strong_layer_cannot_carry_a_weak_one():
    effective_db = tracing._effective_db(10 ** (np.array([[[[50.0, 0.0]]]]) / 10))[0, 0]
    assert 0 < effective_db < 16  # 8 bits at most + 1 bit on two layers: 4.5 bits each


def test_downlink_of_one_path_has_the_gain_of_both_arrays():
    h = np.ones((1, 3, 2, 4, 32), complex)  # rank 1: 4 x 32 = 21 dB
    snr_db = tracing._downlink_db(h, h, 10.0)
    assert snr_db.shape == (1, 3, 4)
    assert (snr_db[..., 0] == round(10 + 10 * np.log10(128))).all()


def test_downlink_of_parallel_paths_shares_the_power():
    h = np.zeros((1, 2, 2, 4, 32), complex)
    h[..., range(4), range(4)] = 1
    known = [20 - 10 * np.log10(layers) for layers in (1, 2, 3, 4)]
    assert tracing._downlink_db(h, h, 100.0)[0, 0].tolist() == [round(db) for db in known]


def test_downlink_loses_by_noise_in_the_sounding():
    rng = RNG(2)
    h = (rng.standard_normal((4, 3, 4, 4, 32)) + 1j * rng.standard_normal((4, 3, 4, 4, 32))) / np.sqrt(2)
    ideal, clean = (tracing._downlink_db(h, known, 1.0) for known in (h, tracing._sounded(h, 1e9, rng)))
    assert (clean == ideal).all()
    # At no SNR a precoder is a guess: one of 32 directions, so all of the transmit array's gain is gone.
    guess_db = tracing._downlink_db(h, tracing._sounded(h, 1e-6, rng), 1.0)[..., 0]
    assert guess_db.mean() == pytest.approx(10 * np.log10(4), abs=1)


def test_uplink_takes_the_best_entry_of_the_codebook():
    h = np.zeros((1, 2, 3, 2, 8), complex)
    h[..., 0, :], h[..., 1, :] = 1, -1j  # antennas in quadrature: [1, j] adds them
    snr_db = tracing._uplink_db(h, h, 1.0)
    assert snr_db[0, 0, 0] == round(10 * np.log10(8 * 4 / 2))
    turned = tracing._uplink_db(h, h.conj(), 1.0)  # an entry chosen for another channel: they cancel
    assert (turned[..., 0] == -40).all()
    same = tracing._uplink_db(h[..., :1, :], h[..., :1, :], 1.0)  # one antenna: MRC of 8 ports
    assert same.tolist() == [[[9], [9]]]


def test_codebook_never_sends_more_than_the_power():
    for codebook in (tracing.CODEBOOK_1, tracing.CODEBOOK_2):
        assert ((np.abs(codebook) ** 2).sum(axis=(1, 2)) <= 1 + 1e-12).all()


def test_mmse_equals_zero_forcing_without_noise_and_the_closed_form_of_two_layers():
    rng = RNG(3)
    h = rng.standard_normal((4, 2)) + 1j * rng.standard_normal((4, 2))
    gain = 7.0
    a, b = h[:, 0], h[:, 1]
    wanted = gain * (a.conj() @ np.linalg.inv(np.eye(4) + gain * np.outer(b, b.conj())) @ a).real
    assert tracing._mmse_snr(h, gain)[0] == pytest.approx(wanted)


def test_a_trace_survives_its_file(tmp_path):
    made = radio.load(Cell(name="hall"))
    tracing.save(made, tmp_path / "deep" / "trace.npz")
    back = radio.read(tmp_path / "deep" / "trace.npz")
    for name in radio.ARRAYS:
        assert (getattr(back, name) == getattr(made, name)).all()
    assert (back.scenario, back.snapshot_s, back.made_by) == (made.scenario, made.snapshot_s, made.made_by)


def test_stopped_while_it_writes_it_leaves_no_file(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        tracing.save(radio.load(Cell(name="hall")), tmp_path / "trace.npz")
    assert list(tmp_path.iterdir()) == []


def test_without_sionna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sionna.phy", None)
    with pytest.raises(radio.TraceError, match=r"pip install 'airserve\[radio\]'"):
        tracing.make("inf-dh", cell=Cell(name="hall"))


def test_directions_of_two_orthogonal_paths():
    rng = RNG(5)
    ports = np.linalg.qr(rng.standard_normal((32, 2)) + 1j * rng.standard_normal((32, 2)))[0]
    heard = np.linalg.qr(rng.standard_normal((4, 2)) + 1j * rng.standard_normal((4, 2)))[0]
    h = np.tile(heard * [10, 5] @ ports.conj().T, (2, 3, 7, 1, 1))  # ue, snapshot, rbg, antenna, port
    found = tracing._directions(h, 1.0)
    assert found["snr_direction_db"].tolist() == [[[20, 14]] * 3] * 2
    trace = radio.Trace("inf-dh", 0.01, h, h, h, {}, direction=found["direction"])
    along = np.abs(np.einsum("utdp,pd->utd", trace.directions().conj(), ports))
    assert along == pytest.approx(1, abs=1e-3)


def test_coupling_loss_of_the_whole_site_is_one_shadow():
    """Nothing here needs Sionna: the lattice of cells, and the range of what is stored."""
    gain = np.full((1, 4, 3), 1e-8) * [1, 0.5, 0.5e-3]
    assert coupling.coupling_loss_db(gain)[0, 0].tolist() == [80, 83, 255]
    here = np.array([0.0, 0.0, 10.0])
    places, turns = lattice.cells("umi", here, np.array([np.pi / 6, 0, 0]))
    assert np.degrees(turns[:3, 0]) == pytest.approx([30, 150, 270])
    assert (places[:3] == here).all()
    apart = np.linalg.norm(places[None, ::3] - places[::3, None], axis=-1) + 1e9 * np.eye(19)
    assert apart.min(axis=1) == pytest.approx(200)
    hall, _ = lattice.cells("inf-dh", np.array([0.0, 30.0, 8.0]), np.zeros(3))
    assert hall[1:, :2].min(axis=0) == pytest.approx([10, 10])
    assert hall[1:, :2].max(axis=0) == pytest.approx([110, 50])


def capacity(h, snr):
    """Ergodic capacity by MMSE receivers that cancel what they have decoded: log det, layer by layer."""
    layers = h.shape[-1]
    return sum(np.log2(1 + tracing._mmse_snr(h[..., k:], snr / layers)[..., 0]).mean() for k in range(layers))


@pytest.mark.parametrize(
    ("heard", "ports", "at_0_10_20_db"),
    [(1, 1, (0.8603, 2.9065, 5.8840)), (2, 2, (1.689, 5.553, 11.29)), (4, 4, (3.353, 10.94, 22.14)),
     (4, 32, (3.909, 13.53, 26.26)), (4, 64, (3.956, 13.69, 26.45))],
)  # fmt: skip
def test_ergodic_capacity_of_rayleigh_channels(heard, ports, at_0_10_20_db):
    """The first in closed form, e^(1/r) E1(1/r) / ln 2; the others from a simulation of the determinant."""
    rng = RNG(6)
    draws = 10_000 if ports <= 4 else 30  # many ports are nearly the same every time
    h = (rng.standard_normal((draws, heard, ports)) + 1j * rng.standard_normal((draws, heard, ports))) / np.sqrt(2)
    for snr, bits in zip((1, 10, 100), at_0_10_20_db, strict=True):
        assert capacity(h, snr) == pytest.approx(bits, rel=0.02)


@needs_sionna
def test_a_stopped_run_goes_on_to_the_same_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "CHANNELS_AT_ONCE", 8 * 4 * 4)  # one UE at a time
    cell, part = Cell(name="hall", scenario="umi", gnb_ports=8), tmp_path / "x.part"

    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    whole = tracing.make("umi", cell=cell, ues=3, snapshots=2, seed=5)
    with pytest.raises(KeyboardInterrupt):
        tracing.make("umi", cell=cell, ues=3, snapshots=2, seed=5, part=part, progress=stop)
    seen = []
    again = tracing.make(
        "umi", cell=cell, ues=3, snapshots=2, seed=5, part=part, progress=lambda done, _: seen.append(done)
    )
    assert seen == [3]
    assert not part.exists()
    for name in radio.ARRAYS:
        assert (getattr(again, name) == getattr(whole, name)).all()


@needs_sionna
def test_a_part_of_another_run_is_not_used(tmp_path):
    part = tmp_path / "x.part"
    part.write_bytes(b"PK\x03\x04 torn")
    cell = Cell(name="hall", gnb_ports=2, ue_antennas=2)
    made = [tracing.make("inf-dh", cell=cell, ues=1, snapshots=2, seed=seed, part=part) for seed in (1, 2)]
    assert (made[0].position_m != made[1].position_m).any()


@needs_sionna
def test_precoding_loses_as_much_as_late_and_noisy_knowledge_may():
    """Against SVD on the channel itself; halls at walking speed are at the low end, sounding noise adds outdoors."""
    cell = Cell(name="hall", scenario="umi")
    late, ideal = (tracing.make("umi", cell=cell, ues=10, snapshots=3, seed=2, csi=csi) for csi in ("sounded", "ideal"))
    assert (late.snr_up_db == ideal.snr_up_db).all()  # the same channels
    lost_db = (ideal.snr_down_db.astype(float) - late.snr_down_db).mean(axis=(0, 1))
    assert 0.5 < lost_db.mean() < 4


@needs_sionna
def test_a_still_device_has_a_still_radio():
    done = []
    cell = Cell(name="hall", gnb_ports=8)
    trace = tracing.make(
        "inf-dh", cell=cell, ues=3, snapshots=3, speed_ms=0, seed=5, progress=lambda n, of: done.append((n, of))
    )
    assert done[-1] == (3, 3)
    assert trace.snr_down_db.shape == (3, 3, 4)
    assert (np.ptp(trace.snr_up_db, axis=1) == 0).all()
    again = tracing.make("inf-dh", cell=cell, ues=3, snapshots=3, speed_ms=0, seed=5)
    assert (trace.snr_down_db == again.snr_down_db).all()


@needs_sionna
def test_one_call_makes_what_load_finds(tmp_path):
    path = tracing.make_for("umi", ues=2, snapshots=2, home=tmp_path, gnb_ports=4, ue_antennas=2)
    cell = Cell(name="street", scenario="umi", gnb_ports=4, ue_antennas=2)
    trace = radio.load(cell, tmp_path)
    assert path.name == radio.file_name(cell)
    assert (trace.positions, trace.snapshots, trace.snr_down_db.shape[2]) == (2, 2, 2)


@needs_sionna
def test_what_cannot_be_made_is_said(tmp_path):
    with pytest.raises(radio.TraceError, match="3 antennas"):
        tracing.make("inf-dh", cell=Cell(name="hall", gnb_ports=3), ues=1)
    with pytest.raises(radio.TraceError, match="scenario moon"):
        tracing.make_for("moon", home=tmp_path)
    with pytest.raises(radio.TraceError, match=r"^bandwidth_mhz 33 does not exist at 30 kHz"):
        tracing.make_for("umi", home=tmp_path, bandwidth_mhz=33)
    with pytest.raises(radio.TraceError, match="choose inf-sl"):
        tracing.make("moon", cell=Cell(name="hall"))
    assert list(tmp_path.iterdir()) == []
