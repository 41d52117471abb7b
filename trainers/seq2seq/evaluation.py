"""How good translations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics.bleu import BLEU

from formats.subwords import merge

__all__ = ["BleuScores", "bleu_scores"]


class BleuScores(NamedTuple):
    tokens: float
    """From 0 to 1, on tokens as they are, as the original reports it (contract, section 4)."""
    text: float
    """From 0 to 100: sacreBLEU's default (13a, cased) of text whose parts of words are put together."""


def bleu_scores(translations: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> BleuScores:
    """Of tokenised sentences; one reference each (Papineni et al. 2002; Post 2018, arXiv:1804.08771)."""
    of_tokens = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.01, force=True)
    found = of_tokens.corpus_score([" ".join(each) for each in translations], [[" ".join(each) for each in references]])
    of_text = BLEU(force=True).corpus_score(list(map(merge, translations)), [list(map(merge, references))])
    return BleuScores(found.score / 100, of_text.score)
