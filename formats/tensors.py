"""Tensors of the Open Inference Protocol v2 to numpy arrays and back (protocol contract, datatype table)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from formats.envelope import Tensor
from formats.errors import InvalidBody

__all__ = ["DATATYPES", "array_of", "datatype_of", "num_elements", "tensor_of"]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_MAX_ELEMENTS = 2**63 - 1
_MAX_RANK = 64  # numpy's limit


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype, `BYTES` for strings.

    Raises:
        ValueError: the protocol has no such type.
    """
    name = _NAMES.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "SUO":
        return "BYTES"
    name = _NAMES.get(dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype)
    if name is None:
        raise ValueError(f"dtype {dtype} has no Open Inference Protocol datatype")
    return name


def num_elements(name: str, shape: Sequence[int]) -> int:
    """Product of a shape, checked before anything is allocated.

    Raises:
        InvalidBody: a dimension is negative or not an integer, there are more than 64 of them, or the product (of those
            that are not 0) passes 2**63 - 1.
    """
    if len(shape) > _MAX_RANK:
        raise InvalidBody(f"input '{name}': {len(shape)} dimensions; at most {_MAX_RANK} are possible")
    count = 1
    for dimension in shape:
        if type(dimension) is not int or dimension < 0:
            raise InvalidBody(f"input '{name}': shape {list(shape)} must hold integers of 0 or more")
        count *= dimension or 1
    # numpy counts bytes, at most 8 an element, and leaves zeros out, so that a view of no elements has strides
    if count > _MAX_ELEMENTS // 8:
        raise InvalidBody(f"input '{name}': shape {list(shape)} has more elements than any memory holds")
    return 0 if 0 in shape else count


def array_of(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """A view of the tensor's bytes (a copy only for `BOOL` and `BYTES`).

    Raises:
        InvalidBody: unknown datatype, or the bytes are not exactly as many as the shape asks for.
    """
    dtype = DATATYPES.get(tensor.datatype)
    if dtype is None:
        raise InvalidBody(f"input '{tensor.name}': unknown datatype '{tensor.datatype}'; known: {', '.join(DATATYPES)}")
    count = num_elements(tensor.name, tensor.shape)
    if tensor.datatype == "BYTES":
        return _decode_bytes(tensor, count)
    if len(tensor.data) != count * dtype.itemsize:
        raise InvalidBody(
            f"input '{tensor.name}': got {len(tensor.data)} bytes, {tensor.datatype} of shape {list(tensor.shape)} "
            f"has {count * dtype.itemsize}"
        )
    if tensor.datatype == "BOOL":  # a numpy bool that holds another byte than 0 or 1 misbehaves
        return np.not_equal(np.frombuffer(tensor.data, np.uint8), 0).reshape(tensor.shape)
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def tensor_of(name: str, array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """The wire form of an array; strings become UTF-8 `BYTES`."""
    datatype = datatype_of(array.dtype)
    if datatype == "BYTES":
        elements = [e if isinstance(e, bytes) else str(e).encode() for e in array.ravel()]
        data = b"".join(struct.pack("<I", len(e)) + e for e in elements)
    else:
        data = np.ascontiguousarray(array, DATATYPES[datatype]).tobytes()
    return Tensor(name, datatype, tuple(array.shape), data)


def _decode_bytes(tensor: Tensor, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    data, at, elements = memoryview(tensor.data), 0, []
    # each element takes at least its length prefix: a huge claimed count ends here, before the loop
    if count * 4 > len(data):
        raise InvalidBody(f"input '{tensor.name}': {len(data)} bytes cannot hold {count} BYTES elements")
    for index in range(count):
        if at + 4 > len(data):
            raise InvalidBody(f"input '{tensor.name}': BYTES element {index} has no length at byte {at}")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise InvalidBody(f"input '{tensor.name}': BYTES element {index} of {length} bytes runs past the end")
        elements.append(bytes(data[at : at + length]))
        at += length
    if at != len(data):
        raise InvalidBody(f"input '{tensor.name}': {len(data) - at} bytes left over after {count} BYTES elements")
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(tensor.shape)
