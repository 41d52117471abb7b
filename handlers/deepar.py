"""Series in, forecasts out (DeepAR contract, section 6): series and samples of a batch share runs of the graph."""

# N series, S samples, P steps, W noise, B blocks of D samples each

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import orjson

from formats import jsonlines
from formats.content_types import media_type_of
from formats.envelope import Prediction
from formats.errors import BackendFailed, CorruptBundle, InvalidBody, InvalidRequest
from formats.forecasting import Configuration, Horizon, PathNoise, answers, graph_inputs
from formats.time_frequency import Frequency
from formats.timeseries import Series, parse_series
from handlers.graph import Array, Arrays, RunnableGraph, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["CONFIGURATION_VARIABLE", "DeepAR"]

CONFIGURATION_VARIABLE = "DEEPAR_INFERENCE_CONFIG"
"""JSON text of the configuration where a request has none; of the worker's environment, or a custom attribute."""
_SETTING = "inference_configuration"
_LINES = "application/jsonlines"
_MOST_NUMBERS = 50_000_000
"""Of one request's paths, or of its features: 200 MB. Beyond it memory, not patience, would end first."""
_MOST_SENT = 10_000_000
"""Of paths that are answered themselves: as JSON each is ten bytes and more."""
_PATHS_PER_RUN = 5000
"""Of fewer, a run's fixed costs count; of more, nothing is gained but memory taken."""
_NOISE_PER_RUN = 1 << 24
_READING = 2
"""Paths that take as long as reading the context of their series once."""


class DeepAR(Handler):
    """Serves algorithm `deepar`.

    The graph takes `target` and `observed`, (N, T) float32, `features`, (N, C + P, F), `noise`, (N, S, P, W), evenly
    from (0, 1), and `category`, (N, K) int64, where the model has categories; it gives `samples`, (N, S, P).

    Each series of a request travels with its `wish`; noise is drawn, and paths are summed up, run by run.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(bundle, runtime)
        settings: dict[str, Any] = dict(bundle.manifest.settings)
        self._horizon = _horizon(settings, bundle.manifest.name)
        try:
            default = _configured(str(settings.get(_SETTING, "")), Configuration(), f"'{_SETTING}'")
        except InvalidBody as error:
            raise CorruptBundle(f"{bundle.manifest.name}: settings: {error}") from error
        try:
            self._default = _configured(environment.get(CONFIGURATION_VARIABLE, ""), default)
        except InvalidBody as error:
            raise ValueError(str(error)) from error
        self._plans = {
            name: replace(plan, runnable=_InRuns(plan.runnable, self._horizon)) for name, plan in self._plans.items()
        }

    def decode(self, prediction: Prediction) -> Arrays:
        rows, configuration = _request(prediction)
        wanted = Configuration.of(configuration, self._default_of(prediction))
        self._check_size(len(rows), wanted)
        series = _series(rows, self._horizon)
        # without noise, which is drawn for each run
        inputs = graph_inputs(series, replace(self._horizon, num_noise=0), wanted)
        wish = _Wish(wanted, rows if wanted.forward_fields else [])
        del inputs["noise"]
        return inputs | {"wish": _objects([wish] * len(rows))}

    def collate(self, inputs: Sequence[Arrays]) -> Arrays:
        if len(inputs) == 1:
            return inputs[0]
        longest = max(each["target"].shape[1] for each in inputs)
        joined = {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0] if name not in _PADDED}
        return {name: _left_padded([each[name] for each in inputs], longest) for name in _PADDED} | joined

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        found: list[dict[str, Any]] = outputs["answer"].tolist()
        if any(each is None for each in found):
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        wish: _Wish = outputs["wish"][0]
        for answer, row in zip(found, wish.rows, strict=False):
            answer |= {name: row[name] for name in wish.wanted.forward_fields if name in row}
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

    def _default_of(self, prediction: Prediction) -> Configuration:
        """What holds where the body says nothing: of the custom attributes, else of worker and bundle."""
        attributes = prediction.parameters.get("custom_attributes", "")
        if CONFIGURATION_VARIABLE not in attributes:
            return self._default
        return _configured(_attribute(attributes), self._default)

    def _check_size(self, num_series: int, wanted: Configuration) -> None:
        """Raises `InvalidBody`: forecasts would not fit into memory, or their answer not into a message."""
        length = self._horizon.prediction_length
        told = f"{num_series} instances x {wanted.num_samples} samples x {length} steps are"
        size = num_series * wanted.num_samples * length
        if size > _MOST_NUMBERS:
            raise InvalidBody(f"{told} {size} numbers; at most {_MOST_NUMBERS} in one request")
        if size > _MOST_SENT and "samples" in wanted.output_types:
            raise InvalidBody(f"{told} {size} numbers; at most {_MOST_SENT} in one request of output_types 'samples'")
        width = self._horizon.context_length + length
        size = num_series * width * (len(self._horizon.frequency.feature_names) + self._horizon.num_dynamic)
        if size > _MOST_NUMBERS:
            raise InvalidBody(
                f"{num_series} instances of {width} steps have {size} features; at most {_MOST_NUMBERS} in one request"
            )


_PADDED = ("target", "observed")


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """One request's, shared by its series."""

    wanted: Configuration
    rows: list[Any]
    """The series as they were sent, where fields are to be forwarded."""


# ---- runs --------------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Samples of one series that are computed side by side."""

    row: int
    size: int
    """Up to the D of its run; the rest is padding."""
    last: bool
    """Of its series."""


class _InRuns:
    """Runs the graph for so many paths at a time; raw tensors go to it as they are.

    Requests may want unlike numbers of samples: all are cut into blocks of one size, which costs less than runs of
    their own. A request's noise depends on its seed and its own shape alone.
    """

    def __init__(self, own: RunnableGraph, horizon: Horizon) -> None:
        self._own = own
        self._step = (horizon.prediction_length, horizon.num_noise)
        self._most = max(1, min(_PATHS_PER_RUN, _NOISE_PER_RUN // (self._step[0] * self._step[1])))

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """`answer` and `wish`, (N,) objects; an answer is None where a path is not finite."""
        if "wish" not in inputs:
            return self._own.run(inputs)
        wishes: list[_Wish] = inputs["wish"].tolist()
        given = {name: value for name, value in inputs.items() if name != "wish"}
        width = _width(Counter(wish.wanted.num_samples for wish in wishes), self._most)
        answering = _Answering(wishes)
        noise = _Noise(wishes, self._step)
        for blocks in _runs(wishes, width, max(1, self._most // width)):
            rows = [block.row for block in blocks]
            # rows that follow each other need no copy
            part = slice(rows[0], rows[-1] + 1) if len(rows) == rows[-1] + 1 - rows[0] else rows
            feed = {name: value[part] for name, value in given.items()}
            samples_BDP = self._own.run(feed | {"noise": noise.of(blocks, width)})["samples"]
            answering.take(blocks, samples_BDP)
        return {"answer": _objects(answering.found), "wish": inputs["wish"]}


def _width(counts: Mapping[int, int], most: int) -> int:
    """Samples of a block, such that padding and contexts read anew cost least; `counts` of series by their samples."""

    def cost(width: int) -> int:
        return sum(count * -(-size // width) * (width + _READING) for size, count in counts.items())

    return min({min(size, most) for size in counts}, key=cost)


def _runs(wishes: Sequence[_Wish], width: int, per_run: int) -> Iterator[list[_Block]]:
    """All blocks in order, in runs of about equal size."""
    sizes = [wish.wanted.num_samples for wish in wishes]
    blocks = [
        _Block(row, min(width, size - begin), begin + width >= size)
        for row, size in enumerate(sizes)
        for begin in range(0, size, width)
    ]
    num_runs = -(-len(blocks) // per_run)
    for number in range(num_runs):
        yield blocks[len(blocks) * number // num_runs : len(blocks) * (number + 1) // num_runs]


class _Noise:
    """Uniform numbers for blocks, which must be asked for in order: the same as if a request drew all of its own."""

    def __init__(self, wishes: Sequence[_Wish], step: tuple[int, int]) -> None:
        self._wishes, self._step = wishes, step
        self._wish: _Wish | None = None
        self._paths: PathNoise | None = None

    def of(self, blocks: Sequence[_Block], width: int) -> Array:
        """(B, D, P, W) float32; padding is 0.5."""
        parts = []
        for (wish, size), alike in groupby(blocks, lambda block: (self._wishes[block.row], block.size)):
            if wish is not self._wish:
                self._wish = wish
                self._paths = PathNoise(wish.wanted.num_samples, *self._step, np.random.default_rng(wish.wanted.seed))
            assert self._paths is not None
            count = len(list(alike))
            drawn = self._paths.draw(count * size).reshape(count, size, *self._step)
            if size < width:
                padded = np.full((len(drawn), width, *self._step), 0.5, np.float32)
                padded[:, :size] = drawn
                drawn = padded
            parts.append(drawn)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Answering:
    """Sums up paths as they come, so that few of them are held at a time."""

    def __init__(self, wishes: Sequence[_Wish]) -> None:
        self.found: list[dict[str, Any] | None] = []
        """Of the series that are complete."""
        self._wishes = wishes
        self._begun: list[Array] = []

    def take(self, blocks: Sequence[_Block], samples_BDP: Array) -> None:
        at = 0
        for wish, alike in groupby(blocks, lambda block: self._wishes[block.row]):
            mine = list(alike)
            if wish.wanted.num_samples == mine[0].size:
                self._add(samples_BDP[at : at + len(mine), : mine[0].size], wish.wanted)
            else:
                for place, block in enumerate(mine, at):
                    self._piece(block, samples_BDP[place], wish.wanted)
            at += len(mine)

    def _piece(self, block: _Block, samples_DP: Array, wanted: Configuration) -> None:
        self._begun.append(samples_DP[: block.size])
        if block.last:
            self._add(np.concatenate(self._begun)[None], wanted)
            self._begun = []

    def _add(self, samples_NSP: Array, wanted: Configuration) -> None:
        if np.isfinite(samples_NSP).all():
            self.found.extend(answers(samples_NSP, wanted))
            return
        for each in samples_NSP:
            self.found.extend(answers(each[None], wanted) if np.isfinite(each).all() else [None])


# ---- requests ----------------------------------------------------------------------------------------------------


def _horizon(settings: Mapping[str, Any], name: str) -> Horizon:
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
        raise CorruptBundle(f"{name}: settings: {error}") from error


def _configured(text: str, default: Configuration, where: str = CONFIGURATION_VARIABLE) -> Configuration:
    """Raises `InvalidBody`: not JSON, or not a configuration."""
    if not text.strip():
        return default
    return Configuration.of(jsonlines.parse_json(text.encode(), where), default, where)


def _attribute(attributes: str) -> str:
    """The JSON text behind `DEEPAR_INFERENCE_CONFIG=`; other attributes may stand before and behind it."""
    _, _, rest = attributes.partition(CONFIGURATION_VARIABLE)
    rest = rest.lstrip()
    text = rest[1:].lstrip()
    try:
        if not rest.startswith("="):
            raise ValueError("expected = and JSON text")  # noqa: TRY301
        _, end = json.JSONDecoder().raw_decode(text)
    except ValueError as error:
        raise InvalidRequest(
            f"custom attribute {CONFIGURATION_VARIABLE}: {error}; found {rest[:80]!r}, expected such as "
            f'{CONFIGURATION_VARIABLE}={{"num_samples": 50}}'
        ) from error
    return text[:end]


def _in_lines(prediction: Prediction) -> bool:
    return media_type_of(prediction.content_type)[0] == _LINES


def _request(prediction: Prediction) -> tuple[list[Any], Any]:
    """The series of a body, and its configuration."""
    if _in_lines(prediction):
        return list(jsonlines.decode(prediction.body)), None
    found = jsonlines.parse_json(prediction.body)
    if not isinstance(found, dict) or not isinstance(found.get("instances"), list) or not found["instances"]:
        raise InvalidBody(
            f"expected a JSON object of 'instances', an array of at least one series; found {found!r:.80}"
        )
    return found["instances"], found.get("configuration")


def _series(rows: list[Any], horizon: Horizon) -> list[Series]:
    series = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidBody(f"instance {number} is {row!r:.80}, expected an object of 'start' and 'target'")
        if horizon.num_dynamic:
            _check_features(row, horizon.prediction_length, number)
        try:
            series.append(parse_series(row))
        except InvalidBody as error:
            raise InvalidBody(f"instance {number}: {error}") from error
    return series


def _check_features(row: Mapping[str, Any], prediction_length: int, number: int) -> None:
    """Features shorter than `target` would be told so, but it is the forecast's that clients forget."""
    features, target = row.get("dynamic_feat", row.get("feat_dynamic_real")), row.get("target")
    if not isinstance(features, list) or not isinstance(target, list):
        return
    expected = len(target) + prediction_length
    for place, values in enumerate(features):
        if isinstance(values, list) and len(values) != expected:
            raise InvalidBody(
                f"instance {number}: 'dynamic_feat'[{place}] has {len(values)} values; expected {expected}, the "
                f"{len(target)} of 'target' and {prediction_length} of the forecast"
            )


def _objects(values: Sequence[object]) -> Array:
    """(N,) of these very objects."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _left_padded(arrays: list[Array], width: int) -> Array:
    """Joined along the first axis; what is not known lies before what is."""
    joined = np.zeros((sum(map(len, arrays)), width), np.float32)
    at = 0
    for each in arrays:
        joined[at : at + len(each), width - each.shape[1] :] = each
        at += len(each)
    return joined
