"""Scores and embeddings as clients ask for them (Object2Vec contract, section 6)."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from exporters.export import export
from formats.envelope import Outcome, Prediction
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from model_store.store import Bundle
from tests.pair_models import write_checkpoint

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")
LINES = "application/jsonlines"
PAIR: dict[str, Any] = {"in0": [6, 17, 3], "in1": [16, 2]}


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Handler:
    directory = tmp_path_factory.mktemp("pairs")
    checkpoint = write_checkpoint(directory / "model", enc0_network="hcnn", enc0_layers=2)
    return load_handler(Bundle.open(export(checkpoint, directory / "bundle")), Runtime())


def ask(body: object, content_type: str = "application/json", accept: str = "", mode: str = "") -> Prediction:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return Prediction("pairs", "1", data, content_type, accept, mode)


def only(handler: Handler, prediction: Prediction) -> Outcome:
    (outcome,) = handler.predict([prediction])
    return outcome


def predictions(handler: Handler, instances: list[Any], content_type: str = "application/json") -> list[Any]:
    outcome = only(handler, ask({"instances": instances}, content_type))
    assert outcome.ok, outcome.error_message
    found: list[Any] = orjson.loads(outcome.body)["predictions"]
    return found


def test_pairs_are_scored_and_single_items_are_embedded(handler: Handler) -> None:
    pair, first, second = predictions(handler, [PAIR, {"in0": [6]}, {"in1": [6]}])

    assert sum(pair["scores"]) == pytest.approx(1, abs=1e-6)
    assert len(pair["scores"]) == 3
    assert len(first["embeddings"]) == len(second["embeddings"]) == 10
    assert first != second


def test_lines_are_answered_in_lines_unless_json_is_wished(handler: Handler) -> None:
    body = b"".join(orjson.dumps(each) + b"\n" for each in (PAIR, {"in0": [1]}))
    lines, wished = only(handler, ask(body, LINES)), only(handler, ask(body, LINES, "application/json"))

    assert lines.content_type == LINES
    assert [list(json.loads(line)) for line in lines.body.splitlines()] == [["scores"], ["embeddings"]]
    assert wished.content_type == "application/json"
    assert len(json.loads(wished.body)["predictions"]) == 2


def test_a_label_of_a_test_file_is_not_looked_at(handler: Handler) -> None:
    assert predictions(handler, [PAIR | {"label": "x"}]) == predictions(handler, [PAIR])


def test_lists_are_cut_as_in_training_or_as_the_content_type_says(handler: Handler) -> None:
    long = {"in0": list(range(20)), "in1": [1]}
    eight, three = ({"in0": list(range(size)), "in1": [1]} for size in (8, 3))
    cut = "application/json; infer_max_seqlens=3,1"

    assert predictions(handler, [long]) == predictions(handler, [eight])
    assert predictions(handler, [long], cut)[0]["scores"] == pytest.approx(predictions(handler, [three])[0]["scores"])
    assert predictions(handler, [long], cut.replace(" ", "")) == predictions(handler, [long], cut)


@pytest.mark.parametrize("wrong", ["3", "0,1", "x,1", "1,5001", "1,2,3", "²,1"])
def test_wrong_lengths_in_the_content_type_are_refused(handler: Handler, wrong: str) -> None:
    outcome = only(handler, ask({"instances": [PAIR]}, f"application/json;infer_max_seqlens={wrong}"))

    assert outcome.error_code == "InvalidRequest"
    assert "infer_max_seqlens" in outcome.error_message


def test_neighbours_of_other_lengths_and_bad_ones_change_nothing(handler: Handler) -> None:
    bodies: list[Any] = [
        {"instances": [PAIR]}, {"instances": [{"in0": [1]}]}, {"instances": [3]},
        {"instances": [{"in0": [], "in1": [1, 2, 3, 4, 5, 6, 7]}, {"in1": [9]}]},
    ]  # fmt: skip
    together = handler.predict([ask(body) for body in bodies])

    assert [outcome.ok for outcome in together] == [True, True, False, True]
    for body, outcome in zip(bodies, together, strict=True):
        if outcome.ok:
            for ours, theirs in zip(
                json.loads(outcome.body)["predictions"],
                json.loads(only(handler, ask(body)).body)["predictions"],
                strict=True,
            ):
                for name, values in theirs.items():
                    assert ours[name] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body"),
        (b"[]", "'instances'"),
        (b"\xff\xfe", "body"),
        ({"instances": []}, "at least one object"),
        ({"instances": [3]}, "instance 0 is 3"),
        ({"instances": [PAIR, {}]}, "instance 1: neither 'in0' nor 'in1'"),
        ({"instances": [{"in0": "x"}]}, "instance 0: 'in0' is 'x'"),
        ({"instances": [{"in0": [1.5]}]}, "instance 0: 'in0'[0] is '1.5'"),
        ({"instances": [{"in0": [-1]}]}, "instance 0: 'in0'[0] is '-1'"),
        ({"instances": [PAIR, {"in0": [1, 20]}]}, "instance 1: 'in0'[1] is 20, not less than vocab_size=20"),
        (b'{"instances": [{"in0": [NaN]}]}', "body"),
        (b'{"instances": [{"in0": [1]', "body"),
    ],
)
def test_bad_input_is_named_by_instance_and_field(handler: Handler, body: object, text: str) -> None:
    outcome = only(handler, ask(body))

    assert outcome.error_code == "InvalidBody"
    assert text in outcome.error_message


def test_other_content_types_are_refused(handler: Handler) -> None:
    assert only(handler, ask({"instances": [PAIR]}, "text/csv")).error_code == "UnsupportedContentType"
    assert only(handler, ask({"instances": [PAIR]}, accept="image/png")).error_code == "NotAcceptable"


def test_ten_thousand_instances_are_one_request_in_order(handler: Handler) -> None:
    found = predictions(handler, [PAIR, {"in0": [4]}] * 5000)

    assert len(found) == 10_000
    assert [list(each) for each in found[-2:]] == [["scores"], ["embeddings"]]
