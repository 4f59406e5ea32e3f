"""Spectra of sound: a log-mel front end as constants of numpy, for a baseline, and as a part of a net, for its graph.

Frames of 40 ms each 20 ms, a Hann window, power, triangles on the mel scale, the logarithm. Davis and Mermelstein
1980, IEEE TASSP 28; the scale is O'Shaughnessy's 2595 log10(1 + f / 700).
"""

import numpy as np

from airserve.model import Array

FRAME_S, HOP_S = 0.04, 0.02
LOWEST_HZ = 20.0
FLOOR = 1e-2  # added to the power: 40 dB below white noise as loud as the speech


def mel(frequency_hz: Array) -> Array:
    """
    >>> np.round(mel(np.array([0.0, 700.0, 1000.0])), 1).tolist()
    [0.0, 781.2, 1000.0]
    """
    return np.asarray(2595 * np.log10(1 + np.asarray(frequency_hz) / 700))


def triangles(sampling_hz: int, frame: int, bands: int) -> Array:
    """What each mel band takes of each bin of a frame's spectrum, shape (frame // 2 + 1, bands), each peak 1."""
    bins = mel(np.fft.rfftfreq(frame, 1 / sampling_hz))
    lowest, highest = mel(np.array([LOWEST_HZ, sampling_hz / 2]))
    edges = np.linspace(lowest, highest, bands + 2)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def kernels(frame: int) -> Array:
    """The windowed discrete Fourier transform as 2 (frame // 2 + 1) rows of weights: the cosines, then the sines."""
    angles = 2 * np.pi * np.outer(np.arange(frame // 2 + 1), np.arange(frame)) / frame
    return np.concatenate([np.cos(angles), np.sin(angles)]) * hann(frame)


def hann(frame: int) -> Array:
    """The periodic window of Hann."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame))


def lengths(sampling_hz: int) -> tuple[int, int]:
    """Samples of a frame and between the beginnings of two."""
    return round(FRAME_S * sampling_hz), round(HOP_S * sampling_hz)


def log_mel(waves: Array, sampling_hz: int, bands: int) -> Array:
    """Waves, about as large as 1, shape (n, samples) -> float32 (n, frames, bands)."""
    frame, hop = lengths(sampling_hz)
    cut = np.lib.stride_tricks.sliding_window_view(waves, frame, axis=1)[:, ::hop]
    power = np.stack([np.abs(np.fft.rfft(each * hann(frame))) ** 2 for each in cut])
    return np.asarray(np.log(power @ triangles(sampling_hz, frame, bands) + FLOOR), np.float32)
