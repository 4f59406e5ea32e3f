"""ResNet-20 for small pictures: three blocks at each of three sizes. He et al. 2016, arXiv:1512.03385, section 4.2."""

from dataclasses import dataclass

from torch import Tensor, nn

from airserve.learn.nets import Form
from airserve.learn.nets.resnet8 import Block


@dataclass(frozen=True)
class Config:
    width: int = 16  # channels at the first size; each next size has twice as many
    epochs: int = 2
    batch: int = 96
    rate: float = 2e-2  # peak learning rate
    decay: float = 5e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A ResNet-20 for pictures (height, width) or (height, width, channels). Raises `ModelError` on other inputs."""
    return ResNet20(form.channels("resnet20"), config.width, form.outputs)


class ResNet20(nn.Module):
    def __init__(self, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True))
        blocks, inside = [], width
        for outside, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for k in range(3):
                blocks.append(Block(inside, outside, stride if k == 0 else 1))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.answer = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width) or (n, height, width, channels) -> (n, outputs)."""
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        x = self.blocks(self.stem(x))  # (n, 4 width, height / 4, width / 4)
        return self.answer(x.mean((2, 3)))
