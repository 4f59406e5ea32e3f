"""A keyword spotter of depthwise separable convolutions. Zhang, Suda, Lai and Chandra 2017, "Hello Edge",
arXiv:1711.07128. Its log-mel front end is a part of the net, so a device sends, or hears, the wave as it is."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.hearing import LogMel, masked
from airserve.learn.nets import Form
from airserve.learn.spectra import lengths


@dataclass(frozen=True)
class Config:
    sampling_hz: int = 8000  # of the wave; a frame is 40 ms
    bands: int = 20  # mel bands
    width: int = 64  # channels
    layers: int = 4  # separable convolutions
    dropout: float = 0.2
    epochs: int = 18
    batch: int = 64
    rate: float = 5e-3  # peak learning rate
    decay: float = 5e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A DS-CNN for waves, shape (samples,). Raises `ModelError` on other inputs."""
    form.wave("ds-cnn", lengths(config.sampling_hz)[0])
    return KeywordSpotter(config, form.outputs)


class KeywordSpotter(nn.Module):
    """The spectrum as a picture of time and pitch, one full convolution, separable ones, the mean over all places."""

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.spectrum = LogMel(config.sampling_hz, config.bands)
        self.level = nn.BatchNorm1d(config.bands)
        self.first = nn.Sequential(
            nn.Conv2d(1, width, (10, 4), stride=2, padding=(4, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.layers = nn.Sequential(*(Separable(width) for _ in range(config.layers)))
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, samples) -> (n, outputs)."""
        x = self.level(self.spectrum(x).transpose(1, 2)).transpose(1, 2)  # (n, frames, bands)
        if self.training:
            x = masked(shifted(x))
        x = self.layers(self.first(x.unsqueeze(1)))  # (n, width, frames / 2, bands / 2)
        return self.answer(self.dropout(x.mean((2, 3))))


def shifted(x: Tensor) -> Tensor:
    """A batch of spectra (n, frames, bands), up to 5 frames earlier or later and a band lower or higher."""
    frames, bands = int(torch.randint(-5, 6, ())), int(torch.randint(-1, 2, ()))
    return x.roll((frames, bands), (1, 2))


class Separable(nn.Module):
    """A convolution of 3x3 within each channel, then one of 1x1 among channels; norm and ReLU after each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.point(F.relu(self.norm1(self.depth(x))))))
