"""The contract of every handler: no request of a batch is harmed by its neighbours."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.tensor import export_graph
from formats.envelope import Outcome, Prediction, Tensor
from formats.errors import InvalidBody, NotAcceptable, UnsupportedContentType
from formats.tensors import array_of, tensor_of
from handlers.graph import Arrays, Runtime
from handlers.handler import Answer, Handler, accepted, media_type
from model_store.store import Bundle


def save(path: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def write_lookup(directory: Path) -> Bundle:
    """`index`, (N, width) INT64, to `value`, (N, width) FP32: 0, 10 or 20; an index beyond makes the graph raise."""
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ["N", "W"])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N", "W"])
    table = numpy_helper.from_array(np.array([0, 10, 20], np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["value"])], "g", [index], [value], [table]
    )
    return Bundle.open(export_graph(save(directory / "lookup.onnx", graph), directory / "bundle"))


class Lookup(Handler):
    """Bodies such as `1,2`; `boom` surprises at decoding, a leading 0 at encoding."""

    runs: int = 0

    def decode(self, prediction: Prediction) -> Arrays:
        if prediction.body == b"boom":
            raise ZeroDivisionError
        try:
            return {"index": np.array([[int(v) for v in prediction.body.split(b",")]], np.int64)}
        except ValueError as error:
            raise InvalidBody(f"not numbers: {error}") from error

    def collate(self, inputs: Sequence[Arrays]) -> Arrays:
        self.runs += 1
        return super().collate(inputs)

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        (row,) = outputs["value"]
        if row[0] == 0:
            raise RuntimeError(f"/secret/path of {prediction.model}")
        return Answer(b",".join(b"%d" % v for v in row), "text/csv")


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Lookup:
    return Lookup(write_lookup(tmp_path_factory.mktemp("lookup")), Runtime())


def ask(body: bytes, **fields: object) -> Prediction:
    return Prediction("m", "3", body, "application/json", **fields)  # type: ignore[arg-type]


def ask_raw(*rows: list[int]) -> Prediction:
    return Prediction("m", "3", tensors=(tensor_of("index", np.array(rows, np.int64)),))


def codes(outcomes: list[Outcome]) -> list[str]:
    return [outcome.error_code or outcome.body.decode() for outcome in outcomes]


def test_a_batch_is_answered_in_order_by_one_run(handler: Lookup) -> None:
    before = handler.runs

    outcomes = handler.predict([ask(b"1"), ask(b"2"), ask(b"1")])

    assert codes(outcomes) == ["10", "20", "10"]
    assert {(o.version, o.content_type) for o in outcomes} == {("3", "text/csv")}
    assert handler.runs == before + 1


def test_an_empty_batch_has_no_answers(handler: Lookup) -> None:
    assert handler.predict([]) == []


def test_the_time_of_a_refused_request_went_into_reading_it(handler: Lookup) -> None:
    (outcome,) = handler.predict([ask(b"x")])

    assert outcome.stages is not None
    assert outcome.stages.pre > outcome.stages.post >= 0
    assert outcome.stages.graph == 0


@pytest.mark.parametrize(
    ("bad", "code", "text"),
    [
        (ask(b"x"), "InvalidBody", "not numbers"),
        (ask(b"boom"), "BackendFailed", "model 'm' failed at decode; see the log of its worker"),
        (ask(b"7"), "BackendFailed", "model 'm' failed at graph; see the log of its worker"),
        (ask(b"0"), "BackendFailed", "model 'm' failed at encode; see the log of its worker"),
        (ask(b"1", mode="none"), "InvalidBody", "mode 'none' is unknown; this model has: predict"),
        (ask(b"1", accept="text/html"), "NotAcceptable", "text/html"),
        (Prediction("m", "3", b"1", "text/css"), "UnsupportedContentType", "text/css"),
        (Prediction("m", "3", b"1"), "UnsupportedContentType", "Content type missing"),
        (Prediction("m", "3", tensors=()), "InvalidBody", "missing: index"),
        (ask_raw([1], [9]), "BackendFailed", "failed at graph"),
        (Prediction("m", "3", tensors=(Tensor("index", "INT64", (1, 1), b"\0"),)), "InvalidBody", "got 1 bytes"),
        (Prediction("m", "3", tensors=(Tensor("index", "INT64", (), bytes(8)),)), "InvalidBody", "shape"),
    ],
)
def test_a_bad_request_fails_alone_and_says_no_internals(
    handler: Lookup, bad: Prediction, code: str, text: str
) -> None:
    outcomes = handler.predict([ask(b"1"), bad, ask(b"2"), ask_raw([1])])

    assert codes([outcomes[0], outcomes[2]]) == ["10", "20"]
    assert outcomes[3].tensors is not None
    assert outcomes[1].error_code == code
    assert text in outcomes[1].error_message
    assert "secret" not in outcomes[1].error_message


def test_requests_that_cannot_be_joined_are_each_answered_alone(handler: Lookup) -> None:
    assert codes(handler.predict([ask(b"1"), ask(b"1,2"), ask(b"2,2,2")])) == ["10", "10,20", "20,20,20"]


def test_raw_tensors_of_different_widths_run_in_groups(handler: Lookup) -> None:
    batch = [ask_raw([1]), ask_raw([1, 2]), ask_raw([2], [1]), ask_raw([2, 2]), ask(b"2")]
    before = handler.runs

    outcomes = handler.predict(batch)

    values = [array_of(o.tensors[0]).tolist() for o in outcomes[:4] if o.tensors]
    assert values == [[[10]], [[10, 20]], [[20], [10]], [[20, 20]]]
    assert codes(outcomes[4:]) == ["20"]
    assert handler.runs == before + 3  # widths 1 and 2, and the body


def test_alone_equals_in_a_batch(handler: Lookup) -> None:
    batch = [ask(b"1"), ask(b"2"), ask(b"x"), ask_raw([1], [2]), ask(b"9"), ask(b"2,1"), ask_raw([2, 1])]

    together = handler.predict(batch)

    assert together == [handler.predict([prediction])[0] for prediction in batch]


def test_wanted_outputs_are_held_against_the_graph(handler: Lookup) -> None:
    raw = ask_raw([1])
    raw.outputs = ("other",)

    (outcome,) = handler.predict([raw])

    assert "unexpected inference output 'other'; the model gives: value" in outcome.error_message


def test_a_graph_that_mixes_its_rows_never_hands_them_to_the_wrong_client(tmp_path: Path) -> None:
    """It claims to be batched, but gives one row for all: in a batch that would be nobody's answer."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M"])
    graph = helper.make_graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)], "g", [x], [y])
    bundle = Bundle.open(export_graph(save(tmp_path / "sum.onnx", graph), tmp_path / "bundle", batched=True))
    batch = [Prediction("m", "1", tensors=(tensor_of("x", np.array([v], np.float32)),)) for v in (1, 2, 4)]

    outcomes = Lookup(bundle, Runtime()).predict(batch)

    assert [o.tensors[0].data for o in outcomes if o.tensors] == [struct.pack("<f", v) for v in (1, 2, 4)]


def test_requests_of_a_graph_without_rows_never_share_a_run(tmp_path: Path) -> None:
    """The sum of all, twice: two requests of one number each would get two rows that look right and are not."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1),
        helper.make_node("Concat", ["s", "s"], ["y"], axis=0),
    ]
    bundle = Bundle.open(
        export_graph(save(tmp_path / "m.onnx", helper.make_graph(nodes, "g", [x], [y])), tmp_path / "b")
    )
    batch = [Prediction("m", "1", tensors=(tensor_of("x", np.array([v], np.float32)),)) for v in (1, 5)]

    outcomes = Lookup(bundle, Runtime()).predict(batch)

    assert [array_of(o.tensors[0]).tolist() for o in outcomes if o.tensors] == [[1, 1], [5, 5]]


KNOWN = ("application/json", "application/jsonlines", "text/csv")


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", "application/json"),
        ("  ", "application/json"),
        ("*/*", "application/json"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV; header=present", "text/csv"),
        ("text/*", "text/csv"),
        ("application/*", "application/json"),
        ("text/csv, application/json", "text/csv"),
        ("text/csv;q=0.5, application/json;q=0.8", "application/json"),
        ("text/csv;q=0.5, */*;q=0.1", "text/csv"),
        ("image/png, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "application/jsonlines"),
        ("application/json;q=0, application/jsonlines;q=0, */*;q=0.1", "text/csv"),
        ("application/*, application/json;q=0.1", "application/jsonlines"),  # the most specific range counts
        ("*/*;q=0.9, text/csv;q=0.2", "application/json"),
        ("text/csv;q=abc, application/jsonlines;q=0.1", "application/jsonlines"),
        ("text/csv;q=nan, application/json;q=0.1", "application/json"),
        ("*", "application/json"),
    ],
)
def test_the_accept_header_chooses(accept: str, answer: str) -> None:
    """RFC 9110, section 12.5.1."""
    assert accepted(accept, KNOWN) == answer


@pytest.mark.parametrize(
    "accept", ["image/png", "text/csv;q=0", "*/*;q=0", "json", ",", "image/*, x;q=1", "a" * 10_000]
)
def test_an_accept_header_that_cannot_be_met_is_refused_with_what_can(accept: str) -> None:
    with pytest.raises(NotAcceptable, match=r"possible: application/json, application/jsonlines, text/csv") as caught:
        accepted(accept, KNOWN)

    assert len(str(caught.value)) < 400


def test_parameters_and_case_of_a_content_type_do_not_matter() -> None:
    assert media_type("Text/CSV ; charset=utf-8", KNOWN) == "text/csv"


@pytest.mark.parametrize("content_type", ["", ";", "text", "text/csv/x", "text /csv", "a" * 10_000])
def test_another_content_type_is_refused_with_those_possible(content_type: str) -> None:
    with pytest.raises(UnsupportedContentType, match="expected one of: application/json") as caught:
        media_type(content_type, KNOWN)

    assert len(str(caught.value)) < 400
