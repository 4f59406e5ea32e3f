"""Boxes: overlap by counting pixels, suppression and average precision by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.learn.boxes import average_precision, mean_average_precision, overlap, suppress

SIDE = 12
EMPTY = np.zeros((0, 4), np.int64)


def boxes(rng: np.random.Generator, many: int) -> np.ndarray:
    corners = rng.integers(0, SIDE - 1, (many, 2))
    return np.concatenate([corners, corners + rng.integers(1, SIDE - corners, (many, 2))], axis=1)


def pixels(box: np.ndarray) -> set[tuple[int, int]]:
    return {(y, x) for y in range(box[0], box[2]) for x in range(box[1], box[3])}


def shared(one: np.ndarray, other: np.ndarray) -> float:
    return len(pixels(one) & pixels(other)) / len(pixels(one) | pixels(other))


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_overlap_counts_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    some, others = boxes(rng, 3), boxes(rng, 4)
    wanted = [[shared(one, other) for other in others] for one in some]
    np.testing.assert_allclose(overlap(some, others), wanted, rtol=1e-12)


@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
@settings(max_examples=30)
def test_suppression_keeps_a_box_unless_a_better_kept_one_covers_it(seed: int, most: float) -> None:
    rng = np.random.default_rng(seed)
    some, scores = boxes(rng, 8), rng.permutation(8) / 8
    kept = suppress(some, scores, most).tolist()
    assert kept == sorted(kept, key=lambda k: -scores[k])
    for k in range(8):
        covered = any(shared(some[k], some[j]) > most for j in kept if scores[j] > scores[k])
        assert (k in kept) == (not covered)


def precise(found: list, wanted: list, of_class: int, least: float) -> float:
    """For every threshold of the score: which boxes are right, precision and recall; the area under the best."""
    scores = sorted(
        {float(s) for _, classes, each in found for s, c in zip(each, classes, strict=True) if c == of_class}
    )
    many = sum(int((classes == of_class).sum()) for _, classes in wanted)
    points = []
    for threshold in scores:
        right = said = 0
        for (some, classes, each), (true, true_classes) in zip(found, wanted, strict=True):
            said_here = zip(some, classes, each, strict=True)
            ours = sorted(((s, b) for b, c, s in said_here if c == of_class and s >= threshold), key=lambda x: -x[0])
            theirs = [b for b, c in zip(true, true_classes, strict=True) if c == of_class]
            taken = [False] * len(theirs)
            for _, box in ours:
                said += 1
                near = [shared(box, other) for other in theirs]
                if near and max(near) >= least and not taken[int(np.argmax(near))]:
                    taken[int(np.argmax(near))] = True
                    right += 1
        points.append((right / many, right / said))
    area, reached = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return area


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_average_precision_is_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = [(boxes(rng, 3), rng.integers(0, 2, 3)) for _ in range(3)]
    wanted[0][1][:] = [0, 1, 0]  # both classes are somewhere
    found = []
    for true, classes in wanted:
        near = np.clip(true + rng.integers(-1, 2, true.shape), 0, SIDE)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        some = np.concatenate([near, boxes(rng, 2)])
        found.append((some, np.concatenate([classes, rng.integers(0, 2, 2)]), rng.random(5)))
    each = [precise(found, wanted, k, 0.5) for k in range(2)]
    assert [average_precision(found, wanted, k) for k in range(2)] == pytest.approx(each)
    assert mean_average_precision(found, wanted, 2) == pytest.approx(np.mean(each))
    assert mean_average_precision(found, wanted, 5) == pytest.approx(np.mean(each))  # classes that are nowhere


def test_what_is_all_right_and_what_is_not_there() -> None:
    true = (np.array([[0, 0, 4, 4], [6, 6, 9, 9]]), np.array([0, 1]))
    nothing = (EMPTY, np.zeros(0, np.int64), np.zeros(0))
    assert mean_average_precision([(*true, np.array([0.9, 0.8]))], [true], 2) == 1
    assert mean_average_precision([nothing], [true], 2) == 0
    twice = (np.repeat(true[0][:1], 2, axis=0), np.zeros(2, np.int64), np.array([0.9, 0.8]))
    assert average_precision([twice], [true], 0) == 1  # the second of the same counts, but after all were found
    assert np.isnan(average_precision([twice], [true], 2))
