"""Faces in a picture by MTCNN's three graphs, one after the other (mtcnn.py); without torch.

Zhang et al. 2016, arXiv:1604.02878. A graph is a callable from inputs to outputs: `Engine(path).run`, or a request to
a server that runs it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from airserve.learn.boxes import suppress
from airserve.model import Array

Ask = Callable[[Sequence[Array]], Sequence[Array]]

WINDOW, STRIDE = 12, 2  # pixels that the first net looks at, and between two of its windows
SMALLER = 0.709  # each picture of the pyramid, of the one before: half the area
LEAST = (0.6, 0.7, 0.7)  # probability of a face that each net lets through
AMONG = 0.5  # overlap of two windows of one picture of the pyramid of which the better stays
BETWEEN = 0.7  # and of all that a net lets through


@dataclass(frozen=True)
class Faces:
    """`boxes` (n, 4): top, left, bottom, right in pixels; `scores` (n,), best first; `points` (n, 5, 2): row and column
    of the eyes, the nose and the corners of the mouth."""

    boxes: Array
    scores: Array
    points: Array


def find(proposal: Ask, refinement: Ask, output: Ask, picture: Array, smallest: int = 20) -> Faces:
    """The faces of an RGB picture, uint8, (height, width, 3), from `smallest` pixels on."""
    boxes = propose(proposal, picture.astype(np.float64), smallest)
    for side, ask, least in ((24, refinement, LEAST[1]), (48, output, LEAST[2])):
        if not len(boxes):
            return Faces(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))
        boxes = squared(boxes)
        boxes, crops = cropped(picture.astype(np.float64), boxes, side)
        scores, offsets, *points = ask([crops])
        sure = np.flatnonzero(scores > least)
        boxes, scores, offsets = boxes[sure], scores[sure].astype(np.float64), offsets[sure].astype(np.float64)
        points = [at[sure].astype(np.float64) for at in points]
        if side == 24:
            kept = suppress(boxes, scores, BETWEEN)
            boxes = moved(boxes[kept], offsets[kept])
    sizes = boxes[:, 2:] - boxes[:, :2] + 1
    places = np.stack([points[0][:, 5:], points[0][:, :5]], axis=2) * sizes[:, None] + boxes[:, None, :2] - 1
    boxes = moved(boxes, offsets)
    kept = apart(boxes, scores)
    return Faces(boxes[kept], scores[kept], places[kept])


def propose(proposal: Ask, picture: Array, smallest: int) -> Array:
    """Boxes (n, 4) that may be faces, of all sizes, by windows over ever smaller pictures."""
    height, width = picture.shape[:2]
    scale, found, sure = WINDOW / smallest, [np.zeros((0, 8))], [np.zeros(0)]
    while min(height, width) * scale >= WINDOW:
        small = resized(picture, int(height * scale + 1), int(width * scale + 1))
        scores, offsets = proposal([pixels(small)[None]])
        at = np.argwhere(scores[0] >= LEAST[0])
        corners = [np.floor((STRIDE * at + k) / scale) for k in (1, WINDOW)]
        windows, likely = np.concatenate(corners, axis=1), scores[0][tuple(at.T)].astype(np.float64)
        kept = suppress(windows, likely, AMONG)
        found.append(np.concatenate([windows, offsets[0][tuple(at.T)]], axis=1)[kept])
        sure.append(likely[kept])
        scale *= SMALLER
    every, likely = np.concatenate(found), np.concatenate(sure)
    every = every[suppress(every[:, :4], likely, BETWEEN)]
    return every[:, :4] + turned(every[:, 4:]) * np.tile(every[:, 2:4] - every[:, :2], 2)


def moved(boxes: Array, offsets: Array) -> Array:
    """Boxes whose sides are moved by parts of their size."""
    return boxes + turned(offsets) * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def turned(offsets: Array) -> Array:
    """Offsets as the nets give them, of left, top, right and bottom, in the order of a box."""
    return offsets[:, [1, 0, 3, 2]]


def squared(boxes: Array) -> Array:
    """The squares about the middles of boxes, of their longer sides."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    longer = sizes.max(axis=1, keepdims=True)
    first = boxes[:, :2] + sizes / 2 - longer / 2
    return np.concatenate([first, first + longer], axis=1)


def cropped(picture: Array, boxes: Array, side: int) -> tuple[Array, Array]:
    """The boxes of which a part is in the picture, and these parts as squares, uint8, (n, side, side, 3)."""
    inside = boxes.astype(np.int64)
    first, last = inside[:, :2].clip(1) - 1, np.minimum(inside[:, 2:], picture.shape[:2])
    some = (last > first).all(axis=1)
    crops = [
        pixels(resized(picture[a:c, b:d], side, side)) for (a, b), (c, d) in zip(first[some], last[some], strict=True)
    ]
    return boxes[some], np.stack(crops) if crops else np.zeros((0, side, side, 3), np.uint8)


def resized(picture: Array, height: int, width: int) -> Array:
    """Each pixel the mean of those that it stands for, whole ones; (h, w, 3) -> (height, width, 3).

    >>> resized(np.array([[[0.0], [2.0], [6.0], [8.0]]]), 1, 2)[0, :, 0].tolist()
    [1.0, 7.0]
    """
    for axis, many in ((0, height), (1, width)):
        have = picture.shape[axis]
        first = np.arange(many) * have // many
        last = -(-np.arange(1, many + 1) * have // many)
        sums = np.concatenate([np.zeros_like(picture.take([0], axis)), picture.cumsum(axis)], axis)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        picture = (sums.take(last, axis) - sums.take(first, axis)) / (last - first).reshape(shape)
    return picture


def pixels(picture: Array) -> Array:
    return picture.round().clip(0, 255).astype(np.uint8)


def apart(boxes: Array, scores: Array) -> Array:
    """Rows to keep, best first: none shares more than `BETWEEN` of the smaller one with a better one."""
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        kept.append(order[0])
        best, others = boxes[order[0]], boxes[order[1:]]
        sides = np.minimum(best[2:], others[:, 2:]) - np.maximum(best[:2], others[:, :2]) + 1
        areas = [(each[..., 2:] - each[..., :2] + 1).prod(-1) for each in (best, others)]
        order = order[1:][sides.clip(0).prod(1) / np.minimum(*areas) <= BETWEEN]
    return np.array(kept, np.int64)
