"""What BlazingText can be told; names, defaults and ranges as its users know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from trainers.hyperparameter_schema import Flag, PositiveInteger, WholeNumber, number

__all__ = ["Hyperparameters"]

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0"), BeforeValidator(number)]
_Open = Annotated[
    float, Field(gt=0, lt=1, allow_inf_nan=False, description="a number between 0 and 1"), BeforeValidator(number)
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    mode: Literal["batch_skipgram", "skipgram", "cbow", "supervised"]
    """Word vectors by one of three ways, or text classification."""
    batch_size: Annotated[int, Field(ge=1, le=32), BeforeValidator(number)] = 11
    """Words that share their negative samples; batch_skipgram. 2 * window_size + 1 is advised."""
    buckets: PositiveInteger = 2_000_000
    """Hash buckets: of character n-grams with subwords, of word n-grams in supervised mode."""
    early_stopping: Flag = False
    """Stop when validation accuracy no longer improves; supervised, needs the validation channel."""
    epochs: PositiveInteger = 5
    """Passes over the text; with early stopping, the most there may be."""
    evaluation: Flag = True
    """Measure word vectors on WordSim-353 when they are trained."""
    learning_rate: _Rate = 0.05
    """Falls linearly to 0 over all epochs."""
    max_char: PositiveInteger = 6
    """Longest character n-gram; with subwords."""
    min_char: PositiveInteger = 3
    """Shortest character n-gram; with subwords."""
    min_count: WholeNumber = 5
    """Rarer words are left out."""
    min_epochs: PositiveInteger = 5
    """Epochs that run in any case; with early_stopping."""
    negative_samples: PositiveInteger = 5
    """Words drawn by chance that must not fit; word vectors."""
    patience: PositiveInteger = 4
    """Epochs without improvement before the stop; with early_stopping."""
    sampling_threshold: _Open = 0.0001
    """Words of a larger share of the text are down-sampled; word vectors."""
    subwords: Flag = False
    """Learn character n-grams too, which also make vectors for unknown words; skipgram, cbow."""
    vector_dim: Annotated[int, Field(ge=1, le=2048), BeforeValidator(number)] = 100
    """Numbers in a vector."""
    window_size: PositiveInteger = 5
    """Most words between a word and its neighbour; word vectors."""
    word_ngrams: PositiveInteger = 2
    """Sequences of up to so many words are features too; supervised."""
    seed: WholeNumber = 0
    """Not in the original. On one core, the same seed and text give the same model; several cores race."""

    def __post_init__(self) -> None:
        if self.mode == "batch_skipgram" and self.subwords:
            raise ValueError("hyperparameter subwords: True is not possible with mode=batch_skipgram")
        if self.subwords and self.max_char < self.min_char:
            raise ValueError(
                f"hyperparameter max_char: {self.max_char} must be at least min_char ({self.min_char}) with subwords"
            )
        if self.early_stopping and self.mode != "supervised":
            raise ValueError(
                f"hyperparameter early_stopping: True is only possible in mode supervised, not {self.mode}"
            )
