"""How good translations are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics.bleu import BLEU

__all__ = ["BleuScores", "bleu_scores", "merged"]

_SUBWORD_NMT = re.compile(r"@@( |$)")


class BleuScores(NamedTuple):
    tokens: float
    """From 0 to 1, on tokens as they are, as the original reports it (contract, section 4)."""
    text: float
    """From 0 to 100: sacreBLEU's default (13a, cased) of text whose parts of words are put together."""


def bleu_scores(translations: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> BleuScores:
    """Of tokenised sentences; one reference each (Papineni et al. 2002; Post 2018, arXiv:1804.08771)."""
    of_tokens = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.01, force=True)
    found = of_tokens.corpus_score([" ".join(each) for each in translations], [[" ".join(each) for each in references]])
    of_text = BLEU(force=True).corpus_score(list(map(merged, translations)), [list(map(merged, references))])
    return BleuScores(found.score / 100, of_text.score)


def merged(tokens: Sequence[str]) -> str:
    """Text of parts of words: SentencePiece's, with `▁` before a word, or subword-nmt's, with `@@` inside."""
    if any("▁" in token for token in tokens):
        return "".join(tokens).replace("▁", " ").strip()
    return _SUBWORD_NMT.sub("", " ".join(tokens))
