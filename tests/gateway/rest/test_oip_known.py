"""An inference request that repeats another one but for its numbers is understood as if it were new."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.envelope import Outcome, Prediction, Tensor
from formats.errors import PenstockError
from formats.tensors import DATATYPES
from gateway.rest import oip
from gateway.rest.exchange import Head, Request, Response
from gateway.rest.oip_known import KnownRequests
from model_store.manifest import Graph, TensorSpec

LENGTH = b"inference-header-content-length"
OUTPUTS = [TensorSpec(name="y", datatype="FP32", shape=[-1, 2]), TensorSpec(name="n", datatype="INT64", shape=[-1])]


class Model:
    """A deployment and its router: keeps what it is asked, and answers with what it is told."""

    def __init__(self, *inputs: TensorSpec) -> None:
        self.graph = Graph(onnx="m.onnx", inputs=list(inputs), outputs=OUTPUTS, batched=False)
        self.manifest = SimpleNamespace(name="m", version="3", graphs={"g": self.graph})
        self.spec, self.mode = SimpleNamespace(graph="g"), "predict"
        self.outcome = Outcome(tensors=(Tensor("y", "FP32", (1, 2), np.array([0.1, -2], "<f4").tobytes()),))
        self.asked: list[Prediction] = []

    def deployment(self, _name: str, _version: str) -> Model:
        return self

    def in_mode(self, _deployment: Model, _mode: str) -> Model:
        return self

    def submit(self, prediction: Prediction, deliver: Callable[[Outcome, None], None]) -> None:
        self.asked.append(prediction)
        deliver(self.outcome, None)


def ask(model: Any, head: Head, body: bytes) -> tuple[Any, ...]:
    """All that comes of a request: the prediction without what is new each time, and the answer or the refusal."""
    answers: list[Response] = []
    model.asked.clear()
    try:
        oip.infer(Request(head, body, 5.0), model, 60.0, lambda response, _: answers.append(response))
    except PenstockError as error:
        return type(error), str(error)
    (prediction,) = model.asked
    tensors = tuple(each._replace(data=bytes(each.data)) for each in prediction.tensors)
    return replace(prediction, tensors=tensors, request_id=""), *answers


def head(length: int = 0) -> Head:
    headers = {LENGTH: b"%d" % length} if length else {}
    return Head("/v2/models/m/infer", headers)


def alike(model: Model, first: bytes, then: list[bytes], length: int = 0) -> bool:
    """A head that has seen the first twice takes the others as a new head does; returns if it knew the first."""
    used = head(length)
    answered = ask(model, used, first)
    assert ask(model, used, first) == ask(model, used, first) == answered
    for body in then:
        assert ask(model, used, body) == ask(model, head(length), body), body
    return oip._known(used.asked, first) is not None


FLOATS = TensorSpec(name="x", datatype="FP32", shape=[-1, 2])
PLAIN = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]}]}


def text(request: Any, **how: Any) -> bytes:
    return json.dumps(request, **how).encode()


def changed(data: str, plain: str = "[1.5, 2]") -> bytes:
    return text(PLAIN).replace(plain.encode(), data.encode())


OTHERS = [
    "[3, 4.25]", "[[3, 4.25]]", "[1e300, 1]", "[1]", "[1, 2, 3]", "[]", '["a", 1]', "[true, 1]", "[null, 1]",
    "[NaN, 1]", "[1, -Infinity]", "[1, 2", "1, 2]", "7", "null", '"[1, 2]"', "{}", '[1, 2], "id": "7"',
    '[1, 2], "data": [3, 4]', "[1, 2]]", "[1, 2] ", "[1, 2]}]} ", '[1, 2], "parameters": {"binary_data_size": 8}',
    "[99999999999999999999999, 1]", "[" * 200 + "]" * 200,
]  # fmt: skip


@pytest.mark.parametrize("data", OTHERS)
def test_other_numbers_and_what_is_none_are_taken_as_from_a_new_head(data: str) -> None:
    assert alike(Model(FLOATS), text(PLAIN), [changed(data)])


@pytest.mark.parametrize(
    "first",
    [
        text(PLAIN, separators=(",", ":")),
        text(PLAIN, indent=2),
        changed("[[1.5, 2]]"),
        text({"inputs": [{"data": [1, 2], "shape": [1, 2], "datatype": "FP32", "name": "x"}]}),
        text({"inputs": PLAIN["inputs"], "outputs": [{"name": "y"}]}),
        text({"outputs": [{"name": "y", "parameters": {"binary_data": True}}], "inputs": PLAIN["inputs"]}),
        text({"inputs": [PLAIN["inputs"][0] | {"shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]}]}),
    ],
)
def test_however_it_is_written_it_is_known(first: bytes) -> None:
    assert alike(Model(FLOATS), first, [first.replace(b"2", b"7"), first.replace(b"x", b"z"), first + b" ", first[:-1]])


@pytest.mark.parametrize(
    "first",
    [
        text(PLAIN | {"id": "one"}),
        text(PLAIN | {"parameters": {"timeout": 5_000_000}}),
        text({"inputs": [PLAIN["inputs"][0] | {"parameters": {"note": 1}}]}),
        text(PLAIN | {"more": 1}),
        changed('[7, 8], "data": [1.5, 2]'),
        changed('[1.5, 2], "data": [7, 8]'),
        text(PLAIN).replace(b'"data": ', b'"data" : '),
        text({"inputs": [PLAIN["inputs"][0] | {"name": 'x"data":'}]}),
        text({"inputs": PLAIN["inputs"] * 2}),
        text(PLAIN) + b" " * 3000,
        b"no JSON",
        b"[]",
    ],
)
def test_what_may_differ_next_time_or_is_odd_is_read_each_time(first: bytes) -> None:
    assert not alike(Model(FLOATS), first, [text(PLAIN), first])


def test_each_datatype_is_known_but_those_whose_bytes_must_be_looked_at() -> None:
    for datatype, dtype in DATATYPES.items():
        data: list[Any] = [True, False] if dtype.kind == "b" else ["a", "b"] if dtype.kind == "O" else [1, 2]
        first = text({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": data}]})
        model = Model(TensorSpec(name="x", datatype=datatype, shape=[-1]))
        others = [first.replace(b"1", each) for each in (b"300", b"-1", b"1.5", b"7", b"1e400")]
        assert alike(model, first, others) == (datatype not in ("BOOL", "BYTES")), datatype


@pytest.mark.parametrize("outputs", [(), ("y",), ("n", "y"), ("h",), ("s",), ("bad", "y")])
def test_answers_have_the_very_bytes_that_they_have_otherwise(outputs: tuple[str, ...]) -> None:
    every = {
        "y": Tensor("y", "FP32", (1, 2), np.array([0.1, -2], "<f4").tobytes()),
        "n": Tensor("n", "INT64", (0,), b""),
        "h": Tensor('h"\u00e9', "FP16", (1, 2), np.array([0.1, 65504], "<f2").tobytes()),
        "s": Tensor("s", "BYTES", (1,), b"\x04\x00\x00\x00null"),
        "bad": Tensor("bad", "FP64", (2,), np.array([np.nan, 1], "<f8").tobytes()),
    }
    model = Model(FLOATS)
    model.outcome = Outcome(tensors=tuple(every[name] for name in outputs))
    alike(model, text(PLAIN), [changed("[3, 4]")])


def test_an_answer_of_another_shape_or_an_error_is_told() -> None:
    model, used = Model(FLOATS), head()
    for _ in range(3):
        ask(model, used, text(PLAIN))
    wide = Outcome(tensors=(Tensor("y", "FP32", (2, 2), np.arange(4, dtype="<f4").tobytes()),))
    for model.outcome in (wide, Outcome(error_code="ModelError", error_message="no"), Outcome(tensors=())):
        assert ask(model, used, text(PLAIN)) == ask(model, head(), text(PLAIN))


def test_it_is_held_against_the_model_that_answers_now() -> None:
    used = head()
    for _ in range(3):
        ask(Model(FLOATS), used, text(PLAIN))
    for spec in (
        TensorSpec(name="x", datatype="FP64", shape=[-1, 2]),
        TensorSpec(name="z", datatype="FP32", shape=[2]),
    ):
        assert ask(Model(spec), used, text(PLAIN)) == ask(Model(spec), head(), text(PLAIN))


def binary(*sizes: int, **extra: Any) -> bytes:
    inputs = [
        {"name": "xz"[n], "datatype": "FP32", "shape": [size // 4], "parameters": {"binary_data_size": size}}
        for n, size in enumerate(sizes)
    ]
    return text({"inputs": inputs} | extra)


PAIR = (TensorSpec(name="x", datatype="FP32", shape=[-1]), TensorSpec(name="z", datatype="FP32", shape=[-1]))


def test_binary_tensors_behind_known_json() -> None:
    said = binary(8, 4, outputs=[{"name": "y"}])
    then = [said + b"abcdefghijkl", said + bytes(11), said + bytes(13), said, said.replace(b"8", b"7") + bytes(12)]
    assert alike(Model(*PAIR), said + bytes(12), then, len(said))


@pytest.mark.parametrize("default", [True, False])
def test_which_outputs_are_binary_is_known(default: bool) -> None:
    said = binary(8, 4, parameters={"binary_data_output": default})
    assert alike(Model(*PAIR), said + bytes(12), [said + b"abcdefghijkl"], len(said))
    assert alike(Model(FLOATS), text(PLAIN | {"parameters": {"binary_data_output": default}}), [text(PLAIN)])


@pytest.mark.parametrize("extra", [{"id": "a"}, {"parameters": {"binary_data_output": True, "timeout": 9_000_000}}])
def test_binary_requests_that_differ_each_time_are_not_known(extra: dict[str, Any]) -> None:
    said = binary(8, 4, **extra)
    assert not alike(Model(*PAIR), said + bytes(12), [said + b"abcdefghijkl"], len(said))


def test_a_head_keeps_few() -> None:
    model, used = Model(FLOATS), head()
    for number in range(50):
        for _ in range(2):
            ask(model, used, text({"inputs": [PLAIN["inputs"][0]], "outputs": [{"name": "y"}] * (number + 1)}))
    known: KnownRequests = used.asked.known
    assert sum(map(len, known._open.values())) <= 8


def test_a_request_that_comes_once_is_not_kept() -> None:
    used = head()
    ask(Model(FLOATS), used, text(PLAIN))
    assert oip._known(used.asked, text(PLAIN)) is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_byte_is_changed_it_means_what_it_means_to_a_new_head(data: st.DataObject) -> None:
    first = data.draw(st.sampled_from([text(PLAIN), text(PLAIN, separators=(",", ":")), changed("[[1.5, 2]]")]))
    other = bytearray(first)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(other) - 1))
        piece = data.draw(st.sampled_from([b"", b"[", b"]", b'"', b",", b"1", b"{", b"}", b":", b"\\", b"e", b" "]))
        other[at : at + data.draw(st.integers(0, 2))] = piece
    alike(Model(FLOATS), first, [bytes(other)])


def test_clients_see_no_difference(http: httpx.Client) -> None:
    def answer(data: Any, name: str = "a") -> httpx.Response:
        tensors = [{"name": name, "datatype": "FP32", "shape": [1, 2], "data": data}]
        both = [*tensors, {"name": "b", "datatype": "FP32", "shape": [1, 2], "data": [2, -4]}]
        return http.post("/v2/models/arithmetic/infer", json={"inputs": both})

    def identity(number: float) -> httpx.Response:
        said = binary(8, 8).replace(b'"x"', b'"a"').replace(b'"z"', b'"b"').replace(b"[2]", b"[1, 2]")
        tensors = np.array([number, 1, 2, -4], "<f4").tobytes()
        return http.post(
            "/v2/models/arithmetic/infer", content=said + tensors, headers={LENGTH.decode(): str(len(said))}
        )

    for first in (1.5, 2.5, 3.5, 4.5):
        assert answer([first, 2.5]).json()["outputs"][0]["data"] == [first / 2, -0.625]
        assert identity(first).json()["outputs"][0]["data"] == [first / 2, -0.25]
    assert "ragged" not in answer([1]).text
    assert answer([1]).status_code == answer(["1", 2]).status_code == answer([1, 2], name="c").status_code == 400
