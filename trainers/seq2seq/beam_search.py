"""Beam search of a whole batch as one graph: sentences, lengths and beams of any mixture, each as if it were alone.

Hypotheses are compared by their mean log probability, more precisely by its sum over the length penalty
((beta + length) / (beta + 1)) ** alpha, at each step, as Sockeye 1 does (contract, section 6.4).
"""

# B sentences, K hypotheses of each, S source tokens, T target steps, V the target's vocabulary, W a row of the decoder

from __future__ import annotations

import torch
from torch import Tensor, nn

from formats.vocabulary import BOS, EOS, PAD
from trainers.seq2seq.attention import FAR
from trainers.seq2seq.model import Network

__all__ = ["BeamSearch"]


class BeamSearch(nn.Module):
    """Scriptable. Never produces `<pad>` or `<s>`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        bias = network.to_word.bias.detach().clone()
        bias[[PAD, BOS]] = FAR
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.pad, self.bos, self.eos, self.worthless = PAD, BOS, EOS, FAR * 100  # TorchScript sees no globals
        self.num_words = network.to_word.out_features

    def forward(
        self,
        source_BS: Tensor,
        max_length_B: Tensor,
        beam_size_B: Tensor,
        length_penalty_B2: Tensor,
        attention_wanted_B: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best target of each sentence, int64 ids (B, T) with 0 behind the end; its score (B,); attention.

        Args:
            source_BS: int64 ids, 0 for padding at the end.
            max_length_B: int64, at which a hypothesis ends whether it has said `</s>` or not.
            beam_size_B: int64, at least 1, at most V.
            length_penalty_B2: float32, alpha and beta.
            attention_wanted_B: bool; attention is (B, T, S) where any sentence wants it, else (B, T, 0).
        """
        encoded, there = self.network.encode(source_BS)
        key, value = self.network.decoder.attention.keys(encoded), self.network.decoder.attention.values(encoded)
        num_slots = int(beam_size_B.max())
        num_kept = int(attention_wanted_B.to(torch.int64).max()) * source_BS.size(1)
        longest = int(max_length_B.max())
        slot_K = torch.arange(num_slots, device=source_BS.device)
        # slots that a sentence's own beam does not have are finished, and worth nothing
        unused = slot_K.unsqueeze(0) >= beam_size_B.unsqueeze(1)
        finished = unused
        total = torch.where(slot_K == 0, 0.0, self.worthless).expand_as(unused).to(encoded.dtype)
        score = total
        length = torch.zeros_like(unused, dtype=torch.int64)
        token = torch.full_like(length, self.bos)
        row = self.network.decoder.start(encoded, there).unsqueeze(1).expand(-1, num_slots, -1)
        seen = torch.zeros_like(there, dtype=encoded.dtype).unsqueeze(1).expand(-1, num_slots, -1)
        said = token.unsqueeze(2)
        looked = seen[:, :, :num_kept].unsqueeze(2)
        num_steps, going = 0, longest > 0
        while going:
            embedded = self.network.of_target(token)
            result, row, weight = self.network.decoder.step(embedded, row, seen, key, value, there, length.amax(dim=1))
            seen = seen + weight
            logit = nn.functional.linear(result, self.network.to_word.weight, self.bias)
            best, word = self._continuations(logit, finished, num_slots)
            sums = total.unsqueeze(2) + best
            length = length + (~finished).to(torch.int64)
            score, chosen = (sums / _penalty(length, length_penalty_B2)).flatten(1).topk(num_slots, dim=1)
            parent = torch.div(chosen, best.size(2), rounding_mode="floor")
            token = word.flatten(1).gather(1, chosen)
            total = torch.where(unused, self.worthless, sums.flatten(1).gather(1, chosen))
            length = length.gather(1, parent)
            num_steps += 1
            finished = finished.gather(1, parent) | (token == self.eos) | (length >= max_length_B.unsqueeze(1)) | unused
            row = _reordered(row, parent)
            seen = _reordered(seen, parent)
            said = torch.cat([_reordered(said, parent), token.unsqueeze(2)], dim=2)
            kept = torch.cat([looked, weight[:, :, :num_kept].unsqueeze(2)], dim=2)
            looked = kept.gather(1, parent.unsqueeze(2).unsqueeze(3).expand(-1, -1, kept.size(2), kept.size(3)))
            going = bool((num_steps < longest) and not bool(finished.all()))
        target_BT = said[:, 0, 1:]
        return target_BT.masked_fill(target_BT == self.eos, self.pad), score[:, 0], looked[:, 0, 1:]

    def _continuations(self, logit_BKV: Tensor, finished_BK: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
        """Log probabilities and ids of each hypothesis's best next tokens, as many as there are slots.

        More of one hypothesis cannot be among the best of all. Behind one that is finished comes padding, for nothing.
        """
        best, word = logit_BKV.topk(min(num_slots, self.num_words), dim=2)
        best = best - torch.logsumexp(logit_BKV, dim=2, keepdim=True)
        is_over = finished_BK.unsqueeze(2)
        ended = torch.where(torch.arange(best.size(2), device=best.device) == 0, 0.0, self.worthless)
        return torch.where(is_over, ended, best), torch.where(is_over, torch.full_like(word, self.pad), word)


def _penalty(length_BK: Tensor, length_penalty_B2: Tensor) -> Tensor:
    """(B, K, 1) of Wu et al. 2016 (arXiv:1609.08144, equation 14), with the numbers that Sockeye lets one choose."""
    alpha, beta = length_penalty_B2[:, :1].unsqueeze(2), length_penalty_B2[:, 1:].unsqueeze(2)
    return torch.pow((beta + length_BK.unsqueeze(2).clamp(min=1)) / (beta + 1.0), alpha)


def _reordered(values_BKW: Tensor, parent_BK: Tensor) -> Tensor:
    """Each hypothesis's values are its parent's."""
    return values_BKW.gather(1, parent_BK.unsqueeze(2).expand(-1, -1, values_BKW.size(2)))
