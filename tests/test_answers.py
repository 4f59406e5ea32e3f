"""Answers: how right they are, by closed forms and by sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve import answers

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(VALUES, st.integers(0, 2**32 - 1))
def test_r2_is_one_for_the_truth_and_nought_for_its_mean(values: list[float], seed: int) -> None:
    wanted = np.array(values)
    if wanted.std() < 1e-3:
        return
    assert answers.judge(wanted, wanted, labelled=False) == ("r2", 1.0)
    mean = np.full(len(wanted), wanted.mean())
    assert answers.judge(mean, wanted[:, None], labelled=True)[1] == pytest.approx(0, abs=1e-6)
    found = wanted + np.random.default_rng(seed).normal(size=len(wanted))
    value = answers.judge(found, wanted, labelled=True)[1]
    assert value == pytest.approx(max(1 - ((found - wanted) ** 2).sum() / wanted.var() / len(wanted), -1))


def test_weights_stand_for_answers_that_come_more_often() -> None:
    found, wanted = np.array([1.0, 2.5, 4.0, 2.0]), np.array([1.0, 2.0, 3.0, 5.0])
    often = [0, 0, 0, 1, 2, 2, 3]
    weighted = answers.judge(found, wanted, labelled=True, weights=np.array([3, 1, 2, 1]))
    assert weighted[1] == pytest.approx(answers.judge(found[often], wanted[often], labelled=True)[1])


def test_what_is_no_number_is_as_wrong_as_can_be() -> None:
    wanted = np.array([1.0, 2.0])
    for bad in (np.nan, np.inf, 1e9):
        assert answers.judge(np.array([1.0, bad]), wanted, labelled=True) == ("r2", answers.WORST)
    same = np.array([3.0, 3.0])  # nothing to explain
    assert answers.judge(same, same, labelled=True) == ("r2", 1.0)
    assert answers.judge(wanted, same, labelled=True) == ("r2", answers.WORST)


def test_a_row_is_read_as_its_one_number_or_as_a_class() -> None:
    assert answers.read(np.array([[[0.2]], [[7]]], np.float32)).tolist() == pytest.approx([0.2, 7])
    found = answers.read(np.array([[[0, 3], [1, 2]], [[5, 3], [1, 2]]]))
    assert (found.tolist(), found.dtype.kind) == ([1, 0], "i")
    assert answers.judge(found, np.array([1, 1]), labelled=False) == ("agreement", 0.5)


def test_an_integer_is_a_class_unless_the_labels_are_no_whole_numbers() -> None:
    for said in (np.array([2, 0, 1, 1]), np.array([[2], [0], [1], [1]], np.uint8)):
        found = answers.read(said)
        assert answers.judge(found, np.array([2, 0, 1, 2]), labelled=True) == ("accuracy", 0.75)
        assert answers.judge(found, np.array([2.0, 0.0, 1.0, 2.0]), labelled=True) == ("accuracy", 0.75)
        assert answers.judge(found, found, labelled=False) == ("agreement", 1.0)
        assert answers.judge(found, np.array([2.5, 0, 1, 1]), labelled=True)[0] == "r2"
        assert answers.judge(found, np.array([np.nan, 0, 1, 1]), labelled=True) == ("r2", answers.WORST)
