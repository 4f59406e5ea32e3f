"""Speech to characters: separable convolutions over time, residual, with CTC. Kriman et al. 2020, "QuartzNet",
arXiv:1910.10261, made small. The log-mel front end is a part of the net, as in ds-cnn."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.exporting import Graph, Sense
from airserve.learn.hearing import LogMel, masked
from airserve.learn.losses import connectionist
from airserve.learn.nets import Form
from airserve.learn.spectra import lengths
from airserve.model import Array

HASTE, THROAT = 0.15, 2  # in training a wave is up to so much slower or faster, and so many bands higher or lower
PARTS = 2  # of a batch, of rows of like length


@dataclass(frozen=True)
class Config:
    sampling_hz: int = 8000  # of the wave
    bands: int = 40  # mel bands
    width: int = 128  # channels
    kernel: int = 11  # places of 40 ms that a convolution sees
    layers: int = 4  # residual ones, of two convolutions each
    dropout: float = 0.1
    epochs: int = 60
    batch: int = 8
    rate: float = 4e-3  # peak learning rate
    decay: float = 1e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A writer of what is said in waves, shape (samples,). Raises `ModelError` on other inputs."""
    form.wave("quartznet", lengths(config.sampling_hz)[0])
    return QuartzNet(config, form.outputs)


class QuartzNet(nn.Module):
    """Logits of the characters, symbol 0 CTC's blank, at each place of 40 ms of a wave."""

    answers = "text"
    keeps_last = True
    wide = True

    def __init__(self, config: Config, symbols: int) -> None:
        super().__init__()
        self.frame, self.hop = lengths(config.sampling_hz)
        width = config.width
        self.spectrum = LogMel(config.sampling_hz, config.bands)
        self.level = nn.BatchNorm1d(config.bands)
        self.first = nn.Sequential(
            nn.Conv1d(config.bands, width, 11, stride=2, padding=5, bias=False), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.layers = nn.Sequential(*(Residual(width, config.kernel, config.dropout) for _ in range(config.layers)))
        self.last = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1, bias=False), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Dropout(config.dropout)
        )
        self.answer = nn.Conv1d(2 * width, symbols, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, samples) -> (n, places, symbols)."""
        return self.hear(self.spectrum(x))

    def hear(self, x: Tensor) -> Tensor:
        """Spectra (n, frames, bands) -> (n, places, symbols)."""
        x = self.level(x.transpose(1, 2)).transpose(1, 2)
        if self.training:
            x = masked(x)
        return self.answer(self.last(self.layers(self.first(x.transpose(1, 2))))).transpose(1, 2)

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Waves (n, samples) and characters (n, longest), 0 after their ends -> CTC's loss for each character."""
        samples = ((inputs != 0) * torch.arange(1, inputs.shape[1] + 1, device=inputs.device)).amax(1)
        characters = (labels != 0).sum(1)
        total = inputs.new_zeros(())
        for rows in samples.argsort(stable=True).chunk(PARTS):
            x = self.spectrum(inputs[rows, : max(int(samples[rows].max()), self.frame)])
            frames = (samples[rows] - self.frame).clamp(min=0) // self.hop + 1
            if self.training:
                x, frames = varied(x, frames)
            logits = self.hear(x).float()
            wanted = labels[rows, : max(int(characters[rows].max()), 1)]
            total = total + connectionist(logits, wanted, (frames + 1) // 2, characters[rows]) * len(rows)
        return total / characters.sum().clamp(min=1)

    def graphs(self, sense: Sense, rows: Array) -> dict[str, Graph]:
        waves = [torch.tensor(rows[:1]), torch.tensor(rows[:3, : rows.shape[1] // 2])]
        free = {0: "n", 1: "samples"}
        return {"": Graph(sense(self), {"wave": free}, {"logits": {0: "n", 1: "places"}}, [(each,) for each in waves])}


class Residual(nn.Module):
    """Twice a convolution over time in each channel and one among channels, norm and ReLU; added to what came in."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(
                nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
                nn.Conv1d(width, width, 1, bias=False),
                nn.BatchNorm1d(width),
            )
            for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(F.relu(x + self.second(self.dropout(F.relu(self.first(x))))))


def varied(x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Spectra (n, frames, bands) and their lengths, as if said in other haste and by another throat."""
    factor = 1 + HASTE * (2 * float(torch.rand(())) - 1)
    slower = F.interpolate(x.transpose(1, 2), scale_factor=factor, mode="linear").transpose(1, 2)
    frames = (frames * factor).long().clamp(min=1, max=slower.shape[1])
    return slower.roll(int(torch.randint(-THROAT, THROAT + 1, ())), 2), frames
