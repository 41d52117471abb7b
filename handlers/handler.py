"""The contract of every handler: a batch of predictions in, an outcome for each out, none harmed by its neighbour."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import perf_counter
from typing import NamedTuple

import numpy as np

from formats.envelope import Outcome, Prediction, Stages, Tensor
from formats.errors import BackendFailed, InvalidBody, NotAcceptable, PenstockError, UnsupportedContentType
from formats.tensors import DATATYPES, array_of, tensor_of
from handlers.graph import Array, Arrays, RunnableGraph, Runtime, load_graph
from model_store.manifest import Graph, Mode
from model_store.signature import check_inputs, check_outputs
from model_store.store import Bundle

__all__ = ["Answer", "Handler"]

_log = logging.getLogger("penstock.handlers")


class Answer(NamedTuple):
    """A response body in the media type it is written in."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """One mode, with all that answering it takes looked up once."""

    mode: Mode
    graph: Graph
    runnable: RunnableGraph
    check_types: Callable[[str, str], None]
    """Content type and accept; remembers what was fine, for clients send the same few headers for ever."""


class _Item(NamedTuple):
    """One decoded request of a batch, waiting for its rows of the graph's output."""

    place: int
    prediction: Prediction
    inputs: Arrays
    num_rows: int


@dataclass(slots=True)
class _Spent:
    """Seconds so far: `Stages` in the making."""

    pre: float
    graph: float = 0.0
    post: float = 0.0


class Handler(ABC):
    """Runs one model. Subclasses translate one request at a time; batching, isolation and raw tensors are done here."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.manifest = bundle.manifest
        self.bundle = bundle
        # a bundle may hold graphs for others, which need no memory here
        used = {mode.graph: bundle.manifest.graphs[mode.graph] for mode in bundle.manifest.modes.values()}
        graphs = {name: load_graph(bundle.path, graph, runtime) for name, graph in used.items()}
        self._plans: dict[str, _Plan] = {}
        for name, mode in bundle.manifest.modes.items():
            check_types = lru_cache(maxsize=256)(partial(_check_types, mode))
            self._plans[name] = _Plan(mode, bundle.manifest.graphs[mode.graph], graphs[mode.graph], check_types)
        self._plans[""] = self._plans[bundle.manifest.default_mode]

    @abstractmethod
    def decode(self, prediction: Prediction) -> Arrays:
        """The graph's inputs for one request; the first axis counts its rows (1 for a single image).

        Nothing of a request's tensors may be kept beyond its batch: they may lie in memory that the next one reuses.

        Raises:
            PenstockError: what the client did wrong; only this request fails.
        """

    @abstractmethod
    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        """The response for one request from its own rows of the graph's outputs."""

    def collate(self, inputs: Sequence[Arrays]) -> Arrays:
        """Join the inputs of several requests along the first axis; override where lengths must be padded."""
        if len(inputs) == 1:
            return inputs[0]
        return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}

    def likeness(self, inputs: Arrays) -> Hashable:  # noqa: ARG002
        """Requests of equal likeness may share a run of the graph; override where `collate` cannot join all."""
        return None

    def predict(self, batch: Sequence[Prediction]) -> list[Outcome]:
        """Answer a batch: same length, same order, and a failing item fails alone. Each outcome holds the `stages`."""
        if len(batch) == 1:
            return [self._predict_alone(batch[0])]
        began = perf_counter()
        outcomes: list[Outcome | None] = [None] * len(batch)
        groups: dict[Hashable, list[_Item]] = {}
        for index, prediction in enumerate(batch):
            try:
                plan = self._plan(prediction)
                inputs = self._decode(plan, prediction)
                num_rows = len(next(iter(inputs.values()))) if plan.graph.batched else 1
                item = _Item(index, prediction, inputs, num_rows)
                group = self._group(plan, item)
            except PenstockError as error:
                outcomes[index] = Outcome.of_error(error)
            except Exception as error:  # noqa: BLE001  one item's surprise must not reach its neighbours
                outcomes[index] = _failed("decode", prediction, error)
            else:
                groups.setdefault(group, []).append(item)
        spent = _Spent(pre=perf_counter() - began)
        for items in groups.values():
            self._answer(items, outcomes, spent)
        answered = [outcome for outcome in outcomes if outcome is not None]
        assert len(answered) == len(batch)
        stages = Stages(spent.pre, spent.graph, spent.post)
        for outcome in answered:
            outcome.stages = stages
        return answered

    def _predict_alone(self, prediction: Prediction) -> Outcome:
        """A batch of one, as most are where few ask: grouping and parting would cost as much as all the rest."""
        began = decoded = computed = perf_counter()
        stage = "decode"
        try:
            plan = self._plan(prediction)
            inputs = self._decode(plan, prediction)
            stage = "graph"
            inputs = self.collate([inputs])
            decoded = computed = perf_counter()
            outputs = plan.runnable.run(inputs)
            computed = perf_counter()
            outcome = self._encode(prediction, outputs)
        except Exception as error:  # noqa: BLE001  as in a batch, whose neighbours must live on
            computed = perf_counter()
            if stage == "decode":
                decoded = computed
            if stage == "decode" and isinstance(error, PenstockError):
                outcome = Outcome.of_error(error)
            else:
                outcome = _failed(stage, prediction, error)
        outcome.stages = Stages(decoded - began, computed - decoded, perf_counter() - computed)
        return outcome

    def mode_of(self, prediction: Prediction) -> Mode:
        """The mode that a request asks for."""
        return self._plan(prediction).mode

    def graph_of(self, prediction: Prediction) -> Graph:
        """The graph that answers it."""
        return self._plan(prediction).graph

    def accept_of(self, prediction: Prediction) -> str:
        """The media type to answer in; raises `NotAcceptable`."""
        return accepted(prediction.accept, tuple(self.mode_of(prediction).accepts))

    def _plan(self, prediction: Prediction) -> _Plan:
        plan = self._plans.get(prediction.mode)
        if plan is None:
            raise InvalidBody(f"mode '{prediction.mode}' is unknown; this model has: {', '.join(self.manifest.modes)}")
        return plan

    def _decode(self, plan: _Plan, prediction: Prediction) -> Arrays:
        if prediction.tensors is not None:
            if not prediction.checked:
                check_inputs(plan.graph, prediction.tensors)
                check_outputs(plan.graph, prediction.outputs)
                return {tensor.name: _graph_input(tensor) for tensor in prediction.tensors}
            return {tensor.name: _checked_input(tensor) for tensor in prediction.tensors}
        plan.check_types(prediction.content_type, prediction.accept)
        return self.decode(prediction)

    def _group(self, plan: _Plan, item: _Item) -> Hashable:
        """Requests with equal keys share a run of the graph."""
        if not plan.graph.batched:
            return id(item)
        tensors = item.prediction.tensors
        if tensors is None:
            return (plan.mode.graph, self.likeness(item.inputs))
        # types are the signature's own
        return (plan.mode.graph, "tensors", *[(tensor.name, tensor.shape[1:]) for tensor in sorted(tensors)])

    def _answer(self, items: list[_Item], outcomes: list[Outcome | None], spent: _Spent) -> None:
        graph = self._plan(items[0].prediction).runnable
        began = collated = perf_counter()
        try:
            inputs = self.collate([item.inputs for item in items])
            collated = perf_counter()
            outputs = graph.run(inputs)
            if len(items) > 1:
                _check_rows(outputs, sum(item.num_rows for item in items))
        except Exception as error:  # noqa: BLE001
            spent.graph += perf_counter() - began
            if len(items) > 1:  # find the guilty one: each alone
                for item in items:
                    self._answer([item], outcomes, spent)
            else:
                outcomes[items[0].place] = _failed("graph", items[0].prediction, error)
            return
        computed = perf_counter()
        start = 0
        for item in items:
            stop = start + item.num_rows
            alone = len(items) == 1
            rows = outputs if alone else {name: value[start:stop] for name, value in outputs.items()}
            outcomes[item.place] = self._encode(item.prediction, rows)
            start = stop
        spent.pre += collated - began
        spent.graph += computed - collated
        spent.post += perf_counter() - computed

    def _encode(self, prediction: Prediction, outputs: Arrays) -> Outcome:
        try:
            if prediction.tensors is None:
                answer = self.encode(prediction, outputs)
                return Outcome(answer.body, answer.content_type, version=prediction.version)
            wanted = prediction.outputs or tuple(outputs)
            return Outcome(tensors=tuple(tensor_of(n, outputs[n]) for n in wanted), version=prediction.version)
        except PenstockError as error:
            return Outcome.of_error(error)
        except Exception as error:  # noqa: BLE001
            return _failed("encode", prediction, error)


def _check_types(mode: Mode, content_type: str, accept: str) -> None:
    media_type(content_type, mode.content_types)
    accepted(accept, tuple(mode.accepts))


def _graph_input(tensor: Tensor) -> Array:
    """The array for a graph; text as `str`, for ONNX Runtime would take the repr of `bytes`."""
    array = array_of(tensor)
    if tensor.datatype != "BYTES":
        return array
    try:
        texts = [element.decode() for element in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidBody(f"input '{tensor.name}': BYTES elements must be UTF-8 text: {error.reason}") from error
    decoded = np.empty(len(texts), dtype=object)
    decoded[:] = texts
    return decoded.reshape(array.shape)


def _checked_input(tensor: Tensor) -> Array:
    """As `_graph_input`, of a tensor that this process has looked at."""
    if tensor.datatype in ("BYTES", "BOOL"):
        return _graph_input(tensor)
    return np.frombuffer(tensor.data, DATATYPES[tensor.datatype]).reshape(tensor.shape)


def _check_rows(outputs: Arrays, num_rows: int) -> None:
    """A graph that returns other rows than it was given would hand somebody's answer to his neighbour."""
    for name, array in outputs.items():
        if array.shape[:1] != (num_rows,):
            raise ValueError(f"output '{name}' of shape {array.shape} for {num_rows} rows: the graph is not batched")


def media_type(content_type: str, known: Sequence[str]) -> str:
    """The bare, lower-case media type of a request.

    Raises:
        UnsupportedContentType: names the one sent and those that are possible.
    """
    bare = content_type.partition(";")[0].strip().lower()
    if bare not in known:
        sent = f"Content type {bare[:200]} not supported" if bare else "Content type missing"
        raise UnsupportedContentType(f"{sent}; expected one of: {', '.join(known)}")
    return bare


@lru_cache(maxsize=256)  # clients send the same few headers for ever, and the answer asks again
def accepted(accept: str, known: tuple[str, ...]) -> str:
    """The media type to answer in: the first of `known` when the client has no wish (RFC 9110, quality values).

    Raises:
        NotAcceptable: none of the wished types can be made.
    """
    if not accept.strip():
        return known[0]
    wishes = _wishes(accept)
    best, best_quality, best_place = "", 0.0, 0
    for kind in known:
        # the most specific wish speaks for a type, whatever its place: RFC 9110, section 12.5.1
        matching = [(-_generality(w), -place, q) for place, (w, q) in enumerate(wishes) if _matches(w, kind)]
        if not matching:
            continue
        _, place, quality = max(matching)
        if quality > best_quality or (best and quality == best_quality and place > best_place):
            best, best_quality, best_place = kind, quality, place
    if best:
        return best
    raise NotAcceptable(f"Accept {accept[:200]} cannot be satisfied; possible: {', '.join(known)}")


def _wishes(accept: str) -> list[tuple[str, float]]:
    wishes = []
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        wishes.append((kind, quality))
    return wishes


def _matches(wish: str, kind: str) -> bool:
    return wish in ("*/*", "*", kind) or (wish.endswith("/*") and kind.startswith(wish[:-1]))


def _generality(wish: str) -> int:
    return 2 if wish in ("*/*", "*") else 1 if wish.endswith("/*") else 0


def _failed(stage: str, prediction: Prediction, error: Exception) -> Outcome:
    # the text may hold internals (paths, shapes of others): it belongs in the log, not in the answer
    _log.error("request %s of model %s failed at %s", prediction.request_id, prediction.model, stage, exc_info=error)
    return Outcome.of_error(BackendFailed(f"model '{prediction.model}' failed at {stage}; see the log of its worker"))


HandlerFactory = Callable[[Bundle, Runtime], Handler]
