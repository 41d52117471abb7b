"""Series in, forecasts out (DeepAR contract, section 6): all series and samples of a batch are one run of the graph."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from formats import jsonlines
from formats.content_types import media_type_of
from formats.envelope import Prediction
from formats.errors import BackendFailed, CorruptBundle, InvalidBody
from formats.forecasting import Configuration, Horizon, answers, graph_inputs
from formats.time_frequency import Frequency
from formats.timeseries import Series, parse_series
from handlers.graph import Array, Arrays, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["CONFIGURATION_VARIABLE", "DeepAR"]

CONFIGURATION_VARIABLE = "DEEPAR_INFERENCE_CONFIG"
"""JSON text of the configuration where a request has none; of the worker's environment, or a request's parameters."""
_LINES = "application/jsonlines"
_MOST_PATH_STEPS = 50_000_000
"""Numbers of one request's paths; beyond it memory, not patience, would end first."""


class DeepAR(Handler):
    """Serves algorithm `deepar`.

    The graph takes `target` and `observed`, (N, T) float32, `features`, (N, C + P, F), `noise`, (N, S, P, W), evenly
    from (0, 1), and `category`, (N, K) int64, where the model has categories; it gives `samples`, (N, S, P).
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(bundle, runtime)
        self._horizon = _horizon(bundle)
        try:
            self._default = _configured(environment.get(CONFIGURATION_VARIABLE, ""), Configuration())
        except InvalidBody as error:
            raise ValueError(str(error)) from error

    def decode(self, prediction: Prediction) -> Arrays:
        wanted = self._configuration(prediction)
        series = _series(prediction)
        size = len(series) * wanted.num_samples * self._horizon.prediction_length
        if size > _MOST_PATH_STEPS:
            raise InvalidBody(
                f"{len(series)} instances x {wanted.num_samples} samples x {self._horizon.prediction_length} steps are "
                f"{size} numbers; at most {_MOST_PATH_STEPS} in one request"
            )
        return graph_inputs(series, self._horizon, wanted)

    def collate(self, inputs: Sequence[Arrays]) -> Arrays:
        if len(inputs) == 1:
            return inputs[0]
        longest = max(each["target"].shape[1] for each in inputs)
        joined = {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0] if name not in _PADDED}
        return {name: _left_padded([each[name] for each in inputs], longest) for name in _PADDED} | joined

    def likeness(self, inputs: Arrays) -> Hashable:
        num_samples: int = inputs["noise"].shape[1]
        return num_samples

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        samples_NSP = outputs["samples"]
        if not np.isfinite(samples_NSP).all():
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        wanted = self._configuration(prediction)
        found = answers(samples_NSP, wanted)
        if wanted.forward_fields:
            for answer, row in zip(found, _rows(prediction), strict=True):
                answer |= {name: row[name] for name in wanted.forward_fields if name in row}
        if self._answers_in_lines(prediction):
            lines = (orjson.dumps(each, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n" for each in found)
            return Answer(b"".join(lines), _LINES)
        body = orjson.dumps({"predictions": found}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Answer(body, "application/json")

    def _answers_in_lines(self, prediction: Prediction) -> bool:
        """As wished; as it was asked where every type will do, which curl and most clients say of themselves."""
        if prediction.accept.strip() in ("", "*/*"):
            return _in_lines(prediction)
        return self.accept_of(prediction) == _LINES

    def _configuration(self, prediction: Prediction) -> Configuration:
        """Of the body, else of the request's parameters, else of the environment."""
        default = self._default
        if CONFIGURATION_VARIABLE in prediction.parameters:
            default = _configured(prediction.parameters[CONFIGURATION_VARIABLE], default)
        if _in_lines(prediction):
            return default
        return Configuration.of(_request(prediction.body).get("configuration"), default)


_PADDED = ("target", "observed")


def _horizon(bundle: Bundle) -> Horizon:
    settings: dict[str, Any] = dict(bundle.manifest.settings)
    try:
        return Horizon(
            frequency=Frequency.parse(str(settings["time_freq"])),
            history=int(settings["history"]),
            context_length=int(settings["context_length"]),
            prediction_length=int(settings["prediction_length"]),
            cardinalities=tuple(settings["cardinalities"]),
            num_dynamic=int(settings["num_dynamic"]),
            num_noise=int(settings["num_noise"]),
            likelihood=str(settings["likelihood"]),
        )
    except (KeyError, ValueError) as error:
        raise CorruptBundle(f"{bundle.manifest.name}: settings: {error}") from error


def _configured(text: str, default: Configuration) -> Configuration:
    if not text.strip():
        return default
    return Configuration.of(
        jsonlines.parse_json(text.encode(), CONFIGURATION_VARIABLE), default, CONFIGURATION_VARIABLE
    )


def _in_lines(prediction: Prediction) -> bool:
    return media_type_of(prediction.content_type)[0] == _LINES


def _request(body: bytes) -> dict[str, Any]:
    found = jsonlines.parse_json(body)
    if not isinstance(found, dict) or not isinstance(found.get("instances"), list) or not found["instances"]:
        raise InvalidBody(
            f"expected a JSON object of 'instances', an array of at least one series; found {found!r:.80}"
        )
    return found


def _rows(prediction: Prediction) -> list[Any]:
    if _in_lines(prediction):
        return jsonlines.decode(prediction.body)
    rows: list[Any] = _request(prediction.body)["instances"]
    return rows


def _series(prediction: Prediction) -> list[Series]:
    series = []
    for number, row in enumerate(_rows(prediction)):
        if not isinstance(row, dict):
            raise InvalidBody(f"instance {number} is {row!r:.80}, expected an object of 'start' and 'target'")
        try:
            series.append(parse_series(row))
        except InvalidBody as error:
            raise InvalidBody(f"instance {number}: {error}") from error
    return series


def _left_padded(arrays: list[Array], width: int) -> Array:
    """Joined along the first axis; what is not known lies before what is."""
    joined = np.zeros((sum(map(len, arrays)), width), np.float32)
    at = 0
    for each in arrays:
        joined[at : at + len(each), width - each.shape[1] :] = each
        at += len(each)
    return joined
