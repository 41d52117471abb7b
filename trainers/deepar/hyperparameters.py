"""What DeepAR can be told; names, defaults and ranges as its users know them (contract, section 3)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from formats.time_frequency import Frequency
from trainers.hyperparameter_schema import PositiveInteger, WholeNumber, number

__all__ = ["LIKELIHOODS", "Hyperparameters"]

LIKELIHOODS = ("student-T", "gaussian", "beta", "negative-binomial", "deterministic-L1")
_NAMES = {name.lower(): name for name in LIKELIHOODS}


def _likelihood(value: object) -> object:
    return _NAMES.get(str(value).strip().lower(), value)


def _frequency(value: object) -> object:
    return str(Frequency.parse(str(value)))


def _listed(value: object) -> object:
    """`auto`, `ignore`, or the JSON text of a list of numbers as a comma list."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in ("auto", "ignore", ""):
            return text.lower() or "ignore"
        try:
            value = json.loads(text if text.startswith("[") else f"[{text}]")
        except ValueError:
            return text
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list | tuple) and value and all(type(each) is int and each > 0 for each in value):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _count(value: object) -> object:
    text = str(value).strip().lower()
    return "ignore" if value is None or text == "" else text


def _patience(value: object) -> object:
    return None if value is None or (isinstance(value, str) and not value.strip()) else number(value)


def _quantiles(value: object) -> object:
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text if text.startswith("[") else f"[{text}]")
        except ValueError as error:
            raise ValueError("Input should be a JSON array of numbers") from error
    if isinstance(value, list | tuple) and not all(isinstance(each, int | float | str) for each in value):
        raise ValueError("Input should be a JSON array of numbers")
    return tuple(value) if isinstance(value, list) else value


_Quantile = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
_Rate = Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1"), BeforeValidator(number)]
_Share = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1"), BeforeValidator(number)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    context_length: PositiveInteger
    """Steps that the network reads before it forecasts; lags reach further back."""
    epochs: PositiveInteger
    """Passes over the series."""
    prediction_length: PositiveInteger
    """Steps that are forecast."""
    time_freq: Annotated[
        str,
        Field(description="a multiple of M, W, D, H or min, such as 2H"),
        BeforeValidator(_frequency),
    ]
    """How far apart steps are; decides lags and features of the calendar."""
    cardinality: Annotated[
        str,
        Field(pattern=r"^(auto|ignore|\d+(,\d+)*)$", description="auto, ignore, or a JSON array of integers above 0"),
        BeforeValidator(_listed),
    ] = "auto"
    """How many categories each place of `cat` has; `ignore` or empty: `cat` is not used."""
    dropout_rate: _Share = 0.1
    """Share of the units that keep their old state in a step of training (zoneout)."""
    early_stopping_patience: Annotated[
        PositiveInteger | None, Field(description="an integer of at least 1, or empty"), BeforeValidator(_patience)
    ] = None
    """Epochs without a better loss before the stop."""
    embedding_dimension: PositiveInteger = 10
    """Numbers for each place of `cat`."""
    learning_rate: _Rate = 1e-3
    likelihood: Annotated[
        Literal["student-T", "gaussian", "beta", "negative-binomial", "deterministic-L1"], BeforeValidator(_likelihood)
    ] = "student-T"
    """What is forecast of each step; `deterministic-L1` knows no uncertainty."""
    mini_batch_size: PositiveInteger = 128
    """Windows per step, of all processes together."""
    num_cells: PositiveInteger = 40
    """Units of each layer."""
    num_dynamic_feat: Annotated[
        str,
        Field(pattern=r"^(auto|ignore|\d+)$", description="auto, ignore or a whole number"),
        BeforeValidator(_count),
    ] = "auto"
    """How many rows `dynamic_feat` has; `ignore` or empty: they are not used."""
    num_eval_samples: PositiveInteger = 100
    """Paths for the scores on the test channel."""
    num_layers: PositiveInteger = 2
    test_quantiles: Annotated[
        tuple[_Quantile, ...],
        Field(min_length=1, description="a JSON array of numbers between 0 and 1"),
        BeforeValidator(_quantiles),
    ] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """That are scored on the test channel."""
    seed: Annotated[WholeNumber, Field(lt=2**32, description="an integer from 0 to 4294967295")] = 0
    """Not in the original."""

    @property
    def cardinalities(self) -> tuple[int, ...] | None:
        """As given; None: to be seen from the data, or not used."""
        return None if self.cardinality in ("auto", "ignore") else tuple(map(int, self.cardinality.split(",")))
