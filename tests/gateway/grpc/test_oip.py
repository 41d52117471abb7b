"""Open Inference Protocol v2 over gRPC (protocol contract, section 2)."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf.message import DecodeError
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from formats.protos import open_inference_pb2 as pb
from formats.tensors import DATATYPES
from gateway.grpc.oip import _parse, _typed
from tests.bundles import tiny_answer
from tests.gateway.graphs import IDENTITY_TYPES
from tests.gateway.live import LiveGateway

Array = np.ndarray[Any, np.dtype[Any]]
Infer = Callable[..., pb.ModelInferResponse]

A = np.array([[1.5, 2.5]], np.float32)
B = np.array([[2.0, -4.0]], np.float32)


@pytest.fixture
def triton(live: LiveGateway) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(live.grpc_target) as client:
        yield client


@pytest.fixture
def infer(channel: grpc.Channel) -> Infer:
    """The bare method: takes a request message or any bytes."""
    method: Any = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        response_deserializer=pb.ModelInferResponse.FromString,
    )

    def call(request: pb.ModelInferRequest | bytes, timeout: float = 60) -> pb.ModelInferResponse:
        answer: pb.ModelInferResponse = method(request, timeout=timeout)
        return answer

    return call


def refused(infer: Infer, request: Any, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT, **more: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        infer(request, **more)
    assert caught.value.code() == code, caught.value
    return str(caught.value.details())


def described(name: str, datatype: str = "FP32", shape: Any = (1, 2), **contents: Any) -> Any:
    kind = pb.ModelInferRequest.InferInputTensor
    if not contents:
        return kind(name=name, datatype=datatype, shape=shape)
    return kind(name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents))


def ask(*inputs: Any, raw: Any = (), model: str = "arithmetic", **more: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw, **more)


def raw_ask(**more: Any) -> pb.ModelInferRequest:
    return ask(described("a"), described("b"), raw=[A.tobytes(), B.tobytes()], **more)


def quotient(answer: pb.ModelInferResponse) -> list[float]:
    at = [output.name for output in answer.outputs].index("quotient")
    return list(np.frombuffer(answer.raw_output_contents[at], np.float32))


# the unmodified client


def infer_input(name: str, array: Array) -> Any:
    tensor = tritonclient.grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def test_tritonclient_gets_the_right_answer(triton: Any, image: Array) -> None:
    result = triton.infer("tiny", [infer_input("image", image[None])], request_id="seven")

    np.testing.assert_allclose(result.as_numpy("probabilities"), [tiny_answer(image, 4)], atol=1e-5)
    assert (result.get_response().id, result.get_response().model_version) == ("seven", "2")


def test_tritonclient_selects_version_and_outputs(triton: Any, image: Array) -> None:
    wanted = [tritonclient.grpc.InferRequestedOutput("probabilities")]
    result = triton.infer("tiny", [infer_input("image", image[None])], model_version="1", outputs=wanted)

    np.testing.assert_allclose(result.as_numpy("probabilities"), [tiny_answer(image, 3)], atol=1e-5)


def test_tritonclient_reads_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert list(triton.get_server_metadata().extensions) == ["binary_tensor_data"]
    metadata = triton.get_model_metadata("tiny")
    assert (metadata.name, list(metadata.versions)) == ("tiny", ["1", "2"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("image", "UINT8", [-1, 4, 4, 3])]
    with pytest.raises(InferenceServerException, match="nothing"):
        triton.get_model_metadata("nothing")


def test_tritonclient_sends_every_datatype_and_gets_it_back(triton: Any) -> None:
    arrays = {name: np.array([0, 1, 1], DATATYPES[name]) for name in IDENTITY_TYPES}

    result = triton.infer("identity", [infer_input(n.lower(), a) for n, a in arrays.items()])

    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"{name.lower()}_out"), array, strict=True)


def test_long_tensors_come_back_as_they_were(triton: Any) -> None:
    numbers = np.random.default_rng(1).integers(0, 2, 12_000)
    arrays = {name: numbers.astype(DATATYPES[name]) for name in IDENTITY_TYPES}

    result = triton.infer("identity", [infer_input(n.lower(), a) for n, a in arrays.items()])

    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"{name.lower()}_out"), array, strict=True)


def test_tritonclient_sends_strings_and_gets_them_back(triton: Any) -> None:
    texts = np.array([b"", "gr\u00fc\u00dfe".encode()], object)

    assert list(triton.infer("echo", [infer_input("text", texts)]).as_numpy("text_out")) == list(texts)


# values in the message


def test_raw_contents_are_answered_raw(infer: Infer) -> None:
    answer = infer(raw_ask(id="seven"))

    assert (answer.model_name, answer.model_version, answer.id) == ("arithmetic", "1", "seven")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("quotient", "FP32", [1, 2]),
        ("whole", "INT64", [1, 2]),
    ]
    assert quotient(answer) == [0.75, -0.625]


def test_typed_contents_mean_the_same(infer: Infer) -> None:
    request = ask(described("a", fp32_contents=[1.5, 2.5]), described("b", fp32_contents=[2, -4]))

    assert infer(request).raw_output_contents == infer(raw_ask()).raw_output_contents


def test_every_typed_field_keeps_its_extremes(infer: Infer) -> None:
    fields = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64"}
    sent: dict[str, list[Any]] = {}
    inputs = []
    raw_only = ask(described("x"), model="identity")
    del raw_only.inputs[:]
    for name in IDENTITY_TYPES:
        dtype = DATATYPES[name]
        limits = np.iinfo(dtype) if dtype.kind in "iu" else None
        sent[name] = [int(limits.min), 1, int(limits.max)] if limits else [0, 1, 1]
        field = fields.get(name, "uint" if name.startswith("U") else "int")
        if name != "FP16":  # it has no field
            inputs.append(described(name.lower(), name, (3,), **{f"{field}_contents": sent[name]}))

    text = refused(infer, ask(*inputs, model="identity"))

    assert "missing: fp16" in text  # so all the others were understood


def test_large_unsigned_numbers_keep_every_digit() -> None:
    tensor = _typed(described("x", "UINT64", (2,), uint64_contents=[1, 2**64 - 1]))

    assert list(np.frombuffer(tensor.data, "<u8")) == [1, 2**64 - 1]


def test_outputs_are_selected_and_ordered(infer: Infer) -> None:
    kind = pb.ModelInferRequest.InferRequestedOutputTensor

    answer = infer(raw_ask(outputs=[kind(name="whole"), kind(name="quotient")]))

    assert [output.name for output in answer.outputs] == ["whole", "quotient"]
    assert quotient(answer) == [0.75, -0.625]


def test_non_finite_numbers_travel(infer: Infer) -> None:
    answer = infer(ask(described("a", fp32_contents=[0, 1]), described("b", fp32_contents=[0, 0])))

    assert np.isnan(quotient(answer)[0])
    assert quotient(answer)[1] == np.inf


# messages long enough to be taken apart before protobuf sees them

LONG = [bytes(20_000), b"", b"second" * 100]


def fields(**named: Any) -> bytes:
    return pb.ModelInferRequest(**named).SerializeToString()


def meaning(data: bytes, parse: Callable[[bytes], Any]) -> Any:
    """What a request says, or that it says nothing."""
    try:
        parsed = parse(data)
    except (DecodeError, UnicodeDecodeError):
        return "no request"
    message, raw = (parsed.message, parsed.raw) if parse is _parse else (parsed, parsed.raw_input_contents)
    raw = [bytes(each) for each in raw]
    message.ClearField("raw_input_contents")
    return message, raw


RAW, HEAD = fields(raw_input_contents=LONG), fields(model_name="a", id="b", inputs=[described("x", shape=(1, 5000))])
ODD = {
    "as-usual": HEAD + RAW,
    "raw-first": RAW + HEAD,
    "raw-between": fields(model_name="a") + RAW + fields(id="b") + RAW,
    "twice-named": fields(model_name="a") + RAW + fields(model_name="b"),
    "no-raw": fields(id="x" * 20_000),
    "many-fields": fields(inputs=[described("x")] * 100) + RAW,
    "length-in-many-bytes": HEAD + b"\x3a\x85\x80\x80\x80\x00five." + RAW,
    "length-in-too-many-bytes": HEAD + b"\x3a\x85" + b"\x80" * 10 + b"\x00five." + RAW,
    "tag-in-two-bytes": HEAD + b"\xba\x00\x05five." + RAW,
    "unknown-number": HEAD + b"\x50\x05" + RAW,
    "unknown-text": HEAD + b"\x7a\x05five." + RAW,
    "raw-as-number": HEAD + b"\x38\x05" + RAW,
    "group": HEAD + b"\x53\x54" + RAW,
    "field-0": HEAD + b"\x02\x01x" + RAW,
    "no-utf-8": b"\x0a\x01\xff" + RAW,
    "cut-in-tensor": HEAD + RAW[:-1],
    "cut-in-length": HEAD + RAW + b"\x3a\x80",
    "cut-after-tag": HEAD + RAW + b"\x3a",
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
def test_a_long_message_means_what_protobuf_says_it_means(data: bytes) -> None:
    assert meaning(data, _parse) == meaning(data, pb.ModelInferRequest.FromString)


def test_so_does_one_with_any_bytes_changed() -> None:
    random = np.random.default_rng(5)
    places = [*range(len(HEAD) + 8), *range(len(HEAD) + 20_000, len(HEAD + RAW))]
    for place in places:
        data = bytearray(HEAD + RAW)
        data[place] = random.integers(256)

        assert meaning(bytes(data), _parse) == meaning(bytes(data), pb.ModelInferRequest.FromString), place


def test_the_tensors_of_a_long_message_are_not_copied() -> None:
    data = bytearray(HEAD + RAW)
    raw = _parse(data).raw

    data[-1:] = b"!"

    assert bytes(raw[2]).endswith(b"!")
    assert memoryview(raw[2]).readonly


# what is refused

FP32 = "fp32_contents"
BAD: dict[str, tuple[pb.ModelInferRequest, str]] = {
    "both": (ask(described("a", fp32_contents=[1, 2]), described("b"), raw=[bytes(8), bytes(8)]), "has contents"),
    "raw-count": (ask(described("a"), described("b"), raw=[bytes(8)]), "2 inputs, 1 raw_input_contents"),
    "raw-size": (ask(described("a"), described("b"), raw=[bytes(8), bytes(7)]), "got 7 bytes"),
    "typed-count": (ask(described("a", fp32_contents=[1]), described("b", fp32_contents=[1, 2])), "1 elements"),
    "nothing": (ask(described("a"), described("b")), "0 elements"),
    "wrong-field": (ask(described("a", fp64_contents=[1, 2]), described("b")), "FP32 rides in fp32_contents"),
    "two-fields": (ask(described("a", fp32_contents=[1, 2], int_contents=[1, 2])), "rides in fp32_contents"),
    "no-inputs": (ask(), "missing: a, b"),
    "missing": (ask(described("a"), raw=[bytes(8)]), "missing: b"),
    "extra": (ask(*map(described, "abc"), raw=[bytes(8)] * 3), "'c'"),
    "duplicate": (ask(*map(described, "aab"), raw=[bytes(8)] * 3), "twice"),
    "datatype": (ask(described("a", "INT32"), described("b"), raw=[bytes(8)] * 2), "INT32, the model takes FP32"),
    "unknown-datatype": (ask(described("a", "FP8"), raw=[bytes(8)]), "'FP8'"),
    "fp16-typed": (ask(described("a", "FP16", fp32_contents=[1, 2])), "raw_input_contents"),
    "shape": (ask(described("a", shape=(2,)), described("b"), raw=[bytes(8)] * 2), "the model takes [-1, 2]"),
    "negative": (ask(described("a", shape=(-1, -2)), described("b"), raw=[bytes(8)] * 2), "0 or more"),
    "overflow": (ask(described("a", shape=(2**62, 4)), described("b"), raw=[bytes(8)] * 2), "more elements"),
    "small-integer": (ask(described("int8", "INT8", (1,), int_contents=[200]), model="identity"), "outside INT8"),
    "output": (raw_ask(outputs=[{"name": "z"}]), "'z'"),
    "reserved": (raw_ask(parameters={"triton_x": pb.InferParameter(bool_param=True)}), "reserved"),
    "timeout": (raw_ask(parameters={"timeout": pb.InferParameter(string_param="1")}), "'timeout'"),
    "bytes": (ask(described("text", "BYTES", (1,)), raw=[b"\xff\xff\xff\xffx"], model="echo"), "'text'"),
    "not-text": (ask(described("text", "BYTES", (1,), bytes_contents=[b"\xff"]), model="echo"), "UTF-8"),
    "too-many": (ask(*[described("a")] * 1025, raw=[bytes(8)]), "1024"),
}


@pytest.mark.parametrize(("request_", "text"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_an_invalid_argument_and_says_why(infer: Infer, request_: Any, text: str) -> None:
    assert text in refused(infer, request_)


@pytest.mark.parametrize("version", ["", "9"])
def test_the_unknown_is_not_found(infer: Infer, version: str) -> None:
    name = "arithmetic" if version else "nothing"

    assert name in refused(infer, raw_ask(model=name, model_version=version), grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["no-message", "no-utf-8"])
def test_garbage_bytes_are_an_invalid_argument_without_more_words(infer: Infer, garbage: bytes) -> None:
    assert refused(infer, garbage) == "the message is not a valid inference.ModelInferRequest"


def test_a_message_over_the_limit_is_refused(infer: Infer) -> None:
    request = ask(described("a"), raw=[bytes(1_200_000)])

    assert "larger than max" in refused(infer, request, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_the_clients_deadline_is_kept(infer: Infer) -> None:
    request = ask(described("rounds", "INT64", (1,), int64_contents=[4000]), model="slow")

    refused(infer, request, grpc.StatusCode.DEADLINE_EXCEEDED, timeout=0.05)


def test_a_timeout_in_the_parameters_is_kept(infer: Infer) -> None:
    parameters = {"timeout": pb.InferParameter(int64_param=50_000)}
    request = ask(described("rounds", "INT64", (1,), int64_contents=[4000]), model="slow", parameters=parameters)

    assert "deadline" in refused(infer, request, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    method: Any = channel.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")

    with pytest.raises(grpc.RpcError) as caught:
        method(b"", timeout=60)

    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_cancelled_call_harms_nobody(live: LiveGateway, infer: Infer) -> None:
    async def call_and_cancel() -> None:
        async with grpc.aio.insecure_channel(live.grpc_target) as channel:
            method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            calls = [method(raw_ask().SerializeToString()) for _ in range(20)]
            await asyncio.sleep(0.005)
            for call in calls:
                call.cancel()

    asyncio.run(call_and_cancel())

    assert quotient(infer(raw_ask())) == [0.75, -0.625]
