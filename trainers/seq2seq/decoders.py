"""Target tokens one after another: recurrent with attention and its result fed back, or convolutional.

Both keep all that a step needs of earlier ones in one row of numbers, so that a beam search may reorder rows without
knowing what they hold.
"""

# B sentences, Q hypotheses of each, T target steps, S source tokens, E an embedding's numbers, H a state's,
# C an encoder state's, W numbers of a row

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.seq2seq.attention import make_attention
from trainers.seq2seq.convolution import Convolution
from trainers.seq2seq.hyperparameters import Hyperparameters

__all__ = ["CnnDecoder", "RnnDecoder", "make_decoder"]


class LstmCell(nn.Module):
    """Hochreiter and Schmidhuber 1997; gates in the order input, forget, cell, output."""

    num_states = 2

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.of_state = nn.Linear(size, 4 * size)

    def forward(self, gates: Tensor, state: Tensor) -> Tensor:
        """The next state (..., 2H) of what a layer reads, (..., 4H), and the last state."""
        hidden, cell = state[..., : self.size], state[..., self.size :]
        gates = gates + self.of_state(hidden)
        enter, forget, new, leave = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        return torch.cat([torch.sigmoid(leave) * torch.tanh(cell), cell], dim=-1)


class GruCell(nn.Module):
    """Cho et al. 2014 (arXiv:1406.1078) as cuDNN has it; gates in the order reset, update, new."""

    num_states = 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.of_state = nn.Linear(size, 3 * size)

    def forward(self, gates: Tensor, state: Tensor) -> Tensor:
        """The next state (..., H) of what a layer reads, (..., 3H), and the last state."""
        reset_new, update_new, new = gates.chunk(3, dim=-1)
        reset_old, update_old, old = self.of_state(state).chunk(3, dim=-1)
        update = torch.sigmoid(update_new + update_old)
        candidate = torch.tanh(new + torch.sigmoid(reset_new + reset_old) * old)
        return candidate + update * (state - candidate)


class Layer(nn.Module):
    """A cell and how it reads."""

    def __init__(self, input_size: int, size: int, kind: str) -> None:
        super().__init__()
        self.cell: LstmCell | GruCell = LstmCell(size) if kind == "lstm" else GruCell(size)
        self.of_input = nn.Linear(input_size, (4 if kind == "lstm" else 3) * size, bias=False)

    def forward(self, read: Tensor, state: Tensor) -> Tensor:
        following: Tensor = self.cell(self.of_input(read), state)
        return following


class RnnDecoder(nn.Module):
    """Layers with attention in between and its result fed back (Luong et al. 2015, "input feeding").

    The first layers read the word and the last step's result, attention looks at the source, and the new result is made
    of the upper layers' state and what was seen.
    """

    def __init__(self, wanted: Hyperparameters) -> None:
        super().__init__()
        size, layers, kind = wanted.rnn_num_hidden, wanted.num_layers_decoder, wanted.rnn_cell_type
        self.size = size
        self.attention = make_attention(
            wanted.rnn_attention_type,
            size,
            wanted.encoder_num_hidden,
            wanted.attention_num_hidden,
            wanted.rnn_attention_num_heads,
        )
        context = self.attention.context_size
        num_lower = 1 if wanted.rnn_attention_in_upper_layers else layers
        # the first layer's view of the word is apart: in training it is computed for all steps at once
        self.of_word = nn.Linear(wanted.num_embed_target, (4 if kind == "lstm" else 3) * size, bias=False)
        self.lower = nn.ModuleList(Layer(size, size, kind) for _ in range(num_lower))
        self.upper = nn.ModuleList(Layer(size + context, size, kind) for _ in range(layers - num_lower))
        first = wanted.rnn_first_residual_layer if wanted.rnn_residual_connections else layers + 1
        self.first_residual = first - 1
        self.of_result = nn.Linear(size + context, size)
        self.dropout = nn.Dropout(wanted.rnn_decoder_hidden_dropout)
        self.state_size = size * (2 if kind == "lstm" else 1)
        self.start_from = wanted.rnn_decoder_state_init
        self.row_size = size + layers * self.state_size
        self.of_start = nn.Linear(wanted.encoder_num_hidden, layers * self.state_size)

    def start(self, encoded_BSC: Tensor, there_BS: Tensor) -> Tensor:
        """(B, W): a result of zeros, and the layers' first states."""
        zero_BH = torch.zeros_like(encoded_BSC[:, 0, :1]).expand(-1, self.size)
        if self.start_from == "zero":
            return torch.zeros_like(encoded_BSC[:, 0, :1]).expand(-1, self.row_size)
        length_B1 = there_BS.to(torch.int64).sum(dim=1, keepdim=True).clamp(min=1)
        if self.start_from == "avg":
            begin_BC = (encoded_BSC * there_BS.unsqueeze(2)).sum(dim=1) / length_B1
        else:
            last_B1C = (length_B1 - 1).unsqueeze(2).expand(-1, -1, encoded_BSC.size(2))
            begin_BC = torch.gather(encoded_BSC, 1, last_B1C).squeeze(1)
        return torch.cat([zero_BH, torch.tanh(self.of_start(begin_BC))], dim=1)

    def forward(self, embedded_BTE: Tensor, encoded_BSC: Tensor, there_BS: Tensor) -> Tensor:
        """(B, T, H) results of words that are known, as in training."""
        key, value = self.attention.keys(encoded_BSC), self.attention.values(encoded_BSC)
        row = self.start(encoded_BSC, there_BS).unsqueeze(1)
        seen = torch.zeros_like(encoded_BSC[:, :, 0]).unsqueeze(1)
        results: list[Tensor] = []
        for gates in self.of_word(embedded_BTE).split(1, dim=1):
            row, weight = self._advance(gates, row, seen, key, value, there_BS)
            seen = seen + weight
            results.append(row[:, :, : self.size])
        return torch.cat(results, dim=1)

    @torch.jit.export
    def step(
        self,
        embedded_BQE: Tensor,
        row_BQW: Tensor,
        seen_BQS: Tensor,
        key_BSA: Tensor,
        value_BSC: Tensor,
        there_BS: Tensor,
        place_B: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One word further: results (B, Q, H), rows, and weights (B, Q, S)."""
        row, weight = self._advance(self.of_word(embedded_BQE), row_BQW, seen_BQS, key_BSA, value_BSC, there_BS)
        return row[:, :, : self.size], row, weight

    def _advance(
        self, gates: Tensor, row: Tensor, seen: Tensor, key: Tensor, value: Tensor, there: Tensor
    ) -> tuple[Tensor, Tensor]:
        read = row[:, :, : self.size]
        states: list[Tensor] = []
        at = self.size
        for number, layer in enumerate(self.lower):
            state = row[:, :, at : at + self.state_size]
            state = layer.cell(gates + layer.of_input(read), state) if number == 0 else layer(read, state)  # type: ignore[operator]
            made = state[:, :, : self.size]
            read = made + read if number > 0 and number >= self.first_residual else made
            states.append(state)
            at += self.state_size
        context, weight = self.attention(read, key, value, there, seen)
        for number, layer in enumerate(self.upper):
            state = layer(torch.cat([read, context], dim=2), row[:, :, at : at + self.state_size])
            made = state[:, :, : self.size]
            read = made + read if number + len(self.lower) >= self.first_residual else made
            states.append(state)
            at += self.state_size
        result = self.dropout(torch.tanh(self.of_result(torch.cat([read, context], dim=2))))
        return torch.cat([result] + states, dim=2), weight  # noqa: RUF005  TorchScript has no unpacking


class CnnDecoder(nn.Module):
    """Convolutions that see no later word, each followed by dot attention (Gehring et al. 2017, arXiv:1705.03122)."""

    def __init__(self, wanted: Hyperparameters) -> None:
        super().__init__()
        size, width, layers = wanted.cnn_num_hidden, wanted.cnn_kernel_width_decoder, wanted.num_layers_decoder
        self.size, self.width = size, width
        self.kept = max(1, width - 1)  # a width of 1 needs none, but graphs want no empty rows
        self.attention = make_attention("dot", size, wanted.encoder_num_hidden, size, 1)
        context = self.attention.context_size
        self.of_place = nn.Embedding(wanted.max_seq_len_target + 1, wanted.num_embed_target)
        self.of_embedding = nn.Linear(wanted.num_embed_target, size)
        self.layers = nn.ModuleList(Convolution(size, width, wanted.cnn_activation_type) for _ in range(layers))
        self.of_context = nn.ModuleList(nn.Linear(context, size) for _ in range(layers))
        self.dropout = nn.Dropout(wanted.cnn_hidden_dropout)
        self.row_size = layers * self.kept * size

    def start(self, encoded_BSC: Tensor, there_BS: Tensor) -> Tensor:  # noqa: ARG002
        """(B, W): nothing before the first word."""
        return torch.zeros_like(encoded_BSC[:, 0, :1]).expand(-1, self.row_size)

    def forward(self, embedded_BTE: Tensor, encoded_BSC: Tensor, there_BS: Tensor) -> Tensor:
        """(B, T, H) results of words that are known, as in training."""
        key, value = self.attention.keys(encoded_BSC), self.attention.values(encoded_BSC)
        seen = torch.zeros_like(encoded_BSC[:, :, 0]).unsqueeze(1)
        place_T = torch.arange(embedded_BTE.size(1), device=embedded_BTE.device)
        state_BTH = self.of_embedding(embedded_BTE + self._places(place_T))
        for layer, of_context in zip(self.layers, self.of_context):  # noqa: B905  TorchScript's zip has no `strict`
            made_BTH = layer(self.dropout(state_BTH), self.width - 1, 0)
            context_BTC, _ = self.attention(made_BTH, key, value, there_BS, seen)
            state_BTH = made_BTH + of_context(context_BTC) + state_BTH
        return state_BTH  # type: ignore[no-any-return]

    @torch.jit.export
    def step(
        self,
        embedded_BQE: Tensor,
        row_BQW: Tensor,
        seen_BQS: Tensor,
        key_BSA: Tensor,
        value_BSC: Tensor,
        there_BS: Tensor,
        place_B: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As RnnDecoder's; `place_B` counts the words before, and weights are means of the layers'."""
        state_BQH = self.of_embedding(embedded_BQE + self._places(place_B).unsqueeze(1))
        num_rows, num_beams = row_BQW.size(0), row_BQW.size(1)
        earlier = row_BQW.reshape(num_rows, num_beams, len(self.layers), self.kept, self.size)
        kept: list[Tensor] = []
        weight_BQS = torch.zeros_like(seen_BQS)
        for number, (layer, of_context) in enumerate(zip(self.layers, self.of_context)):  # noqa: B905
            window = torch.cat([earlier[:, :, number], state_BQH.unsqueeze(2)], dim=2)
            kept.append(window[:, :, 1:].flatten(2))
            made_BQH = layer.of_one(window[:, :, self.kept + 1 - self.width :])  # type: ignore[operator]
            context_BQC, looked_BQS = self.attention(made_BQH, key_BSA, value_BSC, there_BS, seen_BQS)
            weight_BQS = weight_BQS + looked_BQS
            state_BQH = made_BQH + of_context(context_BQC) + state_BQH
        return state_BQH, torch.cat(kept, dim=2), weight_BQS / len(self.layers)

    def _places(self, place: Tensor) -> Tensor:
        places: Tensor = self.of_place(place.clamp(max=self.of_place.num_embeddings - 1))
        return places


def make_decoder(wanted: Hyperparameters) -> RnnDecoder | CnnDecoder:
    """By the hyperparameter decoder_type."""
    return RnnDecoder(wanted) if wanted.decoder_type == "rnn" else CnnDecoder(wanted)
