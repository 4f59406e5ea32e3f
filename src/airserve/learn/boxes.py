"""Boxes: how much two overlap, which of many to keep, and how well those that were found are those wanted.

A box is (top, left, bottom, right), in parts of the picture or in pixels.
"""

from collections.abc import Sequence

import numpy as np

from airserve.model import Array


def overlap(some: Array, others: Array) -> Array:
    """Shared area by joint area (IoU) of boxes (n, 4) with boxes (m, 4), shape (n, m); 0 where both are empty.

    >>> overlap(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 2, 2], [0, 1, 2, 3], [5, 5, 6, 6]])).round(3).tolist()
    [[1.0, 0.333, 0.0]]
    """
    some, others = some[:, None].astype(np.float64), others[None].astype(np.float64)
    sides = np.minimum(some[..., 2:], others[..., 2:]) - np.maximum(some[..., :2], others[..., :2])
    shared = np.maximum(sides, 0).prod(-1)
    joint = (some[..., 2:] - some[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1) - shared
    return np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)


def suppress(boxes: Array, scores: Array, most: float = 0.5) -> Array:
    """Rows to keep, best first: none overlaps a better one by more than `most`. Non-maximum suppression.

    >>> suppress(np.array([[0, 0, 2, 2], [0, 0, 2, 1.9], [3, 3, 4, 4]]), np.array([0.8, 0.9, 0.1])).tolist()
    [1, 2]
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        kept.append(int(order[0]))
        near = overlap(boxes[order[:1]], boxes[order[1:]])[0]
        order = order[1:][near <= most]
    return np.array(kept, np.int64)


Found = tuple[Array, Array, Array]  # of a picture: boxes (n, 4), their classes (n,), their scores (n,)
Wanted = tuple[Array, Array]  # of a picture: boxes (m, 4), their classes (m,)


def average_precision(found: Sequence[Found], wanted: Sequence[Wanted], of_class: int, least: float = 0.5) -> float:
    """The area under precision over recall for a class; NaN where no picture has it.

    As in Everingham et al. 2010, the PASCAL VOC challenge, since its year 2010: each found box, best score first over
    all pictures, is right when the wanted box that it overlaps most, by at least `least`, was not found before;
    precision at a recall is the best at that or more.
    """
    rows = []  # score, right
    for (boxes, classes, scores), (true_boxes, true_classes) in zip(found, wanted, strict=True):
        ours, theirs = boxes[classes == of_class], true_boxes[true_classes == of_class]
        taken: set[int] = set()
        scored = scores[classes == of_class]
        for k in np.argsort(-scored, kind="stable"):
            near = overlap(ours[k : k + 1], theirs)[0]
            best = int(near.argmax()) if len(near) else -1
            right = best >= 0 and near[best] >= least and best not in taken
            if right:
                taken.add(best)
            rows.append((float(scored[k]), right))
    many = sum(int((classes == of_class).sum()) for _, classes in wanted)
    if not many:
        return float("nan")
    rows.sort(key=lambda row: -row[0])
    right = np.cumsum([hit for _, hit in rows])
    precision = right / np.arange(1, len(rows) + 1)
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(right, prepend=0) / many
    return float((best_after * gained).sum())


def mean_average_precision(found: Sequence[Found], wanted: Sequence[Wanted], classes: int, least: float = 0.5) -> float:
    """The mean over the classes that are somewhere; found boxes of others count nothing. mAP@`least`."""
    each = [average_precision(found, wanted, k, least) for k in range(classes)]
    return float(np.nanmean(each))
