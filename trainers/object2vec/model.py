"""Two encoders, a comparator and an MLP (contract, section 1).

hcnn is InferSent's hierarchical convolution (Conneau et al. 2017, arXiv:1705.02364, section 3.2.4): layers of
convolutions, each of them max-pooled over time, the results side by side. bilstm is max-pooled over time too.
"""

# B pairs, T tokens, D a token's numbers, E an encoding's, O outputs

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers.object2vec.hyperparameters import Hyperparameters

__all__ = ["Encoder", "Network", "PairScores", "SideEncoder", "Sizes"]

_TABLE_RANGE = 0.07
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "linear": nn.Identity}


class SideSizes(NamedTuple):
    network: str
    filter_width: int
    layers: int
    vocab_size: int
    token_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """All that decides the network's shape."""

    sides: tuple[SideSizes, SideSizes]
    enc_dim: int
    tied_table: bool
    tied_encoder: bool
    comparators: tuple[str, ...]
    mlp_layers: int
    mlp_dim: int
    mlp_activation: str
    dropout: float
    num_outputs: int
    softmax: bool

    @classmethod
    def of(cls, wanted: Hyperparameters) -> Sizes:
        """Raises ValueError while a `vocab_size` is still `auto`."""
        return cls(
            sides=(_side_sizes(wanted, 0), _side_sizes(wanted, 1)),
            enc_dim=wanted.enc_dim,
            tied_table=wanted.is_tied,
            tied_encoder=wanted.tied_encoder_weight,
            comparators=wanted.comparator_list,
            mlp_layers=wanted.mlp_layers,
            mlp_dim=wanted.mlp_dim,
            mlp_activation=wanted.mlp_activation,
            dropout=wanted.dropout,
            num_outputs=wanted.num_outputs,
            softmax=wanted.output_layer == "softmax",
        )

    @property
    def encoding_dim(self) -> int:
        side = self.sides[0]
        return side.token_dim if side.network == "pooled_embedding" else self.enc_dim


def _side_sizes(wanted: Hyperparameters, number: int) -> SideSizes:
    side = wanted.sides[number]
    if side.vocab_size == "auto":
        raise ValueError(f"enc{number}_vocab_size is not known yet")
    return SideSizes(
        side.network, side.cnn_filter_width, side.layers, side.vocab_size, side.token_embedding_dim
    )  # fmt: skip


# ---- encoders ----------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Vectors of tokens, and which of them are there, to one encoding. Padding never changes an answer."""

    def forward(self, vector_BTD: Tensor, known_BT: Tensor) -> Tensor:
        """Args: vector_BTD: 0 where `known_BT` is 0. known_BT: bool. Returns: (B, E)."""
        raise NotImplementedError


class PooledEmbedding(Encoder):
    """The mean of the tokens' vectors; of no tokens, 0."""

    def forward(self, vector_BTD: Tensor, known_BT: Tensor) -> Tensor:
        count_B1 = known_BT.to(vector_BTD.dtype).sum(dim=1, keepdim=True).clamp(min=1.0)
        return vector_BTD.sum(dim=1) / count_B1


class HierarchicalCnn(Encoder):
    """Each layer convolves what the one before it made; an encoding holds every layer's maxima over time."""

    def __init__(self, token_dim: int, enc_dim: int, layers: int, width: int) -> None:
        super().__init__()
        sizes = [enc_dim // layers + (layer < enc_dim % layers) for layer in range(layers)]
        inputs = [token_dim, *sizes[:-1]]
        self.before, self.after = (width - 1) // 2, width // 2
        self.layers = nn.ModuleList(nn.Conv1d(i, o, width) for i, o in zip(inputs, sizes, strict=True))

    def forward(self, vector_BTD: Tensor, known_BT: Tensor) -> Tensor:
        known_B1T = _at_least_one(known_BT).unsqueeze(1).to(vector_BTD.dtype)
        state_BDT = vector_BTD.transpose(1, 2)
        pooled: list[Tensor] = []
        for layer in self.layers:
            padded = nn.functional.pad(state_BDT, (self.before, self.after))
            # what is past the end is 0 again: the next layer sees there what it would see past a shorter batch's end;
            # as nothing is below 0 after ReLU, maxima are those of what is there
            state_BDT = torch.relu(layer(padded)) * known_B1T
            pooled.append(state_BDT.max(dim=2).values)
        return torch.cat(pooled, dim=1)


class BiLstm(Encoder):
    """Layers of two LSTMs, the second of which reads from the end; maxima over time of the last layer."""

    def __init__(self, token_dim: int, enc_dim: int, layers: int) -> None:
        super().__init__()
        self.forward_dim, self.backward_dim = enc_dim - enc_dim // 2, enc_dim // 2
        inputs = [token_dim, *[enc_dim] * (layers - 1)]
        self.ahead = nn.ModuleList(nn.LSTM(size, self.forward_dim, batch_first=True) for size in inputs)
        self.back = nn.ModuleList(nn.LSTM(size, self.backward_dim, batch_first=True) for size in inputs)

    def forward(self, vector_BTD: Tensor, known_BT: Tensor) -> Tensor:
        there_BT = _at_least_one(known_BT)
        length_B1 = there_BT.to(torch.int64).sum(dim=1, keepdim=True)
        place_BT = torch.cumsum(torch.ones_like(known_BT, dtype=torch.int64), dim=1) - 1
        # each row's own tokens turned round, padding left where it is
        turned_BT = torch.where(there_BT, length_B1 - 1 - place_BT, place_BT)
        state_BTE = vector_BTD
        start = torch.zeros_like(vector_BTD[:, 0, :1]).unsqueeze(0)
        ahead_0, back_0 = start.expand(-1, -1, self.forward_dim), start.expand(-1, -1, self.backward_dim)
        for ahead, back in zip(self.ahead, self.back):  # noqa: B905  TorchScript's zip has no `strict`
            ahead_BTE, _ = ahead(state_BTE, (ahead_0.contiguous(), ahead_0.contiguous()))
            back_BTE, _ = back(_in_order(state_BTE, turned_BT), (back_0.contiguous(), back_0.contiguous()))
            state_BTE = torch.cat([ahead_BTE, _in_order(back_BTE, turned_BT)], dim=2)
        return state_BTE.masked_fill(~there_BT.unsqueeze(2), -2.0).max(dim=1).values  # above -1 is every LSTM's output


def _at_least_one(known_BT: Tensor) -> Tensor:
    """Everything up to the last token that is known, or one token of padding when none is."""
    place_BT = torch.cumsum(torch.ones_like(known_BT, dtype=torch.int64), dim=1)
    length_B1 = (place_BT * known_BT.to(torch.int64)).max(dim=1, keepdim=True).values.clamp(min=1)
    return place_BT <= length_B1


def _in_order(state_BTE: Tensor, place_BT: Tensor) -> Tensor:
    return torch.gather(state_BTE, 1, place_BT.unsqueeze(2).expand(-1, -1, state_BTE.size(2)))


def _encoder(side: SideSizes, enc_dim: int) -> Encoder:
    if side.network == "hcnn":
        return HierarchicalCnn(side.token_dim, enc_dim, side.layers, side.filter_width)
    if side.network == "bilstm":
        return BiLstm(side.token_dim, enc_dim, side.layers)
    return PooledEmbedding()


# ---- the whole ---------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Tables of tokens, encoders, and what compares their encodings.

    `body` holds everything but the tables, so that a step may give it the vectors of its own rows alone.
    """

    def __init__(self, sizes: Sizes, output_bias: float = 0.0) -> None:
        super().__init__()
        self.sizes = sizes
        first, second = sizes.sides
        self.tables = nn.ParameterList([_table(first)] if sizes.tied_table else [_table(first), _table(second)])
        self.body = Body(sizes, output_bias)

    def table_of(self, side: int) -> nn.Parameter:
        table: nn.Parameter = self.tables[side if len(self.tables) > 1 else 0]
        return table

    def forward(self, in0_BT: Tensor, in1_BT: Tensor) -> Tensor:
        """Logits or values of pairs, (B, O), from token ids, -1 for padding."""
        vector0, known0 = look_up(self.table_of(0), in0_BT)
        vector1, known1 = look_up(self.table_of(1), in1_BT)
        scores_BO: Tensor = self.body(vector0, known0, vector1, known1)
        return scores_BO


def _table(side: SideSizes) -> nn.Parameter:
    return nn.Parameter(torch.empty(side.vocab_size, side.token_dim).uniform_(-_TABLE_RANGE, _TABLE_RANGE))


class Body(nn.Module):
    def __init__(self, sizes: Sizes, output_bias: float = 0.0) -> None:
        super().__init__()
        encoders = [_encoder(side, sizes.enc_dim) for side in sizes.sides[: 1 if sizes.tied_encoder else 2]]
        self.encoder0 = encoders[0]
        self.encoder1 = encoders[-1]
        self.dropout = nn.Dropout(sizes.dropout)
        self.comparator = Comparator(sizes.comparators)
        dim = sizes.encoding_dim * self.comparator.factor
        layers: list[nn.Module] = []
        for _ in range(sizes.mlp_layers):
            layers += [nn.Linear(dim, sizes.mlp_dim), _ACTIVATIONS[sizes.mlp_activation](), nn.Dropout(sizes.dropout)]
            dim = sizes.mlp_dim
        output = nn.Linear(dim, sizes.num_outputs)
        nn.init.constant_(output.bias, output_bias)
        self.mlp = nn.Sequential(*layers, output)

    def forward(self, vector0: Tensor, known0: Tensor, vector1: Tensor, known1: Tensor) -> Tensor:
        """Logits or values, (B, O)."""
        return self.score(self.encoder0(vector0, known0), self.encoder1(vector1, known1))

    def score(self, encoding0_BE: Tensor, encoding1_BE: Tensor) -> Tensor:
        compared = self.comparator(self.dropout(encoding0_BE), self.dropout(encoding1_BE))
        scores_BO: Tensor = self.mlp(compared)
        return scores_BO


class Comparator(nn.Module):
    """The chosen operators' results side by side, in the order given."""

    def __init__(self, operators: tuple[str, ...]) -> None:
        super().__init__()
        self.operators = list(operators)
        self.factor = sum(2 if operator == "concat" else 1 for operator in operators)

    def forward(self, a_BE: Tensor, b_BE: Tensor) -> Tensor:
        """(B, E * factor)."""
        parts: list[Tensor] = []
        for operator in self.operators:
            if operator == "hadamard":
                parts.append(a_BE * b_BE)
            elif operator == "concat":
                parts.append(a_BE)
                parts.append(b_BE)
            else:
                parts.append((a_BE - b_BE).abs())
        return torch.cat(parts, dim=1)


def look_up(table_VD: Tensor, id_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens' vectors, (B, T, D), 0 for what is no token of the vocabulary; and which are, (B, T) bool."""
    known_BT = (id_BT >= 0) & (id_BT < table_VD.size(0))
    vector_BTD = nn.functional.embedding(id_BT.clamp(min=0, max=table_VD.size(0) - 1), table_VD)
    return vector_BTD * known_BT.unsqueeze(2).to(vector_BTD.dtype), known_BT


# ---- what is served ----------------------------------------------------------------------------------------------


class SideEncoder(nn.Module):
    """One encoder with its table: ids, (B, T) int64, -1 for padding, to encodings, (B, E)."""

    def __init__(self, network: Network, side: int) -> None:
        super().__init__()
        # copies: frozen TorchScript refuses weights that two modules hold
        self.table = nn.Parameter(network.table_of(side).detach().clone(), requires_grad=False)
        self.encoder = copy.deepcopy(network.body.encoder1 if side else network.body.encoder0)

    def forward(self, id_BT: Tensor) -> Tensor:
        vector_BTD, known_BT = look_up(self.table, id_BT)
        encoding_BE: Tensor = self.encoder(vector_BTD, known_BT)
        return encoding_BE


class PairScores(nn.Module):
    """Probabilities of classes, or one value, (B, O), of pairs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.side0, self.side1 = SideEncoder(network, 0), SideEncoder(network, 1)
        self.comparator, self.mlp = network.body.comparator, network.body.mlp
        self.softmax = network.sizes.softmax

    def forward(self, in0_BT: Tensor, in1_BT: Tensor) -> Tensor:
        scores_BO: Tensor = self.mlp(self.comparator(self.side0(in0_BT), self.side1(in1_BT)))
        return torch.softmax(scores_BO, dim=1) if self.softmax else scores_BO
