"""Speech: spectra against scipy, voices that are held out, data that are absent."""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import stft

from airserve.learn import synthesis
from airserve.learn.hearing import LogMel, masked
from airserve.learn.nets.ds_cnn import shifted
from airserve.learn.spectra import FLOOR, hann, kernels, log_mel, mel, triangles
from airserve.learn.synthesis import Saying
from airserve.learn.tasks import TaskError, speech_words


def waves() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 2_000)).astype(np.float32)


def test_spectra_are_those_of_scipy() -> None:
    """Power in mel bands of the short-time Fourier transform, without padding or scale."""
    _, _, found = stft(waves(), 8_000, hann(320), 320, 160, boundary=None, padded=False, scaling="psd")
    power = np.abs(found) ** 2
    power *= 8_000 * (hann(320) ** 2).sum()  # scipy's density, two-sided as for complex spectra
    wanted = np.log(np.swapaxes(power, 1, 2) @ triangles(8_000, 320, 20) + FLOOR)
    np.testing.assert_allclose(log_mel(waves(), 8_000, 20), wanted, rtol=1e-4, atol=1e-4)


def test_the_nets_spectra_are_the_same_under_autocast_too() -> None:
    net, inputs = LogMel(8_000, 20), torch.tensor(waves())
    wanted = log_mel(waves(), 8_000, 20)
    np.testing.assert_allclose(net(inputs).numpy(), wanted, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(net(inputs).numpy(), wanted, atol=1e-3)


def test_a_tone_is_in_its_band() -> None:
    time_s = np.arange(2_000) / 8_000
    for tone_hz in (300.0, 1_000.0, 2_500.0):
        found = log_mel(np.sin(2 * np.pi * tone_hz * time_s)[None], 8_000, 20)[0].mean(axis=0).argmax()
        middles = np.linspace(*mel(np.array([20.0, 4_000.0])), 22)[1:-1]
        assert abs(middles - mel(np.array(tone_hz))).argmin() == found


def test_bands_cover_every_bin_between_the_outer_middles() -> None:
    """Neighbouring triangles add up to 1."""
    bands = triangles(8_000, 320, 20)
    inner = (bands.argmax(axis=1) > 0) & (bands.argmax(axis=1) < 19)
    np.testing.assert_allclose(bands[inner].sum(axis=1), 1)


def test_kernels_are_the_windowed_transform() -> None:
    wave = waves()[0, :32].astype(np.float64)
    real, minus_imaginary = np.split(kernels(32) @ wave, 2)
    np.testing.assert_allclose(real - 1j * minus_imaginary, np.fft.rfft(wave * hann(32)), atol=1e-12)


def test_spectra_are_masked_and_shifted_within_their_limits() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        kept = masked(torch.ones(4, 50, 20)) > 0
        for row in kept:
            assert row.any(1).sum() >= 40
            assert row.any(0).sum() >= 16
            assert row.sum() == row.any(1).sum() * row.any(0).sum()  # whole frames and whole bands
    moved = shifted(torch.arange(1000.0).reshape(1, 50, 20))
    assert sorted(moved.flatten().tolist()) == list(range(1000))


def test_resampling_keeps_a_tone() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050)
    found = synthesis.resample(tone, 22_050, 8_000)
    wanted = np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)
    assert len(found) == 8_000
    np.testing.assert_allclose(found[500:-500], wanted[500:-500], atol=2e-3)


def test_noise_has_its_colour() -> None:
    rng = np.random.default_rng(0)
    for exponent in (0.0, 1.0, 2.0):
        power = sum(np.abs(np.fft.rfft(speech_words.coloured(8_000, exponent, rng))) ** 2 for _ in range(20))
        bins = np.arange(10, 3_000)
        slope = np.polyfit(np.log(bins), np.log(power[bins]), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.05)


@pytest.fixture
def espeak() -> synthesis.Synthesiser:
    try:
        return synthesis.synthesiser()
    except TaskError:
        pytest.skip("espeak-ng is absent")


def test_no_speaker_is_in_two_splits(espeak: synthesis.Synthesiser, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Saying]] = []

    def unheard(sayings: list[Saying]) -> tuple[list[np.ndarray], int]:
        asked.append(sayings)
        return [np.ones(100, np.int16)] * len(sayings), 22_050

    monkeypatch.setattr(speech_words, "speak", unheard)
    monkeypatch.setattr(speech_words, "SAID", {"train": 40, "validation": 20, "test": 20})
    data = speech_words.load.__wrapped__()
    assert np.bincount(data.train.labels).tolist() == [40, 80, *[40] * 10]
    assert np.bincount(data.test.labels).tolist() == [20] * 12
    groups = synthesis.speakers(espeak.variants())
    assert len(groups) > 40
    assert not {each.variant for sayings in asked for each in sayings} & {"whisper", "robosoft3", "croak"}
    speaker = {variant: k for k, group in enumerate(groups) for variant in group}
    people = [{speaker[each.variant] for each in sayings} for sayings in asked]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not people[a] & people[b]
    assert not set(speech_words.OTHERS) & set(speech_words.KEYWORDS)


def test_the_same_is_said_the_same_whatever_was_said_before(espeak: synthesis.Synthesiser) -> None:
    sayings = [Saying("stop", "en-us", "f2"), Saying("go", "en-gb-scotland", "m1", 200, 70)]
    (first, other), sampling_hz = synthesis.speak(sayings)
    espeak.say(sayings[1])
    again, _ = synthesis.speak(sayings)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(other, again[1])
    assert 0.1 < len(first) / sampling_hz < 2
    assert np.abs(first).max() > 1_000


def test_a_clip_is_the_word_in_a_second_of_noise() -> None:
    wave = 1_000 * np.sin(np.arange(4_000, dtype=np.float32))
    word, again, silence = (speech_words.clip(each, np.random.default_rng(3)) for each in (wave, wave, wave[:0]))
    assert word.dtype == np.int16
    assert word.shape == silence.shape == (8_000,)
    np.testing.assert_array_equal(word, again)
    assert np.abs(word.astype(int)).max() > 2 * np.abs(silence.astype(int)).max() > 0
    assert speech_words.clip(np.tile(wave, 3), np.random.default_rng(0)).shape == (8_000,)


def test_an_absent_synthesiser_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(TaskError, match="apt-get install espeak-ng") as caught:
        synthesis.Synthesiser()
    assert "\n" not in str(caught.value)
