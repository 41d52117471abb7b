"""A gRPC request that repeats another one but for its raw tensors is understood as if it were new."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf.message import DecodeError

from formats.envelope import Outcome, Tensor
from formats.errors import PenstockError
from formats.protos import open_inference_pb2 as pb
from gateway.grpc import oip_known
from gateway.grpc.oip import prediction_methods
from gateway.grpc.oip_known import KnownRequests
from gateway.grpc.service import PredictionMethod
from gateway.router import Router
from model_store.manifest import Graph, TensorSpec
from tests.gateway.live import LiveGateway

OUTPUTS = [TensorSpec(name="y", datatype="FP32", shape=[-1, 2]), TensorSpec(name="n", datatype="INT64", shape=[-1])]
INPUT = pb.ModelInferRequest.InferInputTensor
OUTPUT = pb.ModelInferRequest.InferRequestedOutputTensor
ANSWER = (Tensor("y", "FP32", (1, 2), bytes(range(8))), Tensor("n", "INT64", (0,), b""))


class Model:
    """A deployment and its router."""

    def __init__(self, *inputs: TensorSpec) -> None:
        graph = Graph(onnx="m.onnx", inputs=list(inputs), outputs=OUTPUTS, batched=False)
        self.manifest = SimpleNamespace(name="m", version="3", graphs={"g": graph})
        self.spec, self.mode = SimpleNamespace(graph="g"), "predict"

    def deployment(self, _name: str, _version: str) -> Model:
        return self

    def in_mode(self, _deployment: Model, _mode: str) -> Model:
        return self


MODEL = Model(TensorSpec(name="x", datatype="FP32", shape=[-1, 2]))
PAIR = Model(*(TensorSpec(name=name, datatype="INT64", shape=[-1]) for name in "xz"))


def method(model: Model = MODEL) -> PredictionMethod:
    return prediction_methods(cast("Router", model))["ModelInfer"]


def outcome_of(model: Any, infer: PredictionMethod, data: Any, outputs: tuple[Tensor, ...] = ANSWER) -> Any:
    """All that comes of a message: the prediction and the response, or the refusal."""
    try:
        parsed = infer.parse(data)
        deployment, prediction = infer.prepare(parsed, 5.0, 60.0)
    except (DecodeError, PenstockError) as error:
        return type(error), str(error)
    tensors = tuple(each._replace(data=bytes(each.data)) for each in prediction.tensors or ())
    response = infer.answer(parsed, deployment, Outcome(tensors=outputs))
    assert pb.ModelInferResponse.FromString(response).SerializeToString() == response
    return deployment is model, replace(prediction, tensors=tensors), response


def is_known(infer: PredictionMethod, data: Any) -> bool:
    try:
        return infer.parse(data).known is not None
    except DecodeError:
        return False


def alike(model: Model, first: bytes | bytearray, then: list[bytes]) -> bool:
    """A method that has seen the first takes the others as a new one does; returns whether it knew the first."""
    used = method(model)
    answered = outcome_of(model, used, first)
    known = is_known(used, first)
    assert outcome_of(model, used, first) == outcome_of(model, used, first) == answered
    for data in then:
        assert outcome_of(model, used, data) == outcome_of(model, method(model), data), data
    return known


def ask(**changed: Any) -> bytes:
    fields: dict[str, Any] = {
        "model_name": "m", "inputs": [INPUT(name="x", datatype="FP32", shape=[1, 2])],
        "raw_input_contents": [b"abcdefgh"],
    }  # fmt: skip
    return pb.ModelInferRequest(**fields | changed).SerializeToString()


NOTE = {"a": pb.InferParameter(bool_param=True)}
TYPED = INPUT(name="x", datatype="FP32", shape=[1, 2], contents={"fp32_contents": [1, 2]})
ROWS = [INPUT(name="x", datatype="FP32", shape=[n, 2]) for n in (5000, 16, 15)]


@pytest.mark.parametrize(
    "first",
    [
        ask(),
        ask(outputs=[OUTPUT(name="n"), OUTPUT(name="y")]),
        ask(model_version="3"),
        *[ask(inputs=[row], raw_input_contents=[bytes(8 * row.shape[0])]) for row in ROWS],
    ],
)
def test_a_request_with_other_numbers_is_known(first: bytes) -> None:
    assert alike(MODEL, first, [first[:-3] + b"xyz", first[:-1], first + b"x", first.replace(b"FP32", b"FP64")])
    assert alike(MODEL, bytearray(first), [first[:-1] + b"!"])


def test_several_tensors() -> None:
    inputs = [INPUT(name=name, datatype="INT64", shape=[n]) for name, n in (("z", 1), ("x", 20))]
    first = ask(inputs=inputs, raw_input_contents=[bytes(8), bytes(160)])
    moved = ask(inputs=inputs, raw_input_contents=[bytes(160), bytes(8)])
    assert alike(PAIR, first, [first[:-1] + b"!", moved])


@pytest.mark.parametrize(
    "first",
    [
        ask(id="one"),
        ask(parameters={"timeout": pb.InferParameter(int64_param=5)}),
        ask(inputs=[INPUT(name="x", datatype="FP32", shape=[1, 2], parameters=NOTE)]),
        ask(outputs=[OUTPUT(name="y", parameters=NOTE)]),
        ask(raw_input_contents=[], inputs=[TYPED]),
        pb.ModelInferRequest(raw_input_contents=[b"abcdefgh"]).SerializeToString() + ask(raw_input_contents=[]),
        ask() + b"\x0a\x01m",
        ask(inputs=[INPUT(name="x", datatype="FP32", shape=[2, 2])]),
        ask(model_name="m" * 3000),
        b"nothing",
        b"",
    ],
)  # fmt: skip
def test_what_may_differ_next_time_or_is_odd_is_read_each_time(first: bytes) -> None:
    assert not alike(MODEL, first, [ask(), first + b"x"])


def test_strings_and_truth_values_are_looked_at_each_time() -> None:
    for datatype, raw in (("BYTES", b"\x01\x00\x00\x00a"), ("BOOL", b"\x01")):
        model = Model(TensorSpec(name="x", datatype=datatype, shape=[-1]))
        first = ask(inputs=[INPUT(name="x", datatype=datatype, shape=[1])], raw_input_contents=[raw])
        assert alike(model, first, [first[:-1] + b"\x02"]) == (datatype == "BOOL")


def test_any_changed_byte_means_what_it_means_to_a_new_method() -> None:
    random, first = np.random.default_rng(3), ask(outputs=[OUTPUT(name="y")])
    others = []
    for place in range(len(first)):
        values = (0, 255, *random.integers(256, size=3).tolist())
        others += [first[:place] + bytes([value]) + first[place + 1 :] for value in values]
    assert alike(MODEL, first, others)


@pytest.mark.parametrize(
    "outputs",
    [
        (),
        ANSWER[1:],
        (Tensor("y\u00e9", "BYTES", (1,), b"\x01\x00\x00\x00a"),),
        (Tensor("y", "FP32", (300,), bytes(1200)),),
    ],
)
def test_an_answer_of_other_tensors_is_told(outputs: tuple[Tensor, ...]) -> None:
    used = method()
    for _ in range(3):
        outcome_of(MODEL, used, ask())
    assert outcome_of(MODEL, used, ask(), outputs) == outcome_of(MODEL, method(), ask(), outputs)
    assert outcome_of(MODEL, used, ask()) == outcome_of(MODEL, method(), ask())


def test_it_is_held_against_the_model_that_answers_now(monkeypatch: pytest.MonkeyPatch) -> None:
    used = method()
    outcome_of(MODEL, used, ask())
    assert is_known(used, ask())
    for spec in (
        TensorSpec(name="x", datatype="FP64", shape=[-1, 2]),
        TensorSpec(name="z", datatype="FP32", shape=[2]),
    ):
        other = Model(spec)
        monkeypatch.setattr(MODEL, "manifest", other.manifest)
        assert outcome_of(MODEL, used, ask()) == outcome_of(MODEL, method(), ask())


def test_not_more_are_kept_than_there_is_room_for() -> None:
    known, message = KnownRequests(), pb.ModelInferRequest.FromString(ask())
    for number in range(3000):
        message.model_name = f"m{number:04}"
        data = message.SerializeToString()
        known.remember(data, message, [Tensor("x", "FP32", (1, 2), b"abcdefgh")])
        assert (known.find(data) is not None) == (number < 8)
    for number in range(3000):
        message.model_name = "m" * (number % 1500)
        message.raw_input_contents[0] = bytes(8 + number)
        data = message.SerializeToString()
        known.remember(data, message, [Tensor("x", "FP32", (1, 2), bytes(8 + number))])
    assert sum(map(len, known._of_size.values())) <= 1024


def test_what_cannot_be_kept_is_looked_at_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []
    monkeypatch.setattr(oip_known, "_parsed", looked.append)
    used, first = method(), ask()
    for _ in range(50):
        assert outcome_of(MODEL, used, first) == outcome_of(MODEL, method(), first)
    assert len(looked) == 8 + 50


def test_clients_see_no_difference(live: LiveGateway) -> None:
    with tritonclient.grpc.InferenceServerClient(live.grpc_target) as client:
        for first in (1.5, 2.5, 3.5):
            sent = []
            for name, values in (("a", [first, 2.5]), ("b", [2.0, -4.0])):
                tensor = tritonclient.grpc.InferInput(name, [1, 2], "FP32")
                tensor.set_data_from_numpy(np.array([values], np.float32))
                sent.append(tensor)
            result = client.infer("arithmetic", sent)
            assert result.as_numpy("quotient").tolist() == [[first / 2, -0.625]]
            assert result.as_numpy("whole").tolist() == [[int(first), 2]]
