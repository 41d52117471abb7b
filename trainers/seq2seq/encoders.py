"""Source tokens to states: recurrent, the first layer in both directions, or convolutional."""

# B sentences, S tokens, E an embedding's numbers, C a state's

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.seq2seq.convolution import Convolution
from trainers.seq2seq.hyperparameters import Hyperparameters

__all__ = ["CnnEncoder", "RnnEncoder", "make_encoder"]


class RnnEncoder(nn.Module):
    """One bidirectional layer, then unidirectional ones; what padding holds never reaches a token's state."""

    def __init__(self, wanted: Hyperparameters) -> None:
        super().__init__()
        make = nn.LSTM if wanted.rnn_cell_type == "lstm" else nn.GRU
        size = wanted.rnn_num_hidden
        self.ahead = make(wanted.num_embed_source, size // 2, batch_first=True)
        self.back = make(wanted.num_embed_source, size // 2, batch_first=True)
        self.upper = nn.ModuleList(make(size, size, batch_first=True) for _ in range(wanted.num_layers_encoder - 1))
        first = wanted.rnn_first_residual_layer if wanted.rnn_residual_connections else wanted.num_layers_encoder + 1
        self.first_residual = first - 2  # among the upper layers, from 0

    def forward(self, embedded_BSE: Tensor, there_BS: Tensor) -> Tensor:
        """(B, S, C) states."""
        length_B1 = there_BS.to(torch.int64).sum(dim=1, keepdim=True)
        place_BS = torch.cumsum(torch.ones_like(there_BS, dtype=torch.int64), dim=1) - 1
        # each sentence's own tokens turned round, padding left where it is
        turned_BS = torch.where(there_BS, length_B1 - 1 - place_BS, place_BS)
        ahead, _ = self.ahead(embedded_BSE)
        back, _ = self.back(_in_order(embedded_BSE, turned_BS))
        state_BSC = torch.cat([ahead, _in_order(back, turned_BS)], dim=2)
        for number, layer in enumerate(self.upper):
            made_BSC, _ = layer(state_BSC)
            state_BSC = made_BSC + state_BSC if number >= self.first_residual else made_BSC
        return state_BSC


class CnnEncoder(nn.Module):
    """Convolutions over embeddings of words and places, each added to what it reads (arXiv:1705.03122)."""

    def __init__(self, wanted: Hyperparameters) -> None:
        super().__init__()
        size, width = wanted.cnn_num_hidden, wanted.cnn_kernel_width_encoder
        self.of_place = nn.Embedding(wanted.max_seq_len_source, wanted.num_embed_source)
        self.of_embedding = nn.Linear(wanted.num_embed_source, size)
        self.layers = nn.ModuleList(
            Convolution(size, width, wanted.cnn_activation_type) for _ in range(wanted.num_layers_encoder)
        )
        self.dropout = nn.Dropout(wanted.cnn_hidden_dropout)
        self.before, self.behind = (width - 1) // 2, width // 2

    def forward(self, embedded_BSE: Tensor, there_BS: Tensor) -> Tensor:
        """(B, S, C) states."""
        place_BS = torch.cumsum(torch.ones_like(there_BS, dtype=torch.int64), dim=1) - 1
        places_BSE = self.of_place(place_BS.clamp(max=self.of_place.num_embeddings - 1))
        state_BSC = self.of_embedding(embedded_BSE + places_BSE)
        there_BS1 = there_BS.unsqueeze(2)
        for layer in self.layers:
            # words must not see what stands in padding, for that depends on their neighbours in the batch
            known_BSC = self.dropout(state_BSC) * there_BS1
            state_BSC = layer(known_BSC, self.before, self.behind) + state_BSC
        return state_BSC  # type: ignore[no-any-return]


def make_encoder(wanted: Hyperparameters) -> RnnEncoder | CnnEncoder:
    """By the hyperparameter encoder_type."""
    return RnnEncoder(wanted) if wanted.encoder_type == "rnn" else CnnEncoder(wanted)


def _in_order(state_BSC: Tensor, place_BS: Tensor) -> Tensor:
    return torch.gather(state_BSC, 1, place_BS.unsqueeze(2).expand(-1, -1, state_BSC.size(2)))
