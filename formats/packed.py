"""A batch of predictions, or of outcomes, as one message: what travels to an embedded worker and to TorchServe.

msgpack, positional: a version number, one short array per item, and for outcomes the seconds that the batch took (see
`formats.envelope.Stages`) or nil. Packing copies each body once; between processes of one machine an arena takes the
large ones, and the message says where they lie. Deadlines do not travel (clocks differ between machines): the gateway
is the one that waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from formats.arena import Arena
from formats.envelope import Outcome, Prediction, Stages, Tensor

__all__ = ["pack_outcomes", "pack_predictions", "unpack_outcomes", "unpack_predictions"]

_VERSION = 2
_Data = bytes | memoryview
_Item = tuple[object, ...]
_Types = tuple[type, ...]
_BODIES, _TENSORS = (bytes, memoryview), (list, type(None))
_PREDICTION: set[_Types] = {(b, str, str, str, t, list, dict, str) for b in _BODIES for t in _TENSORS}
_OUTCOME: set[_Types] = {(b, str, t, str, str, str) for b in _BODIES for t in _TENSORS}
_TENSOR: set[_Types] = {(str, str, list, data) for data in _BODIES}


def pack_predictions(batch: Sequence[Prediction], arena: Arena | None = None) -> bytes:
    """Encode a batch; model and version travel beside the message, not in it.

    Args:
        batch: what to send.
        arena: takes the large bodies; the reader needs the same one. None sends them in the message.
    """
    if arena is not None:
        arena.clear()
        put = arena.put
        items: list[_Item] = []
        for p in batch:
            texts = (p.content_type, p.accept, p.mode)
            tensors = _put_all(put, p.tensors)
            items.append((put(p.body), *texts, tensors, p.outputs, dict(p.parameters), p.request_id))
    else:
        items = [
            (p.body, p.content_type, p.accept, p.mode, p.tensors, p.outputs, dict(p.parameters), p.request_id)
            for p in batch
        ]
    return _packb((_VERSION, items, None))


def unpack_predictions(message: bytes, model: str, version: str, arena: Arena | None = None) -> list[Prediction]:
    """Decode what `pack_predictions` made; tensors may lie in the arena, and live until the answer is sent.

    Raises:
        ValueError: the message was not made by this version of the format.
    """
    return [
        Prediction(
            model=model,
            version=version,
            body=bytes(body),  # of bytes: itself; handlers may count on its methods
            content_type=content_type,
            accept=accept,
            mode=mode,
            tensors=_tensors(tensors),
            outputs=tuple(outputs),
            parameters=parameters,
            request_id=request_id,
        )
        for body, content_type, accept, mode, tensors, outputs, parameters, request_id in _unpackb(
            message, _PREDICTION, arena
        )[0]
    ]


def pack_outcomes(outcomes: Sequence[Outcome], arena: Arena | None = None) -> bytes:
    """Encode the answers of one batch, in its order; `arena` as for `pack_predictions`."""
    if arena is not None:
        arena.clear()
        put = arena.put
        items: list[_Item] = [
            (put(o.body), o.content_type, _put_all(put, o.tensors), o.error_code, o.error_message, o.version)
            for o in outcomes
        ]
    else:
        items = [(o.body, o.content_type, o.tensors, o.error_code, o.error_message, o.version) for o in outcomes]
    return _packb((_VERSION, items, outcomes[0].stages if outcomes else None))


def unpack_outcomes(message: bytes, arena: Arena | None = None) -> list[Outcome]:
    """Decode what `pack_outcomes` made; nothing of the result lies in the arena, which the next batch overwrites.

    Raises:
        ValueError: the message was not made by this version of the format.
    """
    items, seconds = _unpackb(message, _OUTCOME, arena)
    stages = _stages(seconds)
    return [
        Outcome(bytes(body), content_type, _copied(_tensors(tensors)), error_code, error_message, version, stages)
        for body, content_type, tensors, error_code, error_message, version in items
    ]


def _put_all(put: Callable[[_Data], object], tensors: tuple[Tensor, ...] | None) -> list[object] | None:
    return None if tensors is None else [(t.name, t.datatype, t.shape, put(t.data)) for t in tensors]


def _copied(tensors: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    if tensors is None:
        return None
    return tuple(t if type(t.data) is bytes else t._replace(data=bytes(t.data)) for t in tensors)


def _packb(value: object) -> bytes:
    # a lone surrogate, quoted from a client's JSON in one error text, must not fail the whole batch
    packed: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="replace")
    return packed


def _unpackb(message: bytes, allowed: set[_Types], arena: Arena | None = None) -> tuple[list[list[Any]], Any]:
    try:
        version, *rest = msgpack.unpackb(message, ext_hook=msgpack.ExtType if arena is None else arena.look_up)
    except Exception as error:
        raise ValueError(f"not a packed batch ({len(message)} bytes): {error}") from error
    if version != _VERSION:
        raise ValueError(f"packed batch of format {version}; this side speaks {_VERSION}: upgrade the older one")
    if len(rest) != 2:
        raise ValueError(f"not a packed batch: 2 parts were expected behind the version, found {len(rest)}")
    items, seconds = rest
    if type(items) is not list:
        raise ValueError(f"not a packed batch: a list of items was expected, found {type(items).__name__}")
    for index, item in enumerate(items):
        _check(item, allowed, "item", index)
    return items, seconds


def _stages(seconds: Any) -> Stages | None:
    if seconds is None:
        return None
    if type(seconds) is not list or list(map(type, seconds)) != [float] * len(Stages._fields):
        raise ValueError("not a packed batch: the seconds of its stages are none")
    return Stages(*seconds)


def _check(fields: Any, allowed: set[_Types], label: str, index: int) -> None:
    """TorchServe's port takes messages from anybody: each field has its type before a handler meets it."""
    if type(fields) is not list or tuple(map(type, fields)) not in allowed:
        raise ValueError(f"not a packed batch: {label} {index} has fields of the wrong number or type")


def _tensors(value: list[Any] | None) -> tuple[Tensor, ...] | None:
    if value is None:
        return None
    for index, tensor in enumerate(value):
        _check(tensor, _TENSOR, "tensor", index)
    return tuple(Tensor(name, datatype, tuple(shape), data) for name, datatype, shape, data in value)
