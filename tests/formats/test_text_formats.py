"""object2vec pairs, BlazingText lines and vocabularies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats import labelled_text, token_pairs, vocabulary
from formats.errors import InvalidBody
from formats.labelled_text import LabelledText, parse_line, parse_row
from formats.token_pairs import TokenPair, parse_pair
from formats.vocabulary import BOS, EOS, PAD, UNK

ids = st.lists(st.integers(0, 2**31 - 1), max_size=9)
words = st.text(st.characters(codec="utf-8", exclude_characters=" \t\r\n\v\f\0"), min_size=1, max_size=6).filter(
    lambda word: not word.startswith("__label__")
)


def test_the_pairs_of_the_contract_are_read() -> None:
    """object2vec contract, section 2.1."""
    data = b'{"in0":[6,17,606,4],"in1":[16,21,13],"label":0}\n{"in0":[196],"in1":[242],"label":3.0}\n'

    assert list(token_pairs.read(io.BytesIO(data))) == [
        TokenPair([6, 17, 606, 4], [16, 21, 13], 0.0),
        TokenPair([196], [242], 3.0),
    ]


@given(st.lists(st.builds(TokenPair, ids, ids, st.floats(-(2.0**99), 2.0**99, width=32)), min_size=1, max_size=4))
def test_pairs_that_are_written_are_read_back(pairs: list[TokenPair]) -> None:
    stream = io.BytesIO()
    token_pairs.write(stream, pairs)
    stream.seek(0)

    assert list(token_pairs.read(stream)) == pairs


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"in0": [1], "label": 0}, "'in1' is missing; present: 'in0', 'label'"),
        ({"in0": [1], "in1": [1]}, "'label' is missing"),
        ({"label": 1}, "neither 'in0' nor 'in1'"),
        ({"in0": "1 2", "in1": [1], "label": 0}, "'in0' is '1 2', expected a list"),
        ({"in0": [1, -2], "in1": [1], "label": 0}, r"'in0'\[1\] is '-2'"),
        ({"in0": [1, 2.5], "in1": [1], "label": 0}, r"'in0'\[1\] is '2.5'"),
        ({"in0": [True], "in1": [1], "label": 0}, r"'in0'\[0\] is 'True'"),
        ({"in0": [2**31], "in1": [1], "label": 0}, r"'in0'\[0\] is '2147483648'"),
        ({"in0": [1], "in1": [1], "label": "1"}, "'label' is '1', expected a number"),
        ({"in0": [1], "in1": [1], "label": True}, "'label' is True"),
    ],
)
def test_a_bad_pair_names_its_field(row: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        parse_pair(row, labelled=True)


def test_a_request_may_ask_for_one_side() -> None:
    assert parse_pair({"in1": [3], "other": 1}) == TokenPair(None, [3])


def test_a_bad_pair_in_a_file_names_its_line() -> None:
    with pytest.raises(InvalidBody, match=r"train.jsonl, line 2: 'in1' is missing"):
        list(token_pairs.read(io.BytesIO(b'{"in0":[],"in1":[],"label":1}\n{"in0":[1]}'), "train.jsonl"))


@pytest.mark.parametrize(
    ("line", "labels", "tokens"),
    [
        ("__label__sports the team won .", ("__label__sports",), ("the", "team", "won", ".")),
        ("stocks __label__4 fell __label__7", ("__label__4", "__label__7"), ("stocks", "fell")),
        ("no\tlabel\v here\0now", (), ("no", "label", "here", "now")),
        ("  ", (), ()),
    ],
)
def test_labels_stand_anywhere_in_a_line(line: str, labels: tuple[str, ...], tokens: tuple[str, ...]) -> None:
    """BlazingText contract, sections 2.1 and 2.2."""
    assert parse_line(line) == LabelledText(labels, tokens)


@given(
    st.lists(
        st.builds(
            LabelledText,
            st.lists(words.map(lambda word: "__label__" + word), min_size=1, max_size=2).map(tuple),
            st.lists(words, max_size=5).map(tuple),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_texts_that_are_written_are_read_back(examples: list[LabelledText]) -> None:
    stream = io.BytesIO()
    labelled_text.write(stream, examples)
    stream.seek(0)

    assert list(labelled_text.read(stream)) == examples


def test_bytes_that_are_not_utf8_survive() -> None:
    data = b"__label__a caf\xe9\n"
    stream = io.BytesIO()

    labelled_text.write(stream, labelled_text.read(io.BytesIO(data)))

    assert stream.getvalue() == data


def test_what_would_be_read_back_otherwise_is_not_written() -> None:
    with pytest.raises(ValueError, match="example 0"):
        labelled_text.write(io.BytesIO(), [LabelledText(("__label__two words",), ())])


def test_a_file_without_labels_is_refused() -> None:
    with pytest.raises(InvalidBody, match="no line has a token that starts with '__label__'"):
        list(labelled_text.read(io.BytesIO(b"plain text\n")))


def test_the_manifest_rows_of_the_contract_are_read() -> None:
    """BlazingText contract, section 2.3."""
    data = b'{"source":"the team won","label":1}\n{"source":"stocks fell","label":[4,7]}\n'

    assert list(labelled_text.read_manifest(io.BytesIO(data))) == [
        LabelledText(("__label__1",), ("the", "team", "won")),
        LabelledText(("__label__4", "__label__7"), ("stocks", "fell")),
    ]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"label": 1}, "'source' is missing"),
        ({"source": 3, "label": 1}, "'source' is 3"),
        ({"source": "x"}, "'label' is missing"),
        ({"source": "x", "label": "two words"}, "'label' is 'two words'"),
        ({"source": "x", "label": [1, {}]}, "'label' is"),
    ],
)
def test_a_bad_manifest_row_names_its_field(row: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        parse_row(row)


@given(st.text(" \n\tabé", max_size=60), st.integers(1, 5))
def test_a_corpus_is_cut_into_lines_of_few_tokens(text: str, limit: int) -> None:
    expected = [
        tuple(tokens[at : at + limit])
        for tokens in (line.split() for line in text.split("\n"))
        for at in range(0, len(tokens), limit)
    ]

    assert list(labelled_text.read_texts(io.BytesIO(text.encode()), max_tokens=limit)) == expected


def test_a_giant_line_is_read_in_pieces() -> None:
    pieces = list(labelled_text.read_texts(io.BytesIO(b"word " * 300_000)))

    assert sum(map(len, pieces)) == 300_000
    assert max(map(len, pieces)) == 1024


def test_a_word_without_end_is_refused() -> None:
    with pytest.raises(InvalidBody, match="a word is longer"):
        list(labelled_text.read_texts(io.BytesIO(b"x" * 3_000_000)))


def test_a_vocabulary_is_ordered_as_the_original_script_orders_it() -> None:
    """seq2seq contract, section 2.4: by (count, token) descending; the specials come first and on top of the limit."""
    lines = [line.split() for line in ["b a c a", "b d <unk>", "e e e"]]

    assert list(vocabulary.build(lines, num_words=4)) == ["<pad>", "<unk>", "<s>", "</s>", "e", "b", "a", "d"]
    assert list(vocabulary.build(lines, min_count=3))[4:] == ["e"]


def test_a_vocabulary_that_is_written_is_read_back(tmp_path: Path) -> None:
    words = vocabulary.build([["zwei", "männer", "reden"]])
    vocabulary.write(tmp_path / "vocab.json", words)

    assert vocabulary.read(tmp_path / "vocab.json") == words
    assert "männer" in (tmp_path / "vocab.json").read_text(encoding="utf-8")
    assert vocabulary.ids_of(words, ["zwei", "drei"]) == [4, UNK]
    assert vocabulary.tokens_of(words)[: UNK + 1] == ["<pad>", "<unk>"]
    assert (PAD, BOS, EOS) == (0, 2, 3)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"[]", "expected a JSON object"),
        (b"{}", "at least one token"),
        (b'{"a":0}', "'<pad>' has id None, expected 0"),
        (b'{"<pad>":1,"<unk>":0,"<s>":2,"</s>":3}', "'<pad>' has id 1, expected 0"),
        (b'{"<pad>":0,"<unk>":1,"<s>":2,"</s>":3,"a":9}', "ids reach 9 with 5 tokens"),
        (b'{"<pad>":0,"<unk>":1,"<s>":2,"</s>":3,"a":3}', "'</s>' and 'a' share id 3"),
        (b'{"a":"0"}', "token 'a' has id '0'"),
        (b'{"a":true}', "token 'a' has id True"),
    ],
)
def test_a_bad_vocabulary_names_its_token(data: bytes, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        vocabulary.decode(data)


def test_object2vecs_vocabularies_need_no_specials() -> None:
    assert vocabulary.decode(b'{"the":7,"of":2}', specials=False) == {"the": 7, "of": 2}
