"""Hearing: what nets that take waves begin with, a log-mel front end that exports and stretches that are masked."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.spectra import FLOOR, kernels, lengths, triangles


class LogMel(nn.Module):
    """`spectra.log_mel` in operators that export: the windowed Fourier transform is a convolution with constants.

    In float32 under any autocast, for the logarithm of a rounded power says little.
    """

    def __init__(self, sampling_hz: int, bands: int) -> None:
        super().__init__()
        frame, self.hop = lengths(sampling_hz)
        self.register_buffer("waves", torch.tensor(kernels(frame)[:, None], dtype=torch.float32), persistent=False)
        self.register_buffer(
            "mel", torch.tensor(triangles(sampling_hz, frame, bands), dtype=torch.float32), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, samples), about as large as 1 -> (n, frames, bands)."""
        with torch.autocast(x.device.type, enabled=False):
            real, imaginary = F.conv1d(x.float().unsqueeze(1), self.waves, stride=self.hop).chunk(2, 1)
            return ((real**2 + imaginary**2).transpose(1, 2) @ self.mel + FLOOR).log()


def masked(x: Tensor) -> Tensor:
    """Without a stretch of time and one of pitch, random ones in each row. Park et al. 2019, arXiv:1904.08779."""
    for axis, longest in ((1, x.shape[1] // 5), (2, x.shape[2] // 5)):
        places = torch.arange(x.shape[axis], device=x.device)
        begin = torch.randint(0, x.shape[axis], (len(x), 1), device=x.device)
        gone = (places >= begin) & (places < begin + torch.randint(0, longest + 1, (len(x), 1), device=x.device))
        x = x.masked_fill(gone.unsqueeze(3 - axis), 0.0)
    return x
