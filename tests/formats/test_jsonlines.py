from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import jsonlines
from formats.errors import InvalidBody

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), values, max_size=3), min_size=1, max_size=5))
def test_what_is_written_is_read_back(objects: list[dict[str, Any]]) -> None:
    assert jsonlines.decode(jsonlines.encode(objects)) == objects


def test_blank_lines_line_ends_and_a_byte_order_mark_do_not_matter() -> None:
    found = list(jsonlines.read(io.BytesIO(b'\xef\xbb\xbf{"a":1}\r\n\n  \n{"a":2}')))

    assert found == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"a":1,}', r"line 2: not valid JSON: .* at column 7, near"),
        (b'{"a":NaN}', "line 2: not valid JSON"),
        (b"[1]", "line 2: expected a JSON object, got an array"),
        (b"1", "got a number"),
        (b'"x"', "got a string"),
        (b'{"a":"\xff"}', "line 2: not valid JSON"),
        (b'{"a":' * 10_000, "depth limit exceeded"),
        (b"[" * 10_000, "depth limit exceeded"),
    ],
)
def test_a_bad_line_is_named(line: bytes, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        jsonlines.decode(b'{"a":0}\n' + line + b'\n{"a":2}')


def test_bad_lines_can_be_told_of_and_skipped() -> None:
    told: list[int] = []

    found = list(jsonlines.read(io.BytesIO(b'{"a":0}\nx\n[]\n{"a":3}'), on_bad=lambda number, _: told.append(number)))

    assert [number for number, _ in found] == [1, 4]
    assert told == [2, 3]


@pytest.mark.parametrize(
    ("data", "text"), [(b'{"a":1}\n\n{"a":2}', "line 2: empty"), (b'\xef\xbb\xbf{"a":1}', "byte order mark")]
)
def test_strict_reading_refuses_what_manifests_may_not_have(data: bytes, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        list(jsonlines.read(io.BytesIO(data), strict=True))


@pytest.mark.parametrize("data", [b"", b"\n\n"])
def test_a_body_without_lines_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidBody, match="no JSON lines"):
        jsonlines.decode(data)


def test_numpy_numbers_are_written_and_nan_becomes_null() -> None:
    assert jsonlines.encode([{"a": np.array([1.5, np.nan], np.float32)}]) == b'{"a":[1.5,null]}\n'
