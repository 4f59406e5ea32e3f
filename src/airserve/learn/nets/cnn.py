"""Convolutions, pooling and a perceptron, after LeNet-5. LeCun, Bottou, Bengio and Haffner 1998, Proc. IEEE 86."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.nets import Form


@dataclass(frozen=True)
class Config:
    width: int = 16  # channels of the first convolution; the second has twice as many
    hidden: int = 48
    dropout: float = 0.2
    epochs: int = 8
    batch: int = 128
    rate: float = 5e-3  # peak learning rate
    decay: float = 5e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A LeNet for pictures (height, width) or (height, width, channels). Raises `ModelError` on other inputs."""
    places = (form.shape[0] // 4) * (form.shape[1] // 4) if len(form.shape) > 1 else 0
    return LeNet(form.channels("cnn"), places, config, form.outputs)


class LeNet(nn.Module):
    def __init__(self, channels: int, places: int, config: Config, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.hidden = nn.Linear(2 * width * places, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(config.hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width) or (n, height, width, channels) -> (n, outputs)."""
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (n, width, height / 2, width / 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (n, 2 width, height / 4, width / 4)
        x = F.relu(self.hidden(self.dropout(x.flatten(1))))
        return self.answer(self.dropout(x))
