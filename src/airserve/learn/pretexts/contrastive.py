"""Contrast: two views of a picture are to be told from views of others. Chen et al. 2020, SimCLR, arXiv:2002.05709."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.losses import contrast
from airserve.learn.nets import Form
from airserve.learn.pretexts import unfit
from airserve.model import ModelError

LEAST, MOST = 0.4, 1.0  # side of the part that a view shows, of the picture's
TURN = math.radians(12)  # largest turn of a view
HARD, BRIGHT = 0.5, 0.3  # largest change of a view's contrast, as a part, and of its brightness, in deviations


@dataclass(frozen=True)
class Config:
    width: int = 64  # of the vectors that are compared
    temperature: float = 0.2
    epochs: int = 2
    batch: int = 256  # each picture is told from so many others
    rate: float = 1e-2  # peak learning rate
    decay: float = 1e-2  # weight decay


def build(config: Config, net: nn.Module, form: Form) -> nn.Module:
    """What is learnt from views of pictures, (height, width) or (height, width, channels), by all but the last layer.

    Raises `ModelError` for other inputs, and for a net whose last layer is not a linear one named `answer`.
    """
    if form.ids or len(form.shape) not in (2, 3):
        raise unfit("contrastive", "pictures", form)
    if not isinstance(getattr(net, "answer", None), nn.Linear):
        raise ModelError(
            f"contrastive pre-training needs a net with a linear last layer; {type(net).__name__} has none."
        )
    return Contrastive(net, config)


class Contrastive(nn.Module):
    """A net without its last layer, and two layers behind it that are thrown away."""

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__()
        self.net, self.temperature = net, config.temperature
        width = net.answer.in_features
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.width))

    def objective(self, inputs: Tensor) -> Tensor:
        """How badly the two views of each picture are found among all, nats, shape ()."""
        both = torch.cat([view(inputs), view(inputs)])
        return contrast(self.project(self.features(both)).float(), self.temperature)

    def features(self, inputs: Tensor) -> Tensor:
        """What the net's last layer is given, (n, ...) -> (n, width)."""
        given: list[Tensor] = []
        hook = self.net.answer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            self.net(inputs)
        finally:
            hook.remove()
        return given[0]


def view(pictures: Tensor) -> Tensor:
    """Each picture in part, mirrored or not, turned, and in another light: (n, height, width[, channels]), the same.

    One map for all of it, so that a view is drawn in one pass; what lies outside is as the edge is.
    """
    n, device = len(pictures), pictures.device

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(n, device=device).uniform_(low, high)

    side, turn = draw(LEAST, MOST), draw(-TURN, TURN)
    mirror = 1.0 - 2.0 * torch.randint(0, 2, (n,), device=device)
    cosine, sine = side * turn.cos(), side * turn.sin()
    right, down = ((1 - side) * draw(-1, 1) for _ in range(2))
    maps = torch.stack([cosine * mirror, -sine, right, sine * mirror, cosine, down], 1).view(n, 2, 3)
    grey = pictures.ndim == 3
    x = pictures[:, None] if grey else pictures.permute(0, 3, 1, 2)
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    shape = (n, 1, 1, 1)
    x = x * (1 + draw(-HARD, HARD)).view(shape) + draw(-BRIGHT, BRIGHT).view(shape)
    return x[:, 0] if grey else x.permute(0, 2, 3, 1)
