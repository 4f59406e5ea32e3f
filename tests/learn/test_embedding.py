"""Vectors of ids: small, padded, and drawn to zero as often as they are used."""

import numpy as np
import torch

from airserve.learn.embedding import SMALL, Vectors


def test_ridge_is_a_penalty_in_the_loss() -> None:
    """The gradient is that of the mean squared error plus ridge / 2 times the mean of the vectors' squares."""
    torch.manual_seed(0)
    vectors = Vectors(5, 3, ridge=0.7)
    ids, wanted = torch.tensor([1, 1, 4, 2]), torch.randn(4, 3)
    ((vectors(ids) - wanted) ** 2).mean().backward()
    weight = vectors.weight.detach().clone().requires_grad_()
    used = weight[ids]
    (((used - wanted) ** 2).mean() + 0.7 / 2 * (used**2).sum() / 4).backward()
    np.testing.assert_allclose(vectors.weight.grad, weight.grad, atol=1e-7)
    assert vectors.weight.grad[[0, 3]].eq(0).all()  # ids that are not used are left alone


def test_padding_is_zero_and_vectors_are_small() -> None:
    torch.manual_seed(0)
    vectors = Vectors(2000, 8, padding=0)
    assert vectors.weight[0].eq(0).all()
    assert abs(vectors.weight[1:].std().item() / SMALL - 1) < 0.05
