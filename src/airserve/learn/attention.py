"""Attention: rows of values, weighted by how well their keys answer a query; scaled dot product, by heads, additive.

Written so that the exported graph is right at other lengths than the example's: no shape becomes a constant.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.model import ModelError


def padding_mask(ids: Tensor) -> Tensor:
    """Which places of texts may be looked at, those that hold a word: ids (n, k) -> bool (n, 1, 1, k)."""
    return (ids != 0)[:, None, None, :]


def causal_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """Every place looks at itself and what came before: positions (q,) and (k,) -> bool (q, k).

    >>> causal_mask(torch.tensor([1, 2]), torch.arange(3)).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    return keys[None, :] <= queries[:, None]


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(query key' / sqrt(d)) value, where the mask allows. Vaswani et al. 2017, arXiv:1706.03762, equation 1.

    (..., q, d), (..., k, d), (..., k, v), bool that spreads to (..., q, k) -> (..., q, v). A query that may look
    nowhere gets zeros.
    """
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is None:
        return scores.softmax(-1) @ value
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~mask, 0.0) @ value


def check_heads(width: int, heads: int, each: int = 1) -> None:
    """Raises `ModelError` unless every head gets as many dimensions, a multiple of `each`."""
    if heads < 1 or width % (heads * each):
        raise ModelError(
            f"width={width} cannot be divided among heads={heads}; give a multiple of {max(heads, 1) * each} as width."
        )


class MultiHead(nn.Module):
    """Attention in `heads` subspaces of `width` / `heads` dimensions at once. Vaswani et al. 2017, section 3.2.2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.answer = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Queries from x (n, q, width), keys and values from memory (n, k, width), x itself by default.

        The mask, bool, spreads to (n, heads, q, k). -> (n, q, width).
        """
        memory = x if memory is None else memory
        query, key, value = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        return self.answer(self.join(scaled_dot_product(query, key, value, mask)))

    def split(self, x: Tensor) -> Tensor:
        """(n, length, width) -> (n, heads, length, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """(n, heads, length, width / heads) -> (n, length, width)."""
        return x.transpose(1, 2).flatten(2)


class Additive(nn.Module):
    """Scores v' tanh(W query + U key) in place of products. Bahdanau et al. 2015, arXiv:1409.0473, appendix A.1.2."""

    def __init__(self, query: int, key: int, hidden: int) -> None:
        super().__init__()
        self.of_query = nn.Linear(query, hidden, bias=False)
        self.of_key = nn.Linear(key, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Query (n, query), keys (n, k, key), bool mask (n, k) -> their weighted mean (n, key), the weights (n, k).

        `seen` is `of_key(keys)` where many queries share it.
        """
        seen = self.of_key(keys) if seen is None else seen
        scores = self.score(torch.tanh(self.of_query(query)[:, None] + seen))[..., 0]
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        return (weights[:, None] @ keys)[:, 0], weights


class Block(nn.Module):
    """One layer of a Transformer, norms first: attention, then a perceptron at each place, with ways around both.

    Vaswani et al. 2017, with the norms where Xiong et al. 2020, arXiv:2002.04745, put them.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MultiHead(width, heads)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, length, width), bool that spreads to (n, heads, length, length) -> (n, length, width)."""
        x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))))
