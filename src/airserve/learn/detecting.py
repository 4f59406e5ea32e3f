"""Detecting: a detector's graph, and of its many boxes those that stay; without torch."""

import numpy as np

from airserve.learn.boxes import Found, suppress
from airserve.model import Array, Engine

AT_ONCE = 50  # pictures that are looked at together
LEAST = 0.05  # score of a box that is looked at
MOST = 100  # boxes of a class, the best, that are looked at
OVERLAP = 0.45  # of two boxes of a class of which only the better one stays


def found(engine: Engine, pictures: Array, least: float = LEAST, overlap: float = OVERLAP) -> list[Found]:
    """Of each picture the boxes (k, 4), their classes and scores, best first within a class.

    The graph takes pictures and gives `boxes` (n, a, 4) and `scores` (n, a, classes); non-maximum suppression, class
    by class, is done here.
    """
    every: list[Found] = []
    for at in range(0, len(pictures), AT_ONCE):
        boxes, scores = engine.run([np.ascontiguousarray(pictures[at : at + AT_ONCE])])
        every += [kept(*each, least, overlap) for each in zip(boxes, scores, strict=True)]
    return every


def kept(boxes: Array, scores: Array, least: float, overlap: float) -> Found:
    """Of one picture's boxes (a, 4), with scores (a, classes), those that stay."""
    parts = []
    for k in range(scores.shape[1]):
        rows = np.flatnonzero(scores[:, k] >= least)
        rows = rows[np.argsort(-scores[rows, k], kind="stable")[:MOST]]
        rows = rows[suppress(boxes[rows], scores[rows, k], overlap)]
        parts.append((boxes[rows], np.full(len(rows), k), scores[rows, k]))
    joined = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return joined[0], joined[1], joined[2]
