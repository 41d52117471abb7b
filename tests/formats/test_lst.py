from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import InvalidBody
from formats.lst import ListEntry, parse_row, read_lst, write_lst


def rows(text: str) -> list[ListEntry]:
    return list(read_lst(io.BytesIO(text.encode())))


def test_the_rows_of_the_contract_are_read() -> None:
    """Image classification contract, section 2.1."""
    assert rows("12\t0.000000\troses/a.jpg\n3\t1\ttulips/deep/b.png\n0\t1\t0\t1\tstreet/1.jpg\n") == [
        ListEntry(12, (0.0,), "roses/a.jpg"),
        ListEntry(3, (1.0,), "tulips/deep/b.png"),
        ListEntry(0, (1.0, 0.0, 1.0), "street/1.jpg"),
    ]


def test_line_ends_and_a_byte_order_mark_and_blank_lines_do_not_matter() -> None:
    assert rows("\ufeff1\t2\ta.jpg\r\n\r\n\n2\t3\tb c.jpg") == [
        ListEntry(1, (2.0,), "a.jpg"),
        ListEntry(2, (3.0,), "b c.jpg"),
    ]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("1\ta.jpg", "2 tab separated columns"),
        ("1 0 a.jpg", "1 tab separated columns"),
        ("x\t0\ta.jpg", r"index \(column 1\) is 'x'"),
        ("1.5\t0\ta.jpg", r"index \(column 1\) is '1.5'"),
        ("-1\t0\ta.jpg", r"index \(column 1\) is '-1'"),
        ("1\troses\ta.jpg", r"label \(column 2\) is 'roses'"),
        ("1\t0\tnan\ta.jpg", r"label \(column 3\) is 'nan'"),
        ("1\t0\t", "path .* is empty"),
        ("1\t0\t/etc/passwd", "absolute"),
        ("1\t0\tC:\\x.jpg", "absolute"),
        ("1\t0\t\\\\host\\share", "absolute"),
        ("1\t0\ta/../../x.jpg", "leaves"),
        ("1\t0\t..\\x.jpg", "leaves"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line_and_its_text(row: str, text: str) -> None:
    with pytest.raises(InvalidBody, match=text) as caught:
        rows("5\t1\tgood.jpg\n" + row)

    assert "line 2" in str(caught.value)
    assert repr(row) in str(caught.value)


def test_a_file_without_line_ends_is_refused_before_it_is_held() -> None:
    with pytest.raises(InvalidBody, match="longer than"):
        rows("1" * 2_000_000)


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(InvalidBody, match="line 1: not UTF-8 at byte 2"):
        list(read_lst(io.BytesIO(b"1\t\xff\xfe\ta.jpg")))


paths = st.text("abc .-_/é", min_size=1).filter(lambda p: p.strip() == p and not p.startswith("/") and ".." not in p)


@given(
    st.lists(
        st.builds(
            ListEntry,
            st.integers(0, 2**53),
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5).map(tuple),
            paths,
        )
    )
)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, entries: list[ListEntry]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.lst"

    assert write_lst(path, entries) == len(entries)
    assert list(read_lst(path)) == entries


@pytest.mark.parametrize("path", ["a\tb.jpg", "a\nb.jpg", "/a.jpg", " a.jpg"])
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="entry 0"):
        write_lst(tmp_path / "x.lst", [ListEntry(0, (1.0,), path)])


def test_whole_numbers_are_written_as_im2rec_writes_them(tmp_path: Path) -> None:
    write_lst(tmp_path / "x.lst", [ListEntry(7, (1.0, 0.25), "a.jpg")])

    assert (tmp_path / "x.lst").read_text() == "7\t1.000000\t0.25\ta.jpg\n"


@given(st.text(max_size=60))
def test_any_text_is_a_row_or_an_error(row: str) -> None:
    try:
        entry = parse_row(row)
    except InvalidBody:
        return
    assert not entry.path.startswith("/")
