from __future__ import annotations

import io
import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import parquet, timeseries
from formats.errors import InvalidBody
from formats.timeseries import Series, parse_series

FIXTURES = Path(__file__).parent / "fixtures"
floats = st.floats(-1e30, 1e30)
series = st.builds(
    lambda start, target, cat, rows: Series(
        start,
        np.array(target, np.float64),
        cat,
        None if rows is None else np.arange(rows * (len(target) + 1), dtype=np.float64).reshape(rows, -1),
    ),
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0)),
    st.lists(floats | st.just(float("nan")), min_size=1, max_size=9),
    st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    st.none() | st.integers(1, 3),
)


def plain(each: Series) -> tuple[Any, ...]:
    features = None if each.dynamic_feat is None else each.dynamic_feat.tolist()
    return each.start, np.nan_to_num(each.target, nan=-0.125).tolist(), each.cat, features


def test_the_records_of_the_contract_are_read() -> None:
    """DeepAR contract, section 2.1."""
    data = (
        b'{"start":"2024-03-01 00:00:00","target":[12,14,"NaN",11],"cat":[0,2],"dynamic_feat":[[0,1,0,0]]}\n'
        b'{"start":"2024-03-02 06:00:00","target":[5.5,null,6.0],"cat":[1,0],"dynamic_feat":[[1,0,0]]}\n'
    )

    first, second = timeseries.read(io.BytesIO(data))

    assert plain(first) == (datetime(2024, 3, 1), [12, 14, -0.125, 11], (0, 2), [[0, 1, 0, 0]])
    assert plain(second) == (datetime(2024, 3, 2, 6), [5.5, -0.125, 6], (1, 0), [[1, 0, 0]])


@settings(deadline=None)
@given(st.lists(series, min_size=1, max_size=4))
def test_json_lines_that_are_written_are_read_back(written: list[Series]) -> None:
    stream = io.BytesIO()
    timeseries.write(stream, written)
    stream.seek(0)

    assert [plain(each) for each in timeseries.read(stream)] == [plain(each) for each in written]


@settings(deadline=None, max_examples=30)
@given(st.lists(series, min_size=1, max_size=4))
def test_parquet_that_is_written_is_read_back(written: list[Series]) -> None:
    stream = io.BytesIO()
    timeseries.write_parquet(stream, written)
    stream.seek(0)

    assert [plain(each) for each in timeseries.read_parquet(stream)] == [plain(each) for each in written]


@pytest.mark.parametrize("start", [datetime(2024, 3, 1), date(2024, 3, 1)])
def test_parquet_times_may_be_times_or_days(start: date) -> None:
    stream = io.BytesIO()
    parquet.write(stream, [{"start": start, "target": [1, 2]}])
    stream.seek(0)

    assert [plain(each) for each in timeseries.read_parquet(stream)] == [(datetime(2024, 3, 1), [1, 2], None, None)]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"target": [1]}, "'start' is missing; present: target"),
        ({"start": "2024-01-01"}, "'target' is missing"),
        ({"start": "yesterday", "target": []}, "'start' is 'yesterday', expected a time"),
        ({"start": 5, "target": []}, "'start' is '5'"),
        ({"start": "2024-01-01T00:00:00+01:00", "target": []}, "without a time zone"),
        ({"start": "2024-01-01", "target": 5}, "'target' is '5', expected an array"),
        ({"start": "2024-01-01", "target": [1, "2"]}, r"'target'\[1\] is '2', expected a number"),
        ({"start": "2024-01-01", "target": [True]}, r"'target'\[0\] is 'True'"),
        ({"start": "2024-01-01", "target": [[1]]}, r"'target'\[0\] is '\[1\]'"),
        ({"start": "2024-01-01", "target": [1e999]}, r"'target'\[0\] is inf"),
        ({"start": "2024-01-01", "target": [10**400]}, "target"),
        ({"start": "2024-01-01", "target": [], "cat": 1}, "'cat' is '1'"),
        ({"start": "2024-01-01", "target": [], "cat": [0, -1]}, r"'cat'\[1\] is '-1'"),
        ({"start": "2024-01-01", "target": [], "cat": [0.5]}, r"'cat'\[0\] is '0.5'"),
        ({"start": "2024-01-01", "target": [], "cat": [float("nan")]}, r"'cat'\[0\] is 'nan'"),
        ({"start": "2024-01-01", "target": [], "cat": [True]}, r"'cat'\[0\] is 'True'"),
        ({"start": "2024-01-01", "target": [1], "dynamic_feat": [1]}, r"'dynamic_feat\[0\]' is '1'"),
        ({"start": "2024-01-01", "target": [1], "dynamic_feat": [[1], [1, 2]]}, r"'dynamic_feat'\[1\] has 2 values"),
        ({"start": "2024-01-01", "target": [1, 2], "dynamic_feat": [[1]]}, "fewer than the 2 of 'target'"),
        ({"start": "2024-01-01", "target": [1], "dynamic_feat": [[None]]}, r"is nan, expected a number from -1e\+30"),
        ({"start": "2024-01-01", "target": [1, 2e30]}, r"'target'\[1\] is 2e\+30, expected a number from .* or null"),
        ({"start": "2024-01-01", "target": [1], "feat_static_cat": ["a"]}, r"'cat'\[0\] is 'a'"),
    ],
)
def test_a_bad_series_names_its_field(row: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        parse_series(row)


def test_whole_floats_are_categories_in_lines_and_in_parquet() -> None:
    row = {"start": "2024-01-01", "target": [1.0], "cat": [0.0, 7.0]}
    lines, table = io.BytesIO(json.dumps(row).encode()), io.BytesIO()
    parquet.write(table, [row])

    for found in (*timeseries.read(lines), *timeseries.read_parquet(table)):
        assert found.cat == (0, 7)
        assert [type(each) for each in found.cat] == [int, int]


def test_a_series_knows_where_it_was_read() -> None:
    row = {"start": "2024-01-01", "target": [1.0]}
    lines, table = io.BytesIO(b"\n" + json.dumps(row).encode()), io.BytesIO()
    parquet.write(table, [row])

    (line,), (record,) = timeseries.read(lines, "a.json"), timeseries.read_parquet(table, "b.parquet")
    assert (line.file, line.place) == ("a.json", "line 2")
    assert (record.file, record.place) == ("b.parquet", "row 0")


def test_gluonts_names_are_taken_in_lines_and_in_parquet() -> None:
    row = {"start": "2024-01-01", "target": [1.0, 2.0], "feat_static_cat": [3], "feat_dynamic_real": [[0.0, 5.0]]}
    lines, table = io.BytesIO(json.dumps(row).encode()), io.BytesIO()
    parquet.write(table, [row])

    for found in (*timeseries.read(lines), *timeseries.read_parquet(table)):
        assert plain(found) == (datetime(2024, 1, 1), [1.0, 2.0], (3,), [[0.0, 5.0]])


def test_empty_categories_and_features_are_none_and_the_fields_own_names_come_first() -> None:
    row = {"start": "2024-01-01", "target": [1.0], "cat": [], "dynamic_feat": []}
    assert plain(parse_series(row)) == (datetime(2024, 1, 1), [1.0], None, None)
    assert parse_series(row | {"cat": [1], "feat_static_cat": [2]}).cat == (1,)


def test_a_bad_line_is_named() -> None:
    with pytest.raises(InvalidBody, match=r"train.json, line 2: 'target' is missing"):
        list(timeseries.read(io.BytesIO(b'{"start":"2024-01-01","target":[]}\n{"start":"2024-01-01"}'), "train.json"))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"hello" * 10, b"PAR1" + bytes(40) + b"PAR1"])
def test_what_is_not_parquet_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidBody, match=r"x.parquet: not a readable Parquet file"):
        list(timeseries.read_parquet(io.BytesIO(data), "x.parquet"))


def test_a_damaged_parquet_file_does_not_end_the_process() -> None:
    """Found by fuzzing: Arrow's column metadata would end it; its reader only complains."""
    with (FIXTURES / "parquet_bad_levels.parquet").open("rb") as stream, pytest.raises(InvalidBody, match="histogram"):
        list(parquet.read(stream))


def test_a_parquet_file_without_a_needed_column_names_those_present() -> None:
    stream = io.BytesIO()
    parquet.write(stream, [{"start": "2024-01-01", "values": [1.0]}])

    with pytest.raises(InvalidBody, match="column 'target' is missing; present: start, values"):
        list(timeseries.read_parquet(stream))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_flipped_byte_in_parquet_gives_rows_or_a_clean_error(draw: st.DataObject) -> None:
    stream = io.BytesIO()
    parquet.write(stream, [{"start": "2024-01-01", "target": [1.0, 2.0]}] * 3)
    data = bytearray(stream.getvalue())
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        found = list(timeseries.read_parquet(io.BytesIO(bytes(data))))
    except InvalidBody:
        return
    assert len(found) <= 3
