"""Encoder, attention and decoder put together: the probability of each target token, given the source and those before.

After Sockeye 1 (Hieber et al. 2017, arXiv:1712.05690), as the contract's section 1 describes it.
"""

# B sentences, S source tokens, T target steps, N target tokens of all sentences, E an embedding's numbers,
# H a result's, V the target's vocabulary

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from formats.vocabulary import BOS, PAD
from trainers.seq2seq.decoders import make_decoder
from trainers.seq2seq.encoders import make_encoder
from trainers.seq2seq.hyperparameters import Hyperparameters

__all__ = ["Network"]


class Network(nn.Module):
    def __init__(self, wanted: Hyperparameters, num_source: int, num_target: int) -> None:
        """Weights as `weight_init_type` has them; vocabulary sizes hold the four special tokens."""
        super().__init__()
        self.pad, self.bos = PAD, BOS  # TorchScript sees attributes, and no globals
        self.of_source = nn.Embedding(num_source, wanted.num_embed_source)
        self.of_target = nn.Embedding(num_target, wanted.num_embed_target)
        self.source_dropout = nn.Dropout(wanted.embed_dropout_source)
        self.target_dropout = nn.Dropout(wanted.embed_dropout_target)
        self.encoder = make_encoder(wanted)
        self.decoder = make_decoder(wanted)
        self.to_word = nn.Linear(wanted.decoder_num_hidden, num_target)
        if wanted.weight_tying:
            self.to_word.weight = self.of_target.weight
        for name, parameter in self.named_parameters():
            _initialize(name, parameter, wanted)

    def encode(self, source_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Source states (B, S, C), and whether there is a token, (B, S)."""
        there_BS = source_BS != self.pad
        return self.encoder(self.source_dropout(self.of_source(source_BS)), there_BS), there_BS

    def forward(self, source_BS: Tensor, label_BT: Tensor) -> Tensor:
        """Logits (N, V) of each target token behind those before it; N counts tokens of all rows, one after another.

        Args:
            source_BS: int64 ids, 0 for padding at the end.
            label_BT: int64, the target with `</s>`, 0 for padding at the end.
        """
        encoded_BSC, there_BS = self.encode(source_BS)
        before_BT = torch.cat([torch.full_like(label_BT[:, :1], self.bos), label_BT[:, :-1]], dim=1)
        result_BTH = self.decoder(self.target_dropout(self.of_target(before_BT)), encoded_BSC, there_BS)
        # the largest multiplication of all, spared for padding
        logit_NV: Tensor = self.to_word(result_BTH[label_BT != self.pad])
        return logit_NV


def _initialize(name: str, parameter: nn.Parameter, wanted: Hyperparameters) -> None:
    """Biases 0, recurrent weights orthogonal for each gate (as in Sockeye), others as the hyperparameters say."""
    if parameter.dim() < 2:
        nn.init.zeros_(parameter)
    elif "weight_hh" in name or name.endswith("of_state.weight"):
        for gate in torch.split(parameter.data, parameter.size(1)):
            nn.init.orthogonal_(gate)
    elif wanted.weight_init_type == "uniform":
        nn.init.uniform_(parameter, -wanted.weight_init_scale, wanted.weight_init_scale)
    else:
        outputs, inputs = parameter.shape
        factor = {"in": inputs, "out": outputs, "avg": (inputs + outputs) / 2}[wanted.xavier_factor_type]
        bound = math.sqrt(wanted.weight_init_scale / factor)
        nn.init.uniform_(parameter, -bound, bound)
