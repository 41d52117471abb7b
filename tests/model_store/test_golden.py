"""The golden answer: its form, its tolerance, and numbers that are none."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from formats.envelope import Outcome
from formats.errors import InvalidBody, NotReady
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle, seal
from tests.model_store.bundles import plain_manifest, write_plain_bundle


def bundle_that_expects(tmp_path: Path, answer: object) -> Bundle:
    directory = write_plain_bundle(tmp_path / "bundle")
    (directory / "answer.json").write_bytes(answer if isinstance(answer, bytes) else orjson.dumps(answer))
    seal(directory, plain_manifest())
    return Bundle.open(directory)


def check(tmp_path: Path, expected: object, actual: object) -> None:
    body = actual if isinstance(actual, bytes) else orjson.dumps(actual)
    check_golden(bundle_that_expects(tmp_path, expected), Outcome(body, "application/json"))


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ([1.0, 2.0], [1.25, 1.75]),  # exactly at the tolerance of 0.25
        ([1], [1.0]),
        ({"a": [1, {"b": "x"}], "c": None}, {"c": None, "a": [1.1, {"b": "x"}]}),
        ([], []),
        ({}, {}),
        (True, True),
        ("text", "text"),
    ],
)
def test_an_answer_within_the_tolerance_passes(tmp_path: Path, expected: object, actual: object) -> None:
    check(tmp_path, expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual", "text"),
    [
        ([1.0, 2.0], [1.0, 2.26], "strays by 0.26, tolerance 0.25"),
        ([1.0], [1.0, 1.0], "expected"),
        ({"a": 1}, {"b": 1}, "expected"),
        ({"a": 1}, {"a": 1, "b": 1}, "expected"),
        ([1.0], 1.0, "expected"),
        (["x"], ["y"], r"expected x, got y"),
        ([1.0], [None], "expected 1.0, got None"),
        ([1.0], ["1.0"], "expected 1.0, got 1.0"),
        (True, 1, "expected True, got 1"),
        (0, False, "expected 0, got False"),
        ([1.0], b"[NaN]", "golden request"),
        ([1.0], b"[1.0", "golden request"),
        ([1.0], b"", "golden request"),
        ([1.0], b"\xff\xd8\xff", "golden request"),
        (b"not JSON", [1.0], "golden request"),
    ],
)
def test_another_answer_is_not_ready(tmp_path: Path, expected: object, actual: object, text: str) -> None:
    with pytest.raises(NotReady, match=text):
        check(tmp_path, expected, actual)


def test_a_failed_answer_is_not_ready_and_says_why(tmp_path: Path) -> None:
    outcome = Outcome.of_error(InvalidBody("field 'x' is missing"))

    with pytest.raises(NotReady, match="failed: InvalidBody: field 'x' is missing"):
        check_golden(bundle_that_expects(tmp_path, [1]), outcome)


def test_the_golden_request_is_what_the_manifest_says(tmp_path: Path) -> None:
    prediction = golden_prediction(bundle_that_expects(tmp_path, [1]))

    assert prediction is not None
    assert (prediction.body, prediction.content_type, prediction.accept) == (b'{"x": [1]}', "a/b", "application/json")


def test_a_bundle_may_come_without_a_golden_request(tmp_path: Path) -> None:
    directory = write_plain_bundle(tmp_path / "bundle")
    seal(directory, plain_manifest().model_copy(update={"golden": None}))

    assert golden_prediction(Bundle.open(directory)) is None
