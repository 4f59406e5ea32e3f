"""ResNet-8 for small pictures. He et al. 2016, arXiv:1512.03385, cut to 8 layers as MLPerf Tiny, arXiv:2106.07597."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.nets import Form


@dataclass(frozen=True)
class Config:
    width: int = 16  # channels of the first block; each next block has twice as many
    epochs: int = 2
    batch: int = 96
    rate: float = 2e-2  # peak learning rate
    decay: float = 5e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A ResNet-8 for pictures (height, width) or (height, width, channels). Raises `ModelError` on other inputs."""
    return ResNet8(form.channels("resnet8"), config.width, form.outputs)


class ResNet8(nn.Module):
    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        # No norm behind the first convolution: its input is normalised, and the norm would take a tenth of the time.
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True))
        self.block1 = Block(width, width, stride=1)
        self.block2 = Block(width, 2 * width, stride=2)
        self.block3 = Block(2 * width, 4 * width, stride=2)
        self.answer = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width) or (n, height, width, channels) -> (n, classes)."""
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        x = self.stem(x)  # (n, width, height, width)
        x = self.block3(self.block2(self.block1(x)))  # (n, 4 width, height / 4, width / 4)
        return self.answer(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions of 3x3 and a way around them, a convolution of 1x1 where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        same = inside == outside and stride == 1
        self.around = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inside, h, w) -> (n, outside, h / stride, w / stride)."""
        y = torch.relu_(self.norm1(self.conv1(x)))  # in place: a fifth of the time goes to memory
        y = self.norm2(self.conv2(y))
        y += self.around(x)
        return torch.relu_(y)
