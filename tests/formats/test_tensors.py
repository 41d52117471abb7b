"""Tensors of the Open Inference Protocol, both ways, and sizes that lie (protocol contract, datatype table)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from formats.envelope import Tensor
from formats.errors import InvalidBody
from formats.tensors import DATATYPES, array_of, datatype_of, num_elements, tensor_of

FIXED = [name for name in DATATYPES if name != "BYTES"]
SIZES = {"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8}
SIZES |= {"FP16": 2, "FP32": 4, "FP64": 8}
Array = np.ndarray[Any, np.dtype[Any]]


def texts(values: list[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.mark.parametrize("datatype", FIXED)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (2, 0, 3)])
def test_every_datatype_comes_back(datatype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(DATATYPES[datatype])

    tensor = tensor_of("x", array)
    back = array_of(tensor)

    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, shape)
    assert len(tensor.data) == array.size * SIZES[datatype]
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(st.sampled_from([DATATYPES[n] for n in FIXED]), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
def test_every_value_comes_back(array: Array) -> None:
    assert array_of(tensor_of("x", array)).tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_every_byte_string_comes_back(elements: list[bytes]) -> None:
    assert array_of(tensor_of("x", texts(elements))).tolist() == elements


def test_text_becomes_utf8_each_after_its_length() -> None:
    tensor = tensor_of("x", np.array([["a", "é"]]))

    assert tensor == Tensor("x", "BYTES", (1, 2), b"\x01\0\0\0a\x02\0\0\0\xc3\xa9")


def test_data_is_little_endian_and_row_major_whatever_the_array_was() -> None:
    expected = struct.pack("<6i", 0, 3, 1, 4, 2, 5)
    array = np.arange(6, dtype=">i4").reshape(2, 3)

    assert tensor_of("x", array.T).data == expected
    assert tensor_of("x", np.asfortranarray(array.T)).data == expected


def test_a_fixed_size_tensor_is_viewed_not_copied() -> None:
    data = bytes(8)

    assert np.shares_memory(array_of(Tensor("x", "FP32", (2,), data)), np.frombuffer(data, np.uint8))


def test_any_byte_but_zero_is_true() -> None:
    array = array_of(Tensor("x", "BOOL", (4,), b"\x00\x01\x02\xff"))

    assert array.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "longdouble", "V4"])
def test_a_dtype_without_a_name_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="has no Open Inference Protocol datatype"):
        datatype_of(np.dtype(dtype))


@pytest.mark.parametrize("datatype", FIXED)
@pytest.mark.parametrize("surplus", [-1, 1])
def test_too_few_or_too_many_bytes_are_refused_with_both_counts(datatype: str, surplus: int) -> None:
    right = 6 * SIZES[datatype]

    with pytest.raises(
        InvalidBody, match=rf"'x': got {right + surplus} bytes, {datatype} of shape \[2, 3\] has {right}"
    ):
        array_of(Tensor("x", datatype, (2, 3), bytes(right + surplus)))


@pytest.mark.parametrize("datatype", ["", "fp32", "FP8", "BF16", "STRING"])
def test_an_unknown_datatype_is_refused_with_the_known_ones(datatype: str) -> None:
    with pytest.raises(InvalidBody, match=f"'x': unknown datatype '{datatype}'; known: BOOL, UINT8"):
        array_of(Tensor("x", datatype, (1,), b"\0"))


@pytest.mark.parametrize("shape", [(-1,), (1.0,), ("1",), (True,), (None,), (2, -3)])
def test_a_dimension_is_a_whole_number_of_zero_or_more(shape: Any) -> None:
    with pytest.raises(InvalidBody, match="must hold integers of 0 or more"):
        num_elements("x", shape)


@pytest.mark.parametrize("datatype", ["UINT8", "FP64", "BYTES"])
@pytest.mark.parametrize(
    "shape", [(2**62,), (2**63,), (2**32, 2**32), (0, 2**62, 8), (0, 2**64), (2**70, 0), (1,) * 65, (10**9,)]
)
def test_a_shape_beyond_reason_is_refused_before_anything_is_allocated(datatype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidBody, match="input 'x'"):
        array_of(Tensor("x", datatype, shape, b""))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes cannot hold 2 BYTES elements"),
        (b"\0\0\0\0", "4 bytes cannot hold 2"),
        (b"\x05\0\0\0abcde", "element 1 has no length at byte 9"),
        (b"\x05\0\0\0abcde\0\0\0", "element 1 has no length at byte 9"),
        (b"\xff\xff\xff\xff\0\0\0\0", "element 0 of 4294967295 bytes runs past the end"),
        (b"\0\0\0\0\x02\0\0\0a", "element 1 of 2 bytes runs past the end"),
        (b"\0\0\0\0\0\0\0\0a", "1 bytes left over after 2"),
    ],
)
def test_byte_strings_whose_lengths_lie_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        array_of(Tensor("x", "BYTES", (2,), data))
