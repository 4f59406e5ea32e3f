"""Oracles: Sionna's own encoder, mapper and decoder on the same words; probit counts drawn from known curves."""

from importlib.util import find_spec

import numpy as np
import pytest

from airserve.network import ldpc

RNG = np.random.default_rng
needs_sionna = pytest.mark.skipif(find_spec("sionna") is None, reason="takes the graph of the code from Sionna")


@pytest.mark.parametrize("qm", [2, 4, 6, 8])
def test_symbols_have_unit_power_and_gray_labels(qm):
    half = qm // 2
    labels = (np.arange(2**half)[:, None] >> np.arange(half - 1, -1, -1)) & 1
    part = ldpc.amplitude(labels)
    assert 2 * np.mean(part**2) == pytest.approx(1)
    assert (np.abs(np.diff(labels[np.argsort(part)], axis=0)).sum(axis=1) == 1).all()


def test_a_fit_finds_the_curve_that_made_the_counts():
    rng = RNG(1)
    for middle_db, width_db in ((-6.2, 0.15), (3.0, 0.6), (21.4, 0.08)):
        snr_db = middle_db + width_db * np.array([-4.0, -1, 0.3, 1.3, 2.1])
        words = np.array([32.0, 4000, 4000, 4000, 4000])
        lost = [1 - ldpc.NormalDist().cdf((x - middle_db) / width_db) for x in snr_db]
        found = ldpc.fit(snr_db, words, rng.binomial(words.astype(int), lost).astype(float))
        assert found == pytest.approx((middle_db, width_db), abs=0.1 * width_db)


@needs_sionna
@pytest.mark.parametrize(("k", "rate", "qm", "snr_db"), [(200, 0.5, 2, 1.0), (300, 0.6, 6, 12.6), (300, 0.8, 8, 21.5)])
def test_same_bits_as_sionna(k, rate, qm, snr_db):
    """Word by word: what is sent, the likelihoods, and the bits after 20 iterations, right and wrong ones alike."""
    import torch
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    from sionna.phy.mapping import Demapper, Mapper

    code, rng = ldpc.code(k, rate, qm), RNG(2)
    bits, sent = ldpc.encode(code, 24, rng)
    encoder = LDPC5GEncoder(k, code.n, num_bits_per_symbol=qm)
    theirs = encoder(torch.tensor(bits.T.copy(), dtype=torch.float32))
    assert (theirs.numpy() == sent.T).all()
    ratios = ldpc.receive(code, snr_db, sent, rng)

    class Known:  # noise of which both ends hear the same: none
        def standard_normal(self, shape):
            return np.zeros(shape)

    clean = ldpc.receive(code, snr_db, sent, Known())
    symbols = Mapper("qam", qm)(theirs)
    demapped = Demapper("app", "qam", qm)(symbols, 10 ** (-snr_db / 10))
    assert np.clip(clean.T, -20, 20) == pytest.approx(np.clip(-demapped.numpy(), -20, 20), rel=1e-3, abs=1e-3)
    decoder = LDPC5GDecoder(encoder, cn_update="boxplus", num_iter=ldpc.ITERATIONS)
    decoded = decoder(torch.tensor(-ratios.T.copy())).numpy().T.astype(bool)
    ours = ldpc.decode(code, ratios)
    wrong = (decoded != bits).any(axis=0)
    assert 0 < wrong.sum() < 24
    assert ((ours != bits).any(axis=0) == wrong).all()
    assert (ours == decoded)[:, ~wrong].all()


@needs_sionna
def test_low_rates_repeat_bits():
    code, rng = ldpc.code(100, 0.1, 2), RNG(4)
    bits, sent = ldpc.encode(code, 8, rng)
    assert (code.n, code.encoder.n, len(code.sent), len(set(code.sent.tolist()))) == (1000, 500, 1000, 500)
    assert (ldpc.decode(code, ldpc.receive(code, 5.0, sent, rng)) == bits).all()
    assert ldpc.count_errors(code, -30.0, 8, rng) == 8
