"""Packed batches: what goes in comes out, and what is none is refused with ValueError and nothing else."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.envelope import Outcome, Prediction, Tensor
from formats.packed import pack_outcomes, pack_predictions, unpack_outcomes, unpack_predictions

text = st.text(max_size=20)
tensors = st.none() | st.lists(
    st.builds(Tensor, text, text, st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple), st.binary(max_size=20)),
    max_size=3,
).map(tuple)
predictions = st.builds(
    Prediction,
    model=st.just("m"),
    version=st.just("1"),
    body=st.binary(max_size=100),
    content_type=text,
    accept=text,
    mode=text,
    tensors=tensors,
    outputs=st.lists(text, max_size=3).map(tuple),
    parameters=st.dictionaries(text, text, max_size=3),
    request_id=text,
)
outcomes = st.builds(Outcome, st.binary(max_size=100), text, tensors, text, text, text)
PREDICTION: list[Any] = [b"", "", "", "", None, [], {}, ""]
OUTCOME: list[Any] = [b"", "", None, "", "", ""]


@given(st.lists(predictions, max_size=5))
def test_predictions_come_back(batch: list[Prediction]) -> None:
    assert unpack_predictions(pack_predictions(batch), "m", "1") == batch


@given(st.lists(outcomes, max_size=5))
def test_outcomes_come_back(batch: list[Outcome]) -> None:
    assert unpack_outcomes(pack_outcomes(batch)) == batch


def test_a_deadline_stays_on_its_machine() -> None:
    (back,) = unpack_predictions(pack_predictions([Prediction("m", "1", deadline=12.5)]), "n", "2")

    assert (back.deadline, back.model, back.version) == (float("inf"), "n", "2")


def test_a_view_of_tensor_data_is_packed_like_bytes() -> None:
    tensor = Tensor("x", "UINT8", (3,), memoryview(b"0abc0")[1:4])

    (back,) = unpack_predictions(pack_predictions([Prediction("m", "1", tensors=(tensor,))]), "m", "1")

    assert back.tensors == (Tensor("x", "UINT8", (3,), b"abc"),)


def test_another_version_says_who_must_be_upgraded() -> None:
    message = msgpack.packb((3, []))

    with pytest.raises(ValueError, match="packed batch of format 3; this side speaks 2: upgrade the older one"):
        unpack_predictions(message, "m", "1")
    with pytest.raises(ValueError, match="packed batch of format 3; this side speaks 2: upgrade the older one"):
        unpack_outcomes(message)


def test_half_a_character_in_one_text_does_not_harm_the_others() -> None:
    """`json.loads` makes lone surrogates of `"\\ud800"`, and error texts quote what was sent."""
    back = unpack_outcomes(pack_outcomes([Outcome(error_code="InvalidBody", error_message="'\ud800'"), Outcome(b"ok")]))

    assert [o.error_message for o in back] == ["'?'", ""]
    assert back[1].body == b"ok"


def test_a_message_cut_anywhere_is_refused() -> None:
    tensor = Tensor("x", "FP32", (1,), b"\0\0\0\0")
    requests = pack_predictions([Prediction("m", "1", b"body", "a/b", tensors=(tensor,), parameters={"k": "v"})] * 2)
    answers = pack_outcomes([Outcome(b"body", "a/b", (tensor,))] * 2)

    for size in range(len(requests)):
        with pytest.raises(ValueError, match="not a packed batch"):
            unpack_predictions(requests[:size], "m", "1")
    for size in range(len(answers)):
        with pytest.raises(ValueError, match="not a packed batch"):
            unpack_outcomes(answers[:size])


@pytest.mark.parametrize(
    "garbage",
    [
        *(
            b"",
            b"\xc1",
            b"{}",
            b"\xff\xd8\xff\xe0",
            b"\x91" * 100_000,
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
        ),
        *(
            msgpack.packb(v)
            for v in (
                None,
                1,
                "text",
                [],
                [2],
                [2, []],
                [2, 2, None],
                [2, None, None],
                [2, "ab", None],
                [2, {"a": 1}, None],
                [2, [], None, 3],
            )
        ),
        *(msgpack.packb([2, [item], None]) for item in (None, 1, "eightchr", [], {"a": 1}, [b""] * 8, [b""] * 6)),
        *(
            msgpack.packb([2, [[*PREDICTION[:i], wrong, *PREDICTION[i + 1 :]]], None])
            for i in range(8)
            for wrong in (1, True)
        ),
        *(msgpack.packb([2, [[*OUTCOME[:i], wrong, *OUTCOME[i + 1 :]]], None]) for i in range(6) for wrong in (1, 1.5)),
        *(
            msgpack.packb([2, [[b"", "", "", "", tensors, [], {}, ""]], None])
            for tensors in ([1], [["x", "FP32", [1]]], ["abcd"])
        ),
        *(msgpack.packb([2, [[b"", "", tensors, "", "", ""]], None]) for tensors in ([None], [["x", "FP32", 1, b""]])),
    ],
)
def test_garbage_is_refused_with_value_error(garbage: bytes) -> None:
    for unpack in (lambda m: unpack_predictions(m, "m", "1"), unpack_outcomes):
        with pytest.raises(ValueError, match="packed batch"):
            unpack(garbage)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_batch_or_a_value_error(garbage: bytes) -> None:
    with contextlib.suppress(ValueError):
        unpack_predictions(garbage, "m", "1")
    with contextlib.suppress(ValueError):
        unpack_outcomes(garbage)


@given(st.lists(predictions, min_size=1, max_size=2), st.data())
def test_a_changed_byte_is_a_batch_or_a_value_error(batch: list[Prediction], data: st.DataObject) -> None:
    message = bytearray(pack_predictions(batch))
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(ValueError):
        unpack_predictions(bytes(message), "m", "1")
