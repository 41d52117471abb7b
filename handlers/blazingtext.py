"""Texts to labels, or words to vectors (BlazingText contract, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from formats import jsonlines
from formats.content_types import media_type_of
from formats.envelope import Prediction
from formats.errors import BackendFailed, CorruptBundle, InvalidBody
from formats.fasttext_units import Units
from handlers.graph import Arrays, RunnableGraph, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["BlazingText"]

_LINES = "application/jsonlines"
_MOST_UNITS_PER_RUN = 1 << 19  # rows are gathered before they are added: 100 numbers each make 200 MB of these
_LARGEST_TEXT_UNITS = 1 << 20


class _Request(NamedTuple):
    texts: list[str]
    counts: list[int]
    """How many labels each of them is to get."""


class BlazingText(Handler):
    """Serves algorithm `blazingtext`.

    The graph takes `units`, (N, T) int64, the rows of words and n-grams, -1 for padding, and gives `probabilities`,
    (N, labels), or `vector`, (N, dim), float32, and `count`, (N,), how many units each text has.

    The answer is in the request's own form, JSON or JSON lines; as in the original, `Accept` decides only for text.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        super().__init__(bundle, runtime)
        settings: dict[str, Any] = dict(bundle.manifest.settings)
        missing = [name for name in _SETTINGS if name not in settings]
        if missing:
            raise CorruptBundle(f"{bundle.manifest.name}: settings lack {', '.join(missing)}")
        self._supervised = bool(settings["supervised"])
        self._floor = float(settings["probability_floor"])
        self._least = float(settings["least_probability"])
        words = (bundle.path / "words.txt").read_bytes().split(b"\n")
        keys = np.frombuffer((bundle.path / "buckets.bin").read_bytes(), "<i4").astype(np.int64)
        self._units = Units(
            words,
            bucket=int(settings["bucket"]),
            keys=keys,
            absent=int(settings["absent"]),
            word_ngrams=int(settings["word_ngrams"]),
            minn=int(settings["minn"]),
            maxn=int(settings["maxn"]),
        )
        self._labels: list[str] = []
        if self._supervised:
            self._labels = orjson.loads((bundle.path / "labels.json").read_bytes())
        self._plans = {name: replace(plan, runnable=_InParts(plan.runnable)) for name, plan in self._plans.items()}

    def decode(self, prediction: Prediction) -> Arrays:
        units_of = self._units.of_line if self._supervised else self._units.of_word
        rows = []
        for number, text in enumerate(_read(prediction).texts):
            rows.append(units_of(text))
            if len(rows[-1]) > _LARGEST_TEXT_UNITS:
                raise InvalidBody(
                    f"instance {number}: {len(rows[-1])} words and n-grams; at most {_LARGEST_TEXT_UNITS}"
                )
        return {"units": _padded(rows)}

    def collate(self, inputs: list[Arrays]) -> Arrays:  # type: ignore[override]
        if len(inputs) == 1:
            return inputs[0]
        widest = max(each["units"].shape[1] for each in inputs)
        joined = np.full((sum(len(each["units"]) for each in inputs), widest), -1, np.int64)
        at = 0
        for each in inputs:
            units = each["units"]
            joined[at : at + len(units), : units.shape[1]] = units
            at += len(units)
        return {"units": joined}

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        request = _read(prediction)
        answers = self._labelled(request, outputs) if self._supervised else self._vectors(request, outputs)
        if self._in_lines(prediction):
            return Answer(jsonlines.encode(answers), _LINES)
        return Answer(orjson.dumps(answers, option=orjson.OPT_SERIALIZE_NUMPY), "application/json")

    def _labelled(self, request: _Request, outputs: Arrays) -> list[dict[str, Any]]:
        probability_NL = outputs["probabilities"]
        if not np.isfinite(probability_NL).all():
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        most = min(max(request.counts), len(self._labels))
        best_NK = _best(probability_NL, most)
        prob_NK = (np.take_along_axis(probability_NL, best_NK, axis=1) + np.float32(self._floor)).tolist()
        labels = self._labels
        if self._least:
            reached = [sum(each >= self._least for each in prob) for prob in prob_NK]
            request = request._replace(counts=[min(pair) for pair in zip(request.counts, reached, strict=True)])
        return [
            {"label": [labels[i] for i in best[:k]], "prob": prob[:k]} if known else {"label": [], "prob": []}
            for best, prob, k, known in zip(
                best_NK.tolist(), prob_NK, request.counts, outputs["count"].tolist(), strict=True
            )
        ]

    def _vectors(self, request: _Request, outputs: Arrays) -> list[dict[str, Any]]:
        vector_ND = outputs["vector"]
        if not np.isfinite(vector_ND).all():
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        vectors = np.ascontiguousarray(vector_ND)
        return [{"word": word, "vector": vector} for word, vector in zip(request.texts, vectors, strict=True)]

    def _in_lines(self, prediction: Prediction) -> bool:
        kind = media_type_of(prediction.content_type)[0]
        return kind == _LINES or (kind.startswith("text/") and self.accept_of(prediction) == _LINES)


_SETTINGS = ("supervised", "bucket", "absent", "word_ngrams", "minn", "maxn", "probability_floor", "least_probability")


class _InParts:
    """A graph that runs on as many rows at a time as memory is meant for; ordinary requests are one run."""

    def __init__(self, graph: RunnableGraph) -> None:
        self._graph = graph

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        units = inputs["units"]
        if units.size <= _MOST_UNITS_PER_RUN or len(units) == 1:
            return self._graph.run({"units": units if units.shape[1] else np.full((len(units), 1), -1, np.int64)})
        middle = len(units) // 2
        parts = [self.run({"units": _trimmed(part)}) for part in (units[:middle], units[middle:])]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _trimmed(units: NDArray[Any]) -> NDArray[Any]:
    """Without columns of padding alone."""
    used = np.flatnonzero((units >= 0).any(axis=0))
    return units[:, : used[-1] + 1 if len(used) else 1]


def _padded(rows: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    if len(rows) == 1:
        return rows[0][None]
    lengths = np.array([len(row) for row in rows])
    units = np.full((len(rows), int(lengths.max())), -1, np.int64)
    units[np.arange(units.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return units


def _best(probability_NL: NDArray[Any], most: int) -> NDArray[np.int64]:
    """(N, most) classes, the most probable first; equal ones in the order of the labels."""
    if most == 1:
        first: NDArray[np.int64] = probability_NL.argmax(axis=1)[:, None]
        return first
    order: NDArray[np.int64] = np.argsort(-probability_NL, axis=1, kind="stable")[:, :most]
    return order


# ---- requests ----------------------------------------------------------------------------------------------------


def _read(prediction: Prediction) -> _Request:
    return _READERS[media_type_of(prediction.content_type)[0]](prediction.body)


def _of_json(body: bytes) -> _Request:
    found = jsonlines.parse_json(body)
    if not isinstance(found, dict) or "instances" not in found:
        raise InvalidBody(f"expected a JSON object of 'instances', an array of texts; found {found!r:.80}")
    texts = found["instances"]
    if not isinstance(texts, list) or not texts:
        raise InvalidBody(f"'instances' is {texts!r:.80}; expected an array of at least one text")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidBody(f"'instances', item {number} is {text!r:.80}; expected a text")
    configuration = found.get("configuration")
    if configuration is not None and not isinstance(configuration, dict):
        raise InvalidBody(f"'configuration' is {configuration!r:.80}; expected an object such as {{\"k\": 2}}")
    k = _count((configuration or {}).get("k", 1), "configuration.k")
    return _Request(texts, [k] * len(texts))


def _of_lines(body: bytes) -> _Request:
    texts, counts = [], []
    for number, line in enumerate(jsonlines.decode(body)):
        text = line.get("source")
        if not isinstance(text, str):
            raise InvalidBody(f"line {number}: 'source' is {text!r:.80}; expected a text")
        texts.append(text)
        counts.append(_count(line.get("k", 1), f"line {number}: 'k'"))
    return _Request(texts, counts)


def _of_text(body: bytes) -> _Request:
    """One text a line, as it is; a field in quotes is freed of them."""
    try:
        lines = body.decode().splitlines()
    except UnicodeDecodeError as error:
        raise InvalidBody(f"body is not UTF-8 at byte {error.start}") from error
    texts = [_unquoted(line) for line in lines if line.strip()]
    if not texts:
        raise InvalidBody(f"no text in {len(body)} bytes; expected one a line")
    return _Request(texts, [1] * len(texts))


def _unquoted(line: str) -> str:
    return line[1:-1].replace('""', '"') if len(line) > 1 and line[0] == line[-1] == '"' else line


def _count(value: object, what: str) -> int:
    if type(value) is not int or value < 1:
        raise InvalidBody(f"{what} is {value!r:.40}; expected a whole number of at least 1")
    return value


_READERS: dict[str, Callable[[bytes], _Request]] = {
    "application/json": _of_json,
    _LINES: _of_lines,
    "text/csv": _of_text,
    "text/plain": _of_text,
}
