"""Pairs to scores, single items to embeddings (Object2Vec contract, section 6), instance by instance."""

# N instances, T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import orjson

from formats import jsonlines
from formats.content_types import media_type_of
from formats.envelope import Prediction
from formats.errors import BackendFailed, CorruptBundle, InvalidBody, InvalidRequest
from formats.token_pairs import TokenPair, parse_pair
from handlers.graph import Array, Arrays, RunnableGraph, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["Object2Vec"]

_LINES = "application/jsonlines"
_PAIR, _FIRST, _SECOND = range(3)
_GRAPHS = ("pair", "encoder0", "encoder1")
_LONGEST = 5000
_MOST_IDS_PER_RUN = 1 << 18  # each becomes hundreds of numbers in an encoder


class _Limits(NamedTuple):
    """Of one side."""

    max_seq_len: int
    vocab_size: int


class Object2Vec(Handler):
    """Serves algorithm `object2vec`.

    An instance of `in0` and `in1` is scored, whatever the mode; one of either is embedded by that side's encoder.
    Graphs take `in0` and `in1`, (N, T) int64, -1 for padding; `pair` gives `scores`, (N, classes or 1), `encoder0` and
    `encoder1` give `embeddings`, (N, E), float32. The mode says where a request runs, and which graph raw tensors are
    for.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        super().__init__(bundle, runtime)
        settings: dict[str, Any] = dict(bundle.manifest.settings)
        try:
            sizes = zip(settings["max_seq_lens"], settings["vocab_sizes"], strict=True)
            self._limits = [_Limits(int(longest), int(size)) for longest, size in sizes]
            by_graph = {plan.mode.graph: plan.runnable for plan in self._plans.values()}
            graphs = [by_graph[name] for name in _GRAPHS]
        except (KeyError, ValueError, TypeError) as error:
            raise CorruptBundle(f"{bundle.manifest.name}: settings or graphs lack {error}") from error
        self._plans = {
            name: replace(plan, runnable=_ByKind(plan.runnable, graphs)) for name, plan in self._plans.items()
        }

    def decode(self, prediction: Prediction) -> Arrays:
        rows = _instances(prediction)
        most = self._most(prediction)
        kinds = np.empty(len(rows), np.int8)
        sides: tuple[list[list[int]], list[list[int]]] = ([], [])
        for number, row in enumerate(rows):
            pair = _parsed(row, number)
            kinds[number] = _PAIR if pair.in0 is not None and pair.in1 is not None else _FIRST + (pair.in0 is None)
            for side, tokens in enumerate((pair.in0, pair.in1)):
                self._check(tokens, number, side)
                sides[side].append((tokens or [])[: most[side]])
        return {"kind": kinds, "in0": _padded(sides[0]), "in1": _padded(sides[1])}

    def collate(self, inputs: Sequence[Arrays]) -> Arrays:
        if len(inputs) == 1:
            return inputs[0]
        joined = {name: _joined([each[name] for each in inputs]) for name in inputs[0] if name != "kind"}
        if "kind" in inputs[0]:
            joined["kind"] = np.concatenate([each["kind"] for each in inputs])
        return joined

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        found = []
        for number, kind in enumerate(outputs["kind"].tolist()):
            name = "embeddings" if kind else "scores"
            values = np.ascontiguousarray(outputs[name][number])
            if not np.isfinite(values).all():
                raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
            found.append({name: values})
        in_lines = media_type_of(prediction.content_type)[0] == _LINES
        if self.accept_of(prediction) == _LINES or (in_lines and not _wishes(prediction)):
            lines = (orjson.dumps(each, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n" for each in found)
            return Answer(b"".join(lines), _LINES)
        return Answer(orjson.dumps({"predictions": found}, option=orjson.OPT_SERIALIZE_NUMPY), "application/json")

    def _check(self, tokens: list[int] | None, number: int, side: int) -> None:
        size = self._limits[side].vocab_size
        if tokens and max(tokens) >= size:
            at = next(place for place, token in enumerate(tokens) if token >= size)
            raise InvalidBody(
                f"instance {number}: 'in{side}'[{at}] is {tokens[at]}, not less than vocab_size={size}; ids of the "
                "vocabulary that the model was trained with begin at 0"
            )

    def _most(self, prediction: Prediction) -> tuple[int, int]:
        """How many tokens of each side are read: as the request says, else as in training."""
        asked = media_type_of(prediction.content_type)[1].get("infer_max_seqlens", "")
        if not asked:
            return self._limits[0].max_seq_len, self._limits[1].max_seq_len
        parts = asked.strip().strip('"').split(",")
        if len(parts) != 2 or not all(part.strip().isdecimal() and 1 <= int(part[:9]) <= _LONGEST for part in parts):
            raise InvalidRequest(
                f"content type parameter infer_max_seqlens is {asked[:40]!r}, expected two integers from 1 to "
                f"{_LONGEST} with a comma between them"
            )
        return int(parts[0]), int(parts[1])


class _ByKind:
    """Gives each row to the graph that its instance asks for; raw tensors go to the mode's own graph."""

    def __init__(self, own: RunnableGraph, graphs: Sequence[RunnableGraph]) -> None:
        self._own, self._graphs = own, graphs

    def run(self, inputs: Arrays) -> dict[str, Array]:
        if "kind" not in inputs:
            return self._own.run(inputs)
        kinds = inputs["kind"]
        outputs: dict[str, Array] = {"kind": kinds}
        for kind, graph in enumerate(self._graphs):
            rows = np.flatnonzero(kinds == kind)
            if not len(rows):
                continue
            names = ("in0", "in1") if kind == _PAIR else (f"in{kind - 1}",)
            answer = _in_parts(graph, {name: _trimmed(inputs[name][rows]) for name in names})
            for name, value in answer.items():
                if name not in outputs:
                    outputs[name] = np.zeros((len(kinds), value.shape[1]), np.float32)
                outputs[name][rows] = value
        return outputs


def _in_parts(graph: RunnableGraph, inputs: Arrays) -> dict[str, Array]:
    """As many rows at a time as memory is meant for; ordinary requests are one run."""
    num_rows = len(next(iter(inputs.values())))
    widest = max(value.shape[1] for value in inputs.values())
    at_once = max(1, _MOST_IDS_PER_RUN // widest)
    if num_rows <= at_once:
        return graph.run(inputs)
    parts = [
        graph.run({name: _trimmed(value[start : start + at_once]) for name, value in inputs.items()})
        for start in range(0, num_rows, at_once)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _trimmed(ids: Array) -> Array:
    """Without columns of padding alone, but for one."""
    used = np.flatnonzero((ids >= 0).any(axis=0))
    return np.ascontiguousarray(ids[:, : used[-1] + 1 if len(used) else 1])


def _padded(rows: list[list[int]]) -> Array:
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), max(1, int(lengths.max()))), -1, np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = [token for row in rows for token in row]
    return ids


def _joined(parts: list[Array]) -> Array:
    widest = max(part.shape[1] for part in parts)
    ids = np.full((sum(map(len, parts)), widest), -1, np.int64)
    at = 0
    for part in parts:
        ids[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return ids


# ---- requests ----------------------------------------------------------------------------------------------------


def _instances(prediction: Prediction) -> list[Any]:
    if media_type_of(prediction.content_type)[0] == _LINES:
        return list(jsonlines.decode(prediction.body))
    found = jsonlines.parse_json(prediction.body)
    if not isinstance(found, dict) or "instances" not in found:
        raise InvalidBody(
            f"unable to evaluate payload provided: expected a JSON object of 'instances', an array; found {found!r:.80}"
        )
    rows = found["instances"]
    if not isinstance(rows, list) or not rows:
        raise InvalidBody(f"'instances' is {rows!r:.80}; expected an array of at least one object of 'in0' and 'in1'")
    return rows


def _parsed(row: Any, number: int) -> TokenPair:
    if not isinstance(row, dict):
        raise InvalidBody(f"instance {number} is {row!r:.80}, expected an object of 'in0', 'in1' or both")
    try:
        # a label of a test file is not looked at
        return parse_pair({name: value for name, value in row.items() if name != "label"})
    except InvalidBody as error:
        raise InvalidBody(f"instance {number}: {error}") from error


def _wishes(prediction: Prediction) -> bool:
    return prediction.accept.strip() not in ("", "*/*")
