"""Translations as clients ask for them (Seq2seq contract, section 6)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from exporters.export import export
from formats import record
from formats.envelope import Outcome, Prediction
from formats.record import Record, Tensor, tensor_in
from formats.tensors import tensor_of
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from model_store.store import Bundle
from tests.trainers.seq2seq.test_beam_search import plain_beam_search
from tests.translators import WORDS, make_network, write_checkpoint

pytestmark = [pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")]
JSON, LINES, RECORDS = "application/json", "application/jsonlines", "application/x-recordio-protobuf"
SENTENCES = ["cat dog", "ant bee cat dog emu fox gnu hen", "jay", "hen unknown bee"]


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def handler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Handler:
    directory = tmp_path_factory.mktemp("translator")
    bundle = export(write_checkpoint(directory / "model", seed=5), directory / "bundle")
    return load_handler(Bundle.open(bundle), Runtime(engine=request.param))


def ask(body: object, content_type: str = JSON, accept: str = "") -> Prediction:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return Prediction("translator", "1", data, content_type, accept)


def only(handler: Handler, prediction: Prediction) -> Outcome:
    (outcome,) = handler.predict([prediction])
    return outcome


def predictions(handler: Handler, *instances: dict[str, Any]) -> list[dict[str, Any]]:
    outcome = only(handler, ask({"instances": instances}))
    assert outcome.ok, outcome.error_message
    found: list[dict[str, Any]] = orjson.loads(outcome.body)["predictions"]
    return found


def expected(text: str, beam_size: int = 5, alpha: float = 1.0) -> str:
    source = [4 + WORDS.index(word) if word in WORDS else 1 for word in text.split()]
    limit = int(np.ceil(len(source) * 1.5)) + 1
    with torch.inference_mode():
        tokens, _ = plain_beam_search(make_network(5), source, limit, beam_size, alpha, 0.0)
    return " ".join("<unk>" if token == 1 else WORDS[token - 4].upper() for token in tokens)


def records(*sources: list[int], **more: Any) -> bytes:
    empty = Tensor(np.zeros(0, np.int32))
    return record.encode_body(
        Record({"source": Tensor(np.array(each, np.int32)), "target": empty}, **more) for each in sources
    )


def ids_in(body: bytes) -> list[list[int]]:
    return [tensor_in(each.features, "target").values.tolist() for each in record.decode_body(body)]


def test_sentences_are_answered_in_order_as_a_plain_search_answers_them(handler: Handler) -> None:
    found = predictions(handler, *({"data": each} for each in SENTENCES))

    assert found == [{"target": expected(each)} for each in SENTENCES]
    assert len({each["target"] for each in found}) == len(SENTENCES)


def test_requests_that_share_a_batch_are_answered_as_if_alone(handler: Handler) -> None:
    asked = [ask({"instances": [{"data": each}]}) for each in SENTENCES]
    asked.insert(2, ask({"instances": [{"data": 3}]}))
    asked.append(ask(b'{"source": "cat dog"}\n', LINES))
    outcomes = handler.predict(asked)

    alone = [only(handler, each).body for each in asked]
    assert [each.body for each in outcomes] == alone
    assert [each.ok for each in outcomes] == [True, True, False, True, True, True]
    assert "instance 0: 'data' is 3, expected a text" in outcomes[2].error_message


def test_lines_have_a_source_and_a_target(handler: Handler) -> None:
    outcome = only(handler, ask(b'{"source": "cat dog"}\n{"source": "jay"}\n', LINES))

    assert outcome.content_type == LINES
    lines = [orjson.loads(line) for line in outcome.body.splitlines()]
    assert lines == [{"target": expected("cat dog")}, {"target": expected("jay")}]


def test_records_hold_ids_and_every_type_answers_every_other(handler: Handler) -> None:
    body = records([6, 7], [13, 3], [2, 6, 7, 3])
    outcome = only(handler, ask(body, RECORDS, RECORDS))
    texts = orjson.loads(only(handler, ask(body, RECORDS, JSON)).body)["predictions"]
    again = only(handler, ask({"instances": [{"data": "cat dog"}]}, JSON, RECORDS))

    assert outcome.content_type == RECORDS
    found = ids_in(outcome.body)
    assert len(found) == 3
    assert found[0] == found[2] == ids_in(again.body)[0]
    assert [each["target"] for each in texts] == [expected("cat dog"), expected("jay"), expected("cat dog")]
    assert all(0 not in each and 3 not in each for each in found)


@pytest.mark.parametrize("wish", ["true", True, "True"])
def test_attention_has_a_row_for_each_token_of_the_answer(handler: Handler, wish: object) -> None:
    plain, told = predictions(
        handler,
        {"data": "cat dog emu fox gnu", "configuration": {"attention_matrix": "false"}},
        {"data": "cat dog emu", "configuration": {"attention_matrix": wish}},
    )
    matrix = np.array(told["matrix"])

    assert "matrix" not in plain
    assert matrix.shape == (len(told["target"].split()), 3)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


def test_beams_and_penalties_are_of_each_instance(handler: Handler) -> None:
    text = "ant bee cat dog emu fox gnu hen"
    asked = [{"beam_size": 1}, {"beam_size": 3}, {"length_penalty_alpha": 0}, {}]
    found = predictions(handler, *({"data": text, "configuration": each} for each in asked))

    answers = [expected(text, 1), expected(text, 3), expected(text, 5, 0.0), expected(text)]
    assert [each["target"] for each in found] == answers
    assert len(set(answers)) > 1


def test_a_records_configuration_counts(handler: Handler) -> None:
    body = records([6, 7], configuration='{"beam_size": 1, "attention_matrix": true}')
    (found,) = orjson.loads(only(handler, ask(body, RECORDS, JSON)).body)["predictions"]

    assert found["target"] == expected("cat dog", 1) != expected("cat dog")
    assert len(found["matrix"][0]) == 2


def test_of_nothing_nothing_is_made(handler: Handler) -> None:
    found = predictions(handler, {"data": ""}, {"data": "cat dog"}, {"data": "  "})

    assert [each["target"] for each in found] == ["", expected("cat dog"), ""]
    assert ids_in(only(handler, ask(records([], [3]), RECORDS)).body) == [[], []]
    matrix = predictions(handler, {"data": "", "configuration": {"attention_matrix": True}})[0]["matrix"]
    assert matrix == []


def test_what_is_longer_than_training_is_translated_in_pieces(handler: Handler) -> None:
    long = " ".join([*WORDS, "cat", "dog"])
    (found,) = predictions(handler, {"data": long, "configuration": {"attention_matrix": True}})

    first, second = expected(" ".join(WORDS)), expected("cat dog")
    assert found["target"] == f"{first} {second}".strip()
    matrix = np.array(found["matrix"])
    assert matrix.shape == (len(found["target"].split()), 12)
    assert matrix[: len(first.split()), 10:].max() == 0
    assert matrix[len(first.split()) :, :10].max() == 0


def test_raw_tensors_are_rows_of_any_mixture(handler: Handler) -> None:
    source = np.array([[6, 7, 0], [0, 0, 0], [13, 0, 0]], np.int64)
    given: dict[str, np.ndarray[Any, Any]] = {
        "source": source,
        "max_length": np.array([4, 4, 3], np.int64),
        "beam_size": np.array([5, 5, 5], np.int64),
        "length_penalty": np.array([[1, 0]] * 3, np.float32),
        "attention_wanted": np.array([False, False, True]),
    }
    tensors = tuple(tensor_of(name, value) for name, value in given.items())
    outcome = only(handler, Prediction("translator", "1", tensors=tensors))

    assert outcome.ok, outcome.error_message
    found = {each.name: each for each in outcome.tensors or ()}
    assert found["attention"].shape[2] == 3
    assert found["score"].shape == (3,)


@pytest.mark.parametrize(
    ("instance", "text"),
    [
        ({"source": "cat"}, "has no 'data', expected a text .*; 'source' is the key of JSON Lines"),
        ({"data": ["cat"]}, r"'data' is \['cat'\], expected a text"),
        ("cat", "instance 0 is 'cat', expected an object of 'data'"),
        ({"data": "cat <pad>"}, "token '<pad>' in a sentence"),
        ({"data": "cat", "configuration": "x"}, "'configuration' is 'x', expected an object"),
        ({"data": "cat", "configuration": {"beam": 2}}, "'configuration' has beam; known: attention_matrix, beam_size"),
        ({"data": "cat", "configuration": {"beam_size": 0}}, "'beam_size' is 0, expected an integer from 1 to 100"),
        ({"data": "cat", "configuration": {"beam_size": True}}, "'beam_size' is True"),
        ({"data": "cat", "configuration": {"beam_size": 15}}, "'beam_size' is 15; there are only 14 tokens"),
        ({"data": "cat", "configuration": {"attention_matrix": 1}}, "'attention_matrix' is 1, expected true or false"),
        ({"data": "cat", "configuration": {"length_penalty_alpha": -1}}, "expected a number from 0 to 10"),
    ],
)
def test_bad_instances_are_named(handler: Handler, instance: object, text: str) -> None:
    outcome = only(handler, ask({"instances": [instance]}))

    assert not outcome.ok
    assert re.search(text, outcome.error_message), outcome.error_message


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b"{", JSON, "not valid JSON"),
        (b'{"instances": []}', JSON, "expected a JSON object of 'instances'"),
        (b'{"data": "cat"}', LINES, "has no 'source', expected a text .* 'data' is the key of JSON"),
        (b"abc", RECORDS, "unable to evaluate payload provided: body: record 0"),
        (b"", RECORDS, "unable to evaluate payload provided"),
        (records([6, 14]), RECORDS, "record 0: a source token is 14, expected an id from 1 to 13"),
        (records([6], [0]), RECORDS, "record 1: a source token is 0"),
        (record.encode_body([Record({"data": Tensor(np.zeros(1, np.int32))})]), RECORDS, "features lack 'source'"),
        (record.encode_body([Record({"source": Tensor(np.zeros(1, np.float32))})]), RECORDS, "'source' is float32"),
        (b"cat", "text/plain", "Content type text/plain not supported"),
    ],
)
def test_bad_bodies_are_named(handler: Handler, body: bytes, content_type: str, text: str) -> None:
    outcome = only(handler, ask(body, content_type))

    assert not outcome.ok
    assert re.search(text, outcome.error_message), outcome.error_message
