"""A small single-shot detector: every place of two maps says what is near it and where. Liu et al. 2016, SSD,
arXiv:1512.02325; no box is suppressed in the graph, `detecting.found` does that beside it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.exporting import Graph
from airserve.learn.nets import Form
from airserve.model import Array, ModelError

NEAR = 0.5  # a default box that overlaps a wanted one so much is to find it
NEGATIVES = 3  # default boxes with nothing in them that count, the worst, for each that has something
UNITS = (0.1, 0.2)  # in which places and sizes are learnt
STRIDES = (4, 8)  # pixels between the places of the two maps


@dataclass(frozen=True)
class Config:
    width: int = 24  # channels at half the picture's size; doubled with each half
    small: int = 14  # pixels; the default box of the finer map, and of the coarser one the next two
    middle: int = 20
    large: int = 28
    epochs: int = 14
    batch: int = 32
    rate: float = 5e-3  # peak learning rate
    decay: float = 1e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A detector for pictures whose sides are multiples of 8. Raises `ModelError` on other inputs."""
    channels = form.channels("detector")
    if form.shape[0] % STRIDES[1] or form.shape[1] % STRIDES[1]:
        raise ModelError(f"detector takes pictures whose sides are multiples of {STRIDES[1]}, not {form}.")
    return Detector(channels, form.shape[:2], form.outputs, config)


class Detector(nn.Module):
    """Default boxes d (a, 4), and for each of them the logits of nothing and of all classes, and the way to its box."""

    answers = "boxes"

    def __init__(self, channels: int, sides: tuple[int, ...], classes: int, config: Config) -> None:
        super().__init__()
        w, sizes = config.width, ((config.small,), (config.middle, config.large))
        self.each = [5 + classes] * len(STRIDES)
        self.stem = nn.Sequential(convolution(channels, w, 2), convolution(w, w))
        self.fine = nn.Sequential(convolution(w, 2 * w, 2), convolution(2 * w, 2 * w))
        self.coarse = nn.Sequential(convolution(2 * w, 4 * w, 2), convolution(4 * w, 4 * w))
        self.heads = nn.ModuleList(
            nn.Conv2d(inside, len(size) * (5 + classes), 3, padding=1)
            for inside, size in zip((2 * w, 4 * w), sizes, strict=True)
        )
        boxes = [defaults(sides, stride, size) for stride, size in zip(STRIDES, sizes, strict=True)]
        self.register_buffer("defaults", torch.cat(boxes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width) or (n, height, width, channels) -> (n, defaults, 4 + 1 + classes)."""
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        fine = self.fine(self.stem(x))
        maps = [head(y) for head, y in zip(self.heads, (fine, self.coarse(fine)), strict=True)]
        found = [y.permute(0, 2, 3, 1).reshape(x.shape[0], -1, each) for y, each in zip(maps, self.each, strict=True)]
        return torch.cat(found, 1)

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Where and what, a mean over the default boxes that are to find one (equations 1 and 2).

        Labels (n, most, 5): class, or -1 for none, then top, left, bottom, right in pixels.
        """
        answers = self(inputs).float()
        chosen, near = match(self.defaults, labels[..., 1:], labels[..., 0] >= 0)
        rows = torch.arange(len(labels), device=labels.device)[:, None]
        wanted = labels[rows, chosen]  # (n, defaults, 5)
        classes = torch.where(near, wanted[..., 0].long() + 1, 0)
        said = F.cross_entropy(answers[..., 4:].movedim(-1, 1), classes, reduction="none")
        with torch.no_grad():  # the negatives that are most wrong
            order = said.masked_fill(near, -1).argsort(1, descending=True).argsort(1)
            counts = near | (order < NEGATIVES * near.sum(1, keepdim=True).clamp(min=1))
        there = F.smooth_l1_loss(answers[..., :4][near], encode(self.defaults, wanted[..., 1:])[near], reduction="sum")
        return (said[counts].sum() + there) / near.sum().clamp(min=1)

    def graphs(self, sense: Callable[[nn.Module], nn.Module], rows: Array) -> dict[str, Graph]:
        """One graph: pictures to boxes in pixels and what is in each."""
        batches = [(torch.tensor(rows[:1]),), (torch.tensor(rows[:3]),)]
        free = {0: "n"}
        return {
            "": Graph(Decoding(sense(self), self.defaults), {"input": free}, {"boxes": free, "scores": free}, batches)
        }


class Decoding(nn.Module):
    """Boxes (n, defaults, 4), pixels, and the probabilities of the classes in each, (n, defaults, classes)."""

    def __init__(self, net: nn.Module, boxes: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("defaults", boxes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.net(x)
        return decode(self.defaults, answers[..., :4]), answers[..., 4:].softmax(-1)[..., 1:]


def convolution(inside: int, outside: int, stride: int = 1) -> nn.Module:
    """3x3, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


def defaults(sides: tuple[int, ...], stride: int, sizes: tuple[int, ...]) -> Tensor:
    """Squares of these sizes about the middle of every place of a map, (places x sizes, 4), in pixels."""
    y, x = (torch.arange(stride / 2, side, stride) for side in sides)
    middles = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 1, 2)
    half = torch.tensor(sizes)[None, :, None] / 2
    return torch.cat([middles - half, middles + half], 2).reshape(-1, 4)


def match(boxes: Tensor, wanted: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """For each default box the wanted one that it overlaps most, (n, a), and whether it is to find it (section 2.2).

    That is so for an overlap of `NEAR`, and for the default box that is nearest to a wanted one. Default boxes (a, 4),
    wanted (n, most, 4), bool (n, most).
    """
    corners = torch.maximum(wanted[:, :, None, :2], boxes[:, :2]), torch.minimum(wanted[:, :, None, 2:], boxes[:, 2:])
    shared = (corners[1] - corners[0]).clamp(min=0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (wanted, boxes)]
    overlap = shared / (areas[0][..., None] + areas[1] - shared)  # (n, most, a)
    overlap = overlap.masked_fill(~there[..., None], -1.0)
    best, chosen = overlap.max(1)
    nearest = overlap.argmax(2)  # (n, most)
    rows = torch.arange(len(wanted), device=wanted.device)
    near = best >= NEAR
    for k in range(wanted.shape[1]):
        known = rows[there[:, k]]
        chosen[known, nearest[known, k]] = k
        near[known, nearest[known, k]] = True
    return chosen, near


def encode(boxes: Tensor, wanted: Tensor) -> Tensor:
    """The ways from default boxes (a, 4) to wanted ones (n, a, 4): middles in sizes, sizes as logarithms."""
    size, wanted_size = boxes[:, 2:] - boxes[:, :2], (wanted[..., 2:] - wanted[..., :2]).clamp(min=1e-3)
    moved = (wanted[..., 2:] + wanted[..., :2] - boxes[:, 2:] - boxes[:, :2]) / 2 / size / UNITS[0]
    return torch.cat([moved, (wanted_size / size).log() / UNITS[1]], -1)


def decode(boxes: Tensor, ways: Tensor) -> Tensor:
    """Where the ways (n, a, 4) lead from default boxes (a, 4)."""
    size = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, 2:] + boxes[:, :2]) / 2 + ways[..., :2] * UNITS[0] * size
    half = (ways[..., 2:] * UNITS[1]).exp() * size / 2
    return torch.cat([middle - half, middle + half], -1)
