"""Sentences to sentences (Seq2seq contract, section 6): a batch's searches share runs of one graph."""

# R rows (pieces of sentences), S source tokens, T target tokens

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import orjson

from formats import jsonlines, record, vocabulary
from formats.content_types import media_type_of
from formats.envelope import Prediction
from formats.errors import BackendFailed, CorruptBundle, InvalidBody
from formats.record import Record, Tensor, tensor_in
from formats.vocabulary import BOS, EOS, PAD
from handlers.graph import Array, Arrays, RunnableGraph, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["Seq2seq"]

_JSON, _LINES, _RECORDS = "application/json", "application/jsonlines", "application/x-recordio-protobuf"
_FILES = ("vocab.src.json", "vocab.trg.json")
_WIDEST_BEAM = 100
_MOST_HYPOTHESES = 320
"""At a time: by more, a step gains less than is lost to sentences that wait for longer ones."""
_MOST_TOKENS = 1_000_000
"""Of one request: its searches last minutes."""


class _Options(NamedTuple):
    """What an instance's `configuration` may say."""

    attention_matrix: bool
    beam_size: int
    length_penalty_alpha: float
    length_penalty_beta: float


@dataclass(frozen=True, slots=True)
class _Instance:
    tokens: list[int]
    options: _Options


class Seq2seq(Handler):
    """Serves algorithm `seq2seq`.

    The graph takes `source`, (R, S) int64, 0 for padding at the end; `max_length` and `beam_size`, (R,) int64;
    `length_penalty`, (R, 2) float32, alpha and beta; `attention_wanted`, (R,) bool. It gives `target`, (R, T) int64,
    0 behind the end, `score`, (R,) float32, and `attention`, (R, T, S) where any row wants it.

    What is longer than the longest sentence of training is translated in pieces, as Sockeye does; `sentence`, (R,)
    int64, says which instance a row belongs to.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        super().__init__(bundle, runtime)
        settings: dict[str, Any] = dict(bundle.manifest.settings)
        try:
            source, target = (vocabulary.read(bundle.path / name) for name in _FILES)
            self._longest = int(settings["max_seq_len_source"])
            self._ratio = float(settings["length_ratio_mean"]) + 2 * float(settings["length_ratio_standard_deviation"])
            self._default = _Options(False, int(settings["beam_size"]), 1.0, 0.0)
        except (OSError, InvalidBody, KeyError, ValueError, TypeError) as error:
            raise CorruptBundle(f"{bundle.manifest.name}: vocabularies or settings: {error}") from error
        self._ids = source
        self._words = vocabulary.tokens_of(target)
        self._plans = {name: replace(plan, runnable=_ByLength(plan.runnable)) for name, plan in self._plans.items()}

    def decode(self, prediction: Prediction) -> Arrays:
        instances = self._instances(prediction)
        size = sum(len(each.tokens) for each in instances)
        if size > _MOST_TOKENS:
            raise InvalidBody(f"{size} tokens in one request; at most {_MOST_TOKENS} are accepted")
        pieces: list[list[int]] = []
        sentence: list[int] = []
        options: list[_Options] = []
        for number, each in enumerate(instances):
            for at in range(0, max(1, len(each.tokens)), self._longest):
                pieces.append(each.tokens[at : at + self._longest])
                sentence.append(number)
                options.append(each.options)
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        return {
            "source": _padded(pieces, lengths),
            "max_length": np.ceil(lengths * self._ratio - 1e-9).astype(np.int64) + 1,
            "beam_size": np.array([each.beam_size for each in options], np.int64),
            "length_penalty": np.array([each[2:] for each in options], np.float32),
            "attention_wanted": np.array([each.attention_matrix for each in options]),
            "sentence": np.array(sentence, np.int64),
        }

    def collate(self, inputs: Sequence[Arrays]) -> Arrays:
        if len(inputs) == 1:
            return inputs[0]
        joined = {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0] if name != "source"}
        widest = max(each["source"].shape[1] for each in inputs)
        source = np.full((len(joined["max_length"]), widest), PAD, np.int64)
        at = 0
        for each in inputs:
            rows = each["source"]
            source[at : at + len(rows), : rows.shape[1]] = rows
            at += len(rows)
        return {"source": source, **joined}

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        if not np.isfinite(outputs["score"]).all():
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        sentence = outputs["sentence"]
        starts = np.flatnonzero(np.diff(sentence, prepend=-1))
        bounds = [*starts.tolist(), len(sentence)]
        found = [
            [row[row != PAD].tolist() for row in outputs["target"][first:last]] for first, last in pairwise(bounds)
        ]
        kind = self._answer_type(prediction)
        if kind == _RECORDS:
            ids = (np.array([token for piece in pieces for token in piece], np.int32) for pieces in found)
            return Answer(record.encode_body(Record({"target": Tensor(each)}) for each in ids), _RECORDS)
        words = self._words
        answers: list[dict[str, Any]] = []
        for first, pieces in zip(bounds[:-1], found, strict=True):
            answer: dict[str, Any] = {"target": " ".join(words[token] for piece in pieces for token in piece)}
            if outputs["attention_wanted"][first]:
                answer["matrix"] = _matrix(pieces, slice(first, first + len(pieces)), outputs)
            answers.append(answer)
        if kind == _LINES:
            return Answer(jsonlines.encode(answers), _LINES)
        return Answer(orjson.dumps({"predictions": answers}, option=orjson.OPT_SERIALIZE_NUMPY), _JSON)

    def _answer_type(self, prediction: Prediction) -> str:
        """As wished; as it was asked where every type will do, which curl and most clients say of themselves."""
        if prediction.accept.strip() in ("", "*/*"):
            return media_type_of(prediction.content_type)[0]
        return self.accept_of(prediction)

    # ---- requests ----

    def _instances(self, prediction: Prediction) -> list[_Instance]:
        kind = media_type_of(prediction.content_type)[0]
        if kind == _RECORDS:
            return [self._of_record(each, number) for number, each in enumerate(_records(prediction.body))]
        if kind == _LINES:
            rows, key, other = jsonlines.decode(prediction.body), "source", "data"
        else:
            rows, key, other = _rows(prediction.body), "data", "source"
        return [self._of_object(row, number, key, other) for number, row in enumerate(rows)]

    def _of_object(self, row: Any, number: int, key: str, other: str) -> _Instance:
        if not isinstance(row, dict):
            raise InvalidBody(f"instance {number} is {row!r:.80}, expected an object of '{key}', a text")
        text = row.get(key)
        if not isinstance(text, str):
            hint = f"; '{other}' is the key of {'JSON' if key == 'source' else 'JSON Lines'}" if other in row else ""
            found = f"'{key}' is {text!r:.80}" if key in row else f"has no '{key}'"
            raise InvalidBody(f"instance {number}: {found}, expected a text of tokens with blanks between them{hint}")
        tokens = vocabulary.ids_of(self._ids, text.split())
        return _Instance(_bare(tokens, number), self._options(row.get("configuration"), number))

    def _of_record(self, given: Record, number: int) -> _Instance:
        try:
            tensor = tensor_in(given.features, "source")
        except InvalidBody as error:
            raise InvalidBody(f"unable to evaluate payload provided: record {number}: {error}") from error
        if tensor.values.dtype != np.int32:
            raise InvalidBody(
                f"unable to evaluate payload provided: record {number}: feature 'source' is {tensor.values.dtype}, "
                "expected int32 token ids"
            )
        tokens = tensor.values.tolist()
        wrong = next((token for token in tokens if not 0 < token < len(self._ids)), None)
        if wrong is not None:
            raise InvalidBody(
                f"unable to evaluate payload provided: record {number}: a source token is {wrong}, expected an id from "
                f"1 to {len(self._ids) - 1} of the vocabulary; padding is not to be sent"
            )
        configuration = (
            jsonlines.parse_json(given.configuration.encode(), "configuration") if given.configuration else None
        )
        return _Instance(_bare(tokens, number), self._options(configuration, number))

    def _options(self, given: Any, number: int) -> _Options:
        if given is None:
            return self._default
        if not isinstance(given, dict):
            raise InvalidBody(f"instance {number}: 'configuration' is {given!r:.80}, expected an object")
        unknown = [str(name)[:40] for name in given if name not in _Options._fields]
        if unknown:
            raise InvalidBody(
                f"instance {number}: 'configuration' has {', '.join(unknown)}; known: {', '.join(_Options._fields)}"
            )
        where = f"instance {number}: 'configuration'"
        values = {name: _CHECKS[name](value, f"{where}: '{name}'") for name, value in given.items()}
        found = self._default._replace(**values)
        if found.beam_size > len(self._words):
            raise InvalidBody(f"{where}: 'beam_size' is {found.beam_size}; there are only {len(self._words)} tokens")
        return found


class _ByLength:
    """Runs rows of like lengths and beams together, some hundred hypotheses at a time, and puts them back in order.

    A search ends with its longest sentence: short ones beside it would be kept waiting.
    """

    def __init__(self, graph: RunnableGraph) -> None:
        self._graph = graph

    def run(self, inputs: Arrays) -> dict[str, Array]:
        source, beams, wanted = inputs["source"], inputs["beam_size"], inputs["attention_wanted"]
        lengths = (source != PAD).sum(axis=1)
        num_rows = len(source)
        order = np.lexsort((lengths, wanted, beams))
        order = order[lengths[order] > 0]  # of nothing, nothing is made
        parts: list[tuple[Array, dict[str, Array]]] = []
        at = 0
        while at < len(order):
            first = order[at]
            some = order[at : at + max(1, _MOST_HYPOTHESES // int(beams[first]))]
            some = some[(beams[some] == beams[first]) & (wanted[some] == wanted[first])]
            at += len(some)
            feed = {name: value[some] for name, value in inputs.items() if name != "sentence"}
            feed["source"] = np.ascontiguousarray(source[some, : int(lengths[some].max())])
            parts.append((some, self._graph.run(feed)))
        longest = max((answer["target"].shape[1] for _, answer in parts), default=0)
        has_matrices = bool(wanted.any())
        found: dict[str, Array] = {
            "target": np.full((num_rows, longest), PAD, np.int64),
            "score": np.zeros(num_rows, np.float32),
            "attention": np.zeros((num_rows, longest, source.shape[1] if has_matrices else 0), np.float32),
        }
        for some, answer in parts:
            found["target"][some, : answer["target"].shape[1]] = answer["target"]
            found["score"][some] = answer["score"]
            steps, width = answer["attention"].shape[1:]
            if has_matrices and width:
                found["attention"][some, :steps, :width] = answer["attention"]
        kept = {name: inputs[name] for name in ("sentence",) if name in inputs}
        return found | kept | ({"attention_wanted": wanted, "source": source} if kept else {})


def _matrix(pieces: list[list[int]], rows: slice, outputs: Arrays) -> Array:
    """(target tokens, source tokens): blocks along the diagonal where a sentence was translated in pieces."""
    widths = (outputs["source"][rows] != PAD).sum(axis=1).tolist()
    matrix = np.zeros((sum(map(len, pieces)), sum(widths)), np.float32)
    top = left = 0
    for piece, width, attention in zip(pieces, widths, outputs["attention"][rows], strict=True):
        matrix[top : top + len(piece), left : left + width] = attention[: len(piece), :width]
        top, left = top + len(piece), left + width
    return matrix


def _bare(tokens: list[int], number: int) -> list[int]:
    """Without the `<s>` and `</s>` that clients need not send, and may."""
    if tokens[:1] == [BOS]:
        tokens = tokens[1:]
    if tokens[-1:] == [EOS]:
        tokens = tokens[:-1]
    if PAD in tokens:
        raise InvalidBody(f"instance {number}: token '<pad>' in a sentence; padding is not to be sent")
    return tokens


def _padded(rows: list[list[int]], lengths: Array) -> Array:
    ids = np.full((len(rows), max(1, int(lengths.max()))), PAD, np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = [token for row in rows for token in row]
    return ids


def _rows(body: bytes) -> list[Any]:
    found = jsonlines.parse_json(body)
    rows = found.get("instances") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InvalidBody(
            "unable to evaluate payload provided: expected a JSON object of 'instances', an array of at least one "
            f"object of 'data'; found {found!r:.80}"
        )
    return rows


def _records(body: bytes) -> list[Record]:
    try:
        found = record.decode_body(body)
    except InvalidBody as error:
        raise InvalidBody(f"unable to evaluate payload provided: {error}") from error
    if not found:
        raise InvalidBody("unable to evaluate payload provided: no records in the body")
    return found


def _flag(value: Any, where: str) -> bool:
    known = {True: True, False: False, "true": True, "false": False}
    found = known.get(value.strip().lower() if isinstance(value, str) else value) if _is_plain(value) else None
    if found is None:
        raise InvalidBody(f"{where} is {value!r:.40}, expected true or false")
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | str)


def _beam(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value <= _WIDEST_BEAM:
        raise InvalidBody(f"{where} is {value!r:.40}, expected an integer from 1 to {_WIDEST_BEAM}")
    return value


def _factor(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10 or math.isnan(value):
        raise InvalidBody(f"{where} is {value!r:.40}, expected a number from 0 to 10")
    return float(value)


_CHECKS: Mapping[str, Any] = {
    "attention_matrix": _flag,
    "beam_size": _beam,
    "length_penalty_alpha": _factor,
    "length_penalty_beta": _factor,
}
