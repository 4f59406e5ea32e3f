"""Attention against loops in NumPy, its gradients against finite differences, and its masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.learn.attention import Additive, Block, MultiHead, causal_mask, padding_mask, scaled_dot_product
from airserve.model import ModelError


def by_loops(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Equation 1 of the paper for one head, place by place."""
    answer = np.zeros((len(query), value.shape[1]))
    for i, q in enumerate(query):
        seen = [j for j in range(len(key)) if mask[i, j]]
        weights = [np.exp(sum(a * b for a, b in zip(q, key[j], strict=True)) / np.sqrt(len(q))) for j in seen]
        for j, weight in zip(seen, weights, strict=True):
            answer[i] += weight / sum(weights) * value[j]
    return answer


@given(q=st.integers(1, 4), k=st.integers(1, 5), d=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_scaled_dot_product_is_the_papers(q: int, k: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, key, value = rng.normal(size=(q, d)), rng.normal(size=(k, d)), rng.normal(size=(k, 3))
    mask = rng.random((q, k)) < 0.7  # a query may look nowhere: zeros
    given_ = [torch.tensor(part) for part in (query, key, value, mask)]
    np.testing.assert_allclose(scaled_dot_product(*given_).numpy(), by_loops(query, key, value, mask), atol=1e-12)
    whole = np.ones((q, k), bool)
    np.testing.assert_allclose(scaled_dot_product(*given_[:3]).numpy(), by_loops(query, key, value, whole), atol=1e-12)


def test_many_heads_are_many_attentions() -> None:
    """Two heads by loops over slices of the projected rows; queries and memory of different lengths."""
    torch.manual_seed(0)
    net = MultiHead(6, 2).double()
    x, memory = torch.randn(1, 3, 6).double(), torch.randn(1, 5, 6).double()
    mask = torch.tensor([1, 1, 0, 1, 0], dtype=torch.bool)[None, None, None]
    query, key, value = net.query(x)[0], net.key(memory)[0], net.value(memory)[0]
    query, key, value = (part.detach().numpy() for part in (query, key, value))
    seen = np.tile(mask.numpy()[0, 0], (3, 1))
    heads = [by_loops(query[:, at], key[:, at], value[:, at], seen) for at in (slice(0, 3), slice(3, 6))]
    wanted = np.concatenate(heads, 1) @ net.answer.weight.detach().numpy().T + net.answer.bias.detach().numpy()
    np.testing.assert_allclose(net(x, memory, mask)[0].detach().numpy(), wanted, atol=1e-12)


def test_additive_attention_is_bahdanaus() -> None:
    torch.manual_seed(0)
    net = Additive(3, 4, 5).double()
    query, keys = torch.randn(2, 3).double(), torch.randn(2, 6, 4).double()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0]], dtype=torch.bool)
    found, weights = net(query, keys, mask)
    of_query, of_key, v = (part.weight.detach().numpy() for part in (net.of_query, net.of_key, net.score))
    for row in range(2):
        seen = [j for j in range(6) if mask[row, j]]
        e = [v[0] @ np.tanh(of_query @ query[row].numpy() + of_key @ keys[row, j].numpy()) for j in seen]
        share = np.exp(e) / np.exp(e).sum()
        np.testing.assert_allclose(weights[row, seen].detach(), share, atol=1e-12)
        np.testing.assert_allclose(found[row].detach(), share @ keys[row, seen].numpy(), atol=1e-12)
    assert weights[1, [2, 4, 5]].eq(0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_finite_differences(masked: bool) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = causal_mask(torch.arange(3), torch.arange(3)) if masked else None
    assert torch.autograd.gradcheck(lambda q, k, v: scaled_dot_product(q, k, v, mask), parts)
    net = Additive(4, 4, 3).double()
    assert torch.autograd.gradcheck(lambda q, k: net(q, k)[0], (parts[0][:, 0], parts[1]))


def test_a_place_sees_neither_what_comes_later_nor_padding() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, dropout=0.0).eval()
    x = torch.randn(1, 5, 8)
    changed = x.clone()
    changed[:, 3:] = torch.randn(1, 2, 8)
    causal = causal_mask(torch.arange(5), torch.arange(5))
    torch.testing.assert_close(block(x, causal)[:, :3], block(changed, causal)[:, :3])
    assert not torch.allclose(block(x)[:, :3], block(changed)[:, :3])
    padded = padding_mask(torch.tensor([[4, 7, 2, 0, 0]]))
    torch.testing.assert_close(block(x, padded)[:, :3], block(changed, padded)[:, :3])
    torch.testing.assert_close(block(x, padded)[:, :3], block(x[:, :3])[:, :3])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ModelError, match="width=8 cannot be divided among heads=3; give a multiple of 3 as width"):
        MultiHead(8, 3)
    with pytest.raises(ModelError, match="width=8 cannot be divided among heads=0"):
        MultiHead(8, 0)
