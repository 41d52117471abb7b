"""Outcomes carry an answer or an error, never both by accident."""

from __future__ import annotations

from formats.envelope import Outcome, Prediction
from formats.errors import InvalidBody, Overloaded


def test_an_outcome_of_an_error_gives_that_error_back() -> None:
    outcome = Outcome.of_error(InvalidBody("field 'x' is missing"))

    assert not outcome.ok
    assert outcome.error_code == "InvalidBody"
    assert type(outcome.error()) is InvalidBody
    assert str(outcome.error()) == "field 'x' is missing"


def test_an_error_without_text_is_still_an_error() -> None:
    assert not Outcome.of_error(Overloaded()).ok


def test_an_empty_answer_is_an_answer() -> None:
    assert Outcome().ok


def test_predictions_do_not_share_their_parameters() -> None:
    assert Prediction("m", "1").parameters is not Prediction("m", "1").parameters
    assert Prediction("m", "1").deadline == float("inf")
