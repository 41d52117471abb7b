"""The protobuf `Record` of `application/x-recordio-protobuf`: named tensors, their labels, and a little text.

Messages come from `formats/protos/record.proto`, compiled into a descriptor pool of its own, so that another copy of
the same messages in the process (the SageMaker SDK's) does no harm.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import Any, BinaryIO, Literal, NamedTuple, Unpack

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.protos import record_pb2
from formats.record_layout import FEATURES, LABEL
from formats.record_tensors import NUM_SLOTS, Kind, Numbers, numbers_of, slots_of
from formats.record_walk import Spans, Walker
from formats.recordio import (
    MAX_RECORD,
    BadRecord,
    Reading,
    Window,
    decode_records,
    encode_record,
    next_record,
)

__all__ = [
    "BytesValue",
    "Feature",
    "Record",
    "Tensor",
    "decode",
    "decode_body",
    "dense",
    "encode",
    "encode_body",
    "read",
    "tensor_in",
    "write",
]

_TENSOR_KINDS: dict[str, np.dtype[Any]] = {
    "float32_tensor": np.dtype("<f4"),
    "float64_tensor": np.dtype("<f8"),
    "int32_tensor": np.dtype("<i4"),
}
_KIND_OF = {dtype: kind for kind, dtype in _TENSOR_KINDS.items()}
_FEW = 256
# of bytes in a body: below, learning a layout costs more than it saves
_LARGE = 1 << 15
MAX_DENSE = 1 << 26
"""Largest number of elements that `dense` allocates for a sparse tensor: its shape is a claim, not data."""


# not frozen: that would double the time to make one, and a file holds millions
@dataclass(slots=True, eq=False)
class Tensor:
    values: NDArray[Any]
    """(N,) float32, float64 or int32."""
    keys: NDArray[np.uint64] | None = None
    """(N,) flat row-major indices of a sparse tensor; None when dense."""
    shape: tuple[int, ...] = ()
    """Empty when the file does not say; always there when sparse."""


@dataclass(frozen=True, slots=True)
class BytesValue:
    values: tuple[bytes, ...]
    content_type: str | None = None


Feature = Tensor | BytesValue


@dataclass(slots=True)
class Record:
    features: Mapping[str, Feature] = field(default_factory=dict)
    label: Mapping[str, Feature] = field(default_factory=dict)
    uid: str | None = None
    metadata: str | None = None
    configuration: str | None = None


# ---- reading -----------------------------------------------------------------------------------------------------


def decode(payload: bytes) -> Record:
    """One record from its unframed bytes.

    Raises:
        InvalidBody: not a record, or a tensor whose keys, values and shape do not fit each other.
    """
    message = record_pb2.Record()
    try:
        message.ParseFromString(payload)
        # the maps are only decoded when touched: a key that is not UTF-8 shows here
        # (`items` of these maps is written in Python, and four times as slow as asking for each key)
        features, label = message.features, message.label
        return Record(
            {name: _feature(name, features[name]) for name in features},
            {name: _feature(name, label[name]) for name in label},
            _text(message, "uid"),
            _text(message, "metadata"),
            _text(message, "configuration"),
        )
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidBody(f"not a valid Record: {error}") from error


def decode_body(data: bytes) -> list[Record]:
    """The records of a request body.

    Raises:
        InvalidBody: names the record's number.
    """
    if len(data) >= _LARGE:
        return list(read(io.BytesIO(data), "body"))
    records = []
    for number, payload in enumerate(decode_records(data)):
        try:
            records.append(decode(payload))
        except InvalidBody as error:
            raise InvalidBody(f"record {number}: {error}") from error
    return records


def read(stream: BinaryIO, name: str = "stream", **options: Unpack[Reading]) -> Iterator[Record]:
    """Yield the records of a stream; options as in `formats.recordio.read_records`.

    Raises:
        InvalidBody: `record N at byte B: ...`.
    """
    window = Window(stream, options.get("start", 0), options.get("stop"))
    max_record, on_bad = options.get("max_record", MAX_RECORD), options.get("on_bad")
    walker = Walker(slots_of, NUM_SLOTS, max_record)
    number = 0
    while window.fill(1):
        # usual records by whole blocks, what is unusual one at a time: to the same result
        if (block := _Block.next(walker, window)) is not None:
            yield from block.records()
            number += block.num_records
            continue
        offset = window.offset
        try:
            framed = next_record(window, max_record)
            assert framed is not None
            record = decode(framed[1])
        except (BadRecord, InvalidBody) as error:
            offset = error.offset if isinstance(error, BadRecord) else offset
            if not options.get("skip_bad"):
                raise InvalidBody(f"{name}: record {number} at byte {offset}: {error}") from error
            if on_bad is not None:
                on_bad(number, offset, str(error))
            if isinstance(error, BadRecord) and not window.seek_head(offset + 4):
                return
        else:
            yield record
        number += 1
    if number == 0 and not options.get("start") and options.get("stop") is None:
        raise InvalidBody(f"{name}: no records (0 bytes)")


class _Block(NamedTuple):
    """The tensors of the first `num_records` records of a block."""

    num_records: int
    tensors: list[tuple[Kind, Numbers]]

    @classmethod
    def next(cls, walker: Walker, window: Window) -> _Block | None:
        """None when the next record is not usual."""
        spans = walker.spans(window)
        if spans is None:
            return None
        block = cls._of(spans)
        walker.consume(window, spans, block.num_records)
        return block if block.num_records else None

    @classmethod
    def _of(cls, spans: Spans) -> _Block:
        kinds: tuple[Kind, ...] = spans.tag  # type: ignore[assignment]  # as `slots_of` gives it
        tensors = []
        sound = np.ones(spans.num_records, np.bool_)
        try:
            for number, kind in enumerate(kinds):
                numbers, good = numbers_of(spans, number, kind)
                tensors.append((kind, numbers))
                sound &= good
        except ValueError:
            return cls(0, [])  # broken numbers: the ordinary decoder says where
        return cls(len(sound) if sound.all() else int(sound.argmin()), tensors)

    def records(self) -> Iterator[Record]:
        # by a few hundred: the objects take far more memory than the bytes they come from
        for begin in range(0, self.num_records, _FEW):
            end = min(begin + _FEW, self.num_records)
            features, label = (
                {
                    kind.name.decode(): _tensors(kind, numbers, begin, end)
                    for kind, numbers in self.tensors
                    if kind.side == side
                }
                for side in (FEATURES, LABEL)
            )
            yield from map(Record, _maps(features, end - begin), _maps(label, end - begin))


def _tensors(kind: Kind, numbers: Numbers, begin: int, end: int) -> list[Tensor]:
    bounds = numbers.offsets[begin : end + 1].tolist()
    values = _pieces(numbers.values, bounds)
    keys: Iterable[NDArray[np.uint64] | None] = repeat(None) if numbers.keys is None else _pieces(numbers.keys, bounds)
    return list(map(Tensor, values, keys, repeat(kind.shape)))


def _pieces(array: NDArray[Any], bounds: list[int]) -> list[NDArray[Any]]:
    # copies: one record that is kept must not keep its block
    return [array[low:high].copy() for low, high in pairwise(bounds)]


def _maps(tensors: dict[str, list[Tensor]], count: int) -> list[dict[str, Feature]]:
    if len(tensors) == 1:
        ((name, found),) = tensors.items()
        return [{name: tensor} for tensor in found]
    if len(tensors) == 2:
        ((name, found), (other, more)) = tensors.items()
        return [{name: tensor, other: second} for tensor, second in zip(found, more, strict=True)]
    return [{name: found[row] for name, found in tensors.items()} for row in range(count)]


def tensor_in(features: Mapping[str, Feature], name: str, where: str = "features") -> Tensor:
    """The named tensor of a record's features or labels.

    Raises:
        InvalidBody: absent, with the names that are there; or bytes instead of numbers.
    """
    found = features.get(name)
    if found is None:
        present = ", ".join(f"'{key}'" for key in sorted(features)) or "none"
        raise InvalidBody(f"{where} lack '{name}'; present: {present}")
    if isinstance(found, BytesValue):
        raise InvalidBody(f"{where} '{name}' holds bytes, expected a tensor of numbers")
    return found


def dense(tensor: Tensor, *, max_elements: int = MAX_DENSE) -> NDArray[Any]:
    """The tensor as an array of its shape, or (N,) where it has none; a sparse one is filled up with zeros.

    Raises:
        InvalidBody: a sparse shape of more than `max_elements`.
    """
    if tensor.keys is None:
        return _reshaped(tensor.values, tensor.shape) if tensor.shape else tensor.values
    size = math.prod(tensor.shape)
    if size > max_elements:
        raise InvalidBody(f"sparse shape {list(tensor.shape)} has {size} elements; at most {max_elements} are accepted")
    array = np.zeros(size, tensor.values.dtype)
    array[tensor.keys.astype(np.int64)] = tensor.values
    return _reshaped(array, tensor.shape)


def _reshaped(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return values.reshape(shape)
    except ValueError as error:  # one axis of 0 may stand beside axes that no array can have
        raise InvalidBody(f"shape {list(shape)} is impossible: {error}") from error


def _text(message: record_pb2.Record, name: Literal["uid", "metadata", "configuration"]) -> str | None:
    if not message.HasField(name):
        return None
    value: str | bytes = getattr(message, name)
    # protobuf hands out bytes where a proto2 string is not UTF-8
    return value.decode() if isinstance(value, bytes) else value


def _feature(name: str, value: Any) -> Feature:
    kind = value.WhichOneof("value")
    if kind is None:
        raise InvalidBody(f"feature '{name}' is empty: it holds neither a tensor nor bytes")
    message = getattr(value, kind)
    if kind == "bytes":
        content_type = message.content_type if message.HasField("content_type") else None
        if isinstance(content_type, bytes):
            raise InvalidBody(f"feature '{name}' has a content type that is not UTF-8: {content_type[:40]!r}")
        return BytesValue(tuple(message.value), content_type)
    values = _numbers(message, _TENSOR_KINDS[kind])
    shape, keys = message.shape, message.keys
    return Tensor(values) if not shape and not keys else _shaped(name, values, keys, tuple(shape))


def _shaped(name: str, values: NDArray[Any], found: Any, shape: tuple[int, ...]) -> Tensor:
    # a row of zeros has neither values nor keys when it is written sparse; only its shape tells it from an empty one
    if not found and len(values):
        if math.prod(shape) != len(values):
            raise InvalidBody(f"feature '{name}' has {len(values)} values, its shape {list(shape)} {math.prod(shape)}")
        return Tensor(values, None, shape)
    keys = np.fromiter(found, np.uint64, len(found))
    if len(keys) != len(values):
        raise InvalidBody(f"feature '{name}' has {len(keys)} keys and {len(values)} values")
    if not shape:
        raise InvalidBody(f"feature '{name}' is sparse (it has keys) and lacks its shape")
    if len(keys) and (last := int(np.maximum.reduce(keys))) >= math.prod(shape):
        raise InvalidBody(f"feature '{name}' has key {last}, its shape {list(shape)} ends before")
    return Tensor(values, keys, shape)


def _numbers(message: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    values = message.values
    count = len(values)
    if count == 0 or dtype.kind == "i":
        return np.fromiter(values, dtype, count)
    # values is field 1, so serialising puts it first: a tag, its length, then the little-endian numbers. Faster than a
    # visit to each number, and no signalling NaN becomes a quiet one on its way through a C double
    packed = message.SerializeToString()
    at = 1
    while packed[at] & 0x80:
        at += 1
    return np.frombuffer(packed, dtype, count, at + 1)


# ---- writing -----------------------------------------------------------------------------------------------------


def encode(record: Record) -> bytes:
    """The unframed bytes of a record; keys are sorted, so that equal records give equal bytes.

    Raises:
        ValueError: a tensor of another dtype than float32, float64 or int32.
    """
    message = record_pb2.Record(uid=record.uid, metadata=record.metadata, configuration=record.configuration)
    for target, source in ((message.features, record.features), (message.label, record.label)):
        for name, feature in source.items():
            _put(target[name], name, feature)
    return message.SerializeToString(deterministic=True)


def encode_body(records: Iterable[Record]) -> bytes:
    """Framed records, back to back."""
    return b"".join(encode_record(encode(record), split=False) for record in records)


def write(stream: BinaryIO, records: Iterable[Record]) -> int:
    """Write framed records and return their number."""
    count = 0
    for record in records:
        stream.write(encode_record(encode(record), split=False))
        count += 1
    return count


def _put(value: Any, name: str, feature: Feature) -> None:
    if isinstance(feature, BytesValue):
        value.bytes.SetInParent()
        value.bytes.value.extend(feature.values)
        if feature.content_type is not None:
            value.bytes.content_type = feature.content_type
        return
    kind = _KIND_OF.get(feature.values.dtype.newbyteorder("<"))
    if kind is None:
        raise ValueError(f"feature '{name}' has dtype {feature.values.dtype}; a Record holds float32, float64 or int32")
    tensor = getattr(value, kind)
    tensor.SetInParent()  # an empty tensor is still a tensor
    tensor.values.extend(feature.values.ravel().tolist())
    if feature.keys is not None:
        tensor.keys.extend(feature.keys.tolist())
    tensor.shape.extend(feature.shape)
