"""How a decoder looks at the source: one class for each way of scoring source states against a query.

mlp is Bahdanau et al. 2014 (arXiv:1409.0473), dot and bilinear are Luong et al. 2015 (arXiv:1508.04025, "dot" and
"general"), multihead is Vaswani et al. 2017 (arXiv:1706.03762), and coverage is mlp that knows how much each source
token has been looked at (Tu et al. 2016, arXiv:1601.04811, the count of attention).
"""

# B sentences, Q queries of each (beams, or one), S source tokens, H a query's numbers, C a source state's, A in between

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["FAR", "Attention", "make_attention"]

FAR = -1e9
"""In place of minus infinity, whose differences are not numbers."""


class Attention(nn.Module):
    """Subclasses say what keys are made of source states, and score them; here dot, on equal or projected sizes."""

    def __init__(self, query_size: int, source_size: int, size: int) -> None:
        super().__init__()
        self.of_query = nn.Identity() if query_size == size else nn.Linear(query_size, size, bias=False)
        self.of_source = nn.Identity() if source_size == size else nn.Linear(source_size, size, bias=False)
        self.context_size = source_size
        self.far = FAR  # TorchScript sees attributes, and no globals

    def keys(self, encoded_BSC: Tensor) -> Tensor:
        """(B, S, A), made once for each sentence."""
        keys_BSA: Tensor = self.of_source(encoded_BSC)
        return keys_BSA

    def values(self, encoded_BSC: Tensor) -> Tensor:
        """(B, S, C), what contexts are sums of."""
        return encoded_BSC

    def forward(
        self, query_BQH: Tensor, key_BSA: Tensor, value_BSC: Tensor, there_BS: Tensor, seen_BQS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Contexts, (B, Q, C), and weights, (B, Q, S), which sum to 1 over tokens that are `there`.

        Args:
            query_BQH: decoder states.
            key_BSA: of `keys`.
            value_BSC: of `values`.
            there_BS: bool, False for padding.
            seen_BQS: sums of the weights of earlier steps.
        """
        score_BQS = self.scores(query_BQH, key_BSA, seen_BQS)
        weight_BQS = torch.softmax(score_BQS.masked_fill(~there_BS.unsqueeze(1), self.far), dim=2)
        return torch.bmm(weight_BQS, value_BSC), weight_BQS

    def scores(self, query_BQH: Tensor, key_BSA: Tensor, seen_BQS: Tensor) -> Tensor:  # noqa: ARG002
        return torch.bmm(self.of_query(query_BQH), key_BSA.transpose(1, 2))


class Bilinear(Attention):
    def __init__(self, query_size: int, source_size: int) -> None:
        super().__init__(query_size, source_size, query_size)
        self.of_source = nn.Linear(source_size, query_size, bias=False)


class Mlp(Attention):
    def __init__(self, query_size: int, source_size: int, size: int) -> None:
        super().__init__(query_size, source_size, size)
        self.of_query = nn.Linear(query_size, size, bias=False)
        self.of_source = nn.Linear(source_size, size)
        self.to_score = nn.Linear(size, 1, bias=False)

    def scores(self, query_BQH: Tensor, key_BSA: Tensor, seen_BQS: Tensor) -> Tensor:  # noqa: ARG002
        mixed_BQSA = torch.tanh(self.of_query(query_BQH).unsqueeze(2) + key_BSA.unsqueeze(1))
        score_BQS: Tensor = self.to_score(mixed_BQSA).squeeze(3)
        return score_BQS


class Coverage(Mlp):
    def __init__(self, query_size: int, source_size: int, size: int) -> None:
        super().__init__(query_size, source_size, size)
        self.of_seen = nn.Linear(1, size, bias=False)

    def scores(self, query_BQH: Tensor, key_BSA: Tensor, seen_BQS: Tensor) -> Tensor:
        mixed_BQSA = self.of_query(query_BQH).unsqueeze(2) + key_BSA.unsqueeze(1) + self.of_seen(seen_BQS.unsqueeze(3))
        score_BQS: Tensor = self.to_score(torch.tanh(mixed_BQSA)).squeeze(3)
        return score_BQS


class MultiHead(Attention):
    """Weights that are told are means over heads."""

    def __init__(self, query_size: int, source_size: int, size: int, num_heads: int) -> None:
        super().__init__(query_size, source_size, size)
        self.of_query = nn.Linear(query_size, size, bias=False)
        self.of_source = nn.Linear(source_size, size, bias=False)
        self.to_value = nn.Linear(source_size, size, bias=False)
        self.num_heads, self.head_size = num_heads, size // num_heads
        self.scale = self.head_size**-0.5
        self.context_size = size

    def values(self, encoded_BSC: Tensor) -> Tensor:
        value_BSA: Tensor = self.to_value(encoded_BSC)
        return value_BSA

    def forward(
        self,
        query_BQH: Tensor,
        key_BSA: Tensor,
        value_BSC: Tensor,
        there_BS: Tensor,
        seen_BQS: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        query = self._in_heads(self.of_query(query_BQH))
        score = torch.matmul(query, self._in_heads(key_BSA).transpose(2, 3)) * self.scale
        weight = torch.softmax(score.masked_fill(~there_BS.unsqueeze(1).unsqueeze(1), self.far), dim=3)
        context = torch.matmul(weight, self._in_heads(value_BSC)).transpose(1, 2).flatten(2)
        return context, weight.mean(dim=1)

    def _in_heads(self, states: Tensor) -> Tensor:
        """(B, heads, Q or S, A / heads) of (B, Q or S, A)."""
        return states.reshape(states.size(0), states.size(1), self.num_heads, self.head_size).transpose(1, 2)


class Fixed(Attention):
    """No attention: always the last source state."""

    def forward(
        self,
        query_BQH: Tensor,
        key_BSA: Tensor,  # noqa: ARG002
        value_BSC: Tensor,
        there_BS: Tensor,
        seen_BQS: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        there_BS = there_BS.to(value_BSC.dtype)
        # a token is the last where none of those behind it is there
        later_BS = torch.cumsum(there_BS.flip([1]), dim=1).flip([1])
        last_BS = there_BS * (later_BS == 1).to(value_BSC.dtype)
        weight_BQS = last_BS.unsqueeze(1).expand(-1, query_BQH.size(1), -1)
        return torch.bmm(weight_BQS, value_BSC), weight_BQS


def make_attention(kind: str, query_size: int, source_size: int, size: int, num_heads: int) -> Attention:
    """By the hyperparameter rnn_attention_type."""
    if kind == "mlp":
        return Mlp(query_size, source_size, size)
    if kind == "coverage":
        return Coverage(query_size, source_size, size)
    if kind == "bilinear":
        return Bilinear(query_size, source_size)
    if kind == "multihead":
        return MultiHead(query_size, source_size, size, num_heads)
    return Fixed(query_size, source_size, source_size) if kind == "fixed" else Attention(query_size, source_size, size)
