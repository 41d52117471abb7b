"""Open Inference Protocol v2 over REST, with binary tensors (protocol contract, section 1)."""

import asyncio
import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from formats.tensors import DATATYPES
from tests.bundles import tiny_answer
from tests.gateway.graphs import IDENTITY_TYPES
from tests.gateway.live import LiveGateway

Array = np.ndarray[Any, np.dtype[Any]]
Json = dict[str, Any]

A = [[1.5, 2.5]]
B = [[2.0, -4.0]]
LENGTH = "inference-header-content-length"


def tensor(name: str, data: Any, datatype: str = "FP32", shape: Any = (1, 2), **extra: Any) -> Json:
    return {"name": name, "datatype": datatype, "shape": list(shape) if shape else shape, "data": data, **extra}


def ask(inputs: Any = None, **extra: Any) -> Json:
    return {"inputs": [tensor("a", A), tensor("b", B)] if inputs is None else inputs, **extra}


def infer(http: httpx.Client, request: Any, model: str = "arithmetic", binary: bytes = b"") -> httpx.Response:
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    headers = {LENGTH: str(len(text))} if binary else {}
    return http.post(f"/v2/models/{model}/infer", content=text + binary, headers=headers)


def refused(answer: httpx.Response, *, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    text: str = answer.json()["error"]
    return text


# the unmodified client


def infer_input(name: str, array: Array, *, binary: bool = True) -> Any:
    tensor = tritonclient.http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_right_answer(live: LiveGateway, image: Array, binary: bool) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client:
        wanted = [tritonclient.http.InferRequestedOutput("probabilities", binary_data=binary)]
        result = client.infer("tiny", [infer_input("image", image[None], binary=binary)], outputs=wanted)

    np.testing.assert_allclose(result.as_numpy("probabilities"), [tiny_answer(image, 4)], atol=1e-5)


def test_tritonclient_default_outputs_come_back_binary(live: LiveGateway, image: Array) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client:
        result = client.infer("tiny", [infer_input("image", image[None])], model_version="1", request_id="seven")

    np.testing.assert_allclose(result.as_numpy("probabilities"), [tiny_answer(image, 3)], atol=1e-5)
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("seven", "1")
    assert "binary_data_size" in result.get_output("probabilities")["parameters"]


def test_tritonclients_asyncio_client_gets_the_right_answer(live: LiveGateway, image: Array) -> None:
    async def ask_once() -> Any:
        async with tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client:
            return await client.infer("tiny", [infer_input("image", image[None])])

    result = asyncio.run(ask_once())

    np.testing.assert_allclose(result.as_numpy("probabilities"), [tiny_answer(image, 4)], atol=1e-5)


def test_tritonclient_reads_health_and_metadata(live: LiveGateway) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert not client.is_model_ready("nothing")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata("tiny")

    assert metadata["name"] == "tiny"
    assert metadata["versions"] == ["1", "2"]
    assert metadata["platform"] == "onnx_onnxv1"
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 3]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]}]


def test_tritonclient_understands_a_refusal(live: LiveGateway, image: Array) -> None:
    with (
        tritonclient.http.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client,
        pytest.raises(InferenceServerException, match="nothing") as caught,
    ):
        client.infer("nothing", [infer_input("image", image[None])])

    assert caught.value.status() == "404"


# values


def every_type() -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name in IDENTITY_TYPES:
        dtype = DATATYPES[name]
        if dtype.kind in "iu":
            arrays[name] = np.array([np.iinfo(dtype).min, 1, np.iinfo(dtype).max], dtype)
        else:
            arrays[name] = np.array([0, 1, 1] if name == "BOOL" else [0.5, -2.0, 65504.0], dtype)
    return arrays


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_comes_back_as_it_was_sent(live: LiveGateway, binary: bool) -> None:
    arrays = every_type()
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client:
        outputs = [tritonclient.http.InferRequestedOutput(f"{n.lower()}_out", binary_data=binary) for n in arrays]
        sent = [infer_input(n.lower(), a, binary=binary or n == "FP16") for n, a in arrays.items()]
        result = client.infer("identity", sent, outputs=outputs)

    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"{name.lower()}_out"), array, strict=True)


@pytest.mark.parametrize("binary", [True, False])
def test_strings_come_back_as_they_were_sent(live: LiveGateway, binary: bool) -> None:
    texts = np.array([b"", "gr\u00fc\u00dfe".encode(), b"x" * 1000], object)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client:
        result = client.infer("echo", [infer_input("text", texts, binary=binary)])

    assert list(result.as_numpy("text_out")) == list(texts)


def test_json_in_and_json_out(http: httpx.Client) -> None:
    answer = infer(http, ask(id="seven"))

    assert answer.headers["content-type"] == "application/json"
    assert LENGTH not in answer.headers
    assert answer.json() == {
        "model_name": "arithmetic",
        "model_version": "1",
        "id": "seven",
        "outputs": [
            {"name": "quotient", "datatype": "FP32", "shape": [1, 2], "data": [0.75, -0.625]},
            {"name": "whole", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]},
        ],
    }


def test_nested_and_flat_data_are_the_same(http: httpx.Client) -> None:
    nested, flat = (infer(http, ask([tensor("a", data), tensor("b", B)])).json() for data in (A, A[0]))

    assert nested == flat


def test_outputs_are_selected_and_ordered(http: httpx.Client) -> None:
    outputs = [{"name": "whole"}, {"name": "quotient"}]

    assert [o["name"] for o in infer(http, ask(outputs=outputs)).json()["outputs"]] == ["whole", "quotient"]
    assert [o["name"] for o in infer(http, ask(outputs=outputs[:1])).json()["outputs"]] == ["whole"]


def test_one_output_binary_and_the_other_in_json(http: httpx.Client) -> None:
    outputs = [{"name": "quotient", "parameters": {"binary_data": True}}, {"name": "whole"}]

    answer = infer(http, ask(outputs=outputs))

    length = int(answer.headers[LENGTH])
    described = json.loads(answer.content[:length])["outputs"]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert described[0]["parameters"] == {"binary_data_size": 8}
    assert described[1]["data"] == [1, 2]
    assert struct.unpack("<2f", answer.content[length:]) == (0.75, -0.625)


def test_binary_data_output_is_the_default_of_all_outputs(http: httpx.Client) -> None:
    answer = infer(http, ask(parameters={"binary_data_output": True}))

    described = json.loads(answer.content[: int(answer.headers[LENGTH])])["outputs"]
    assert [o["parameters"]["binary_data_size"] for o in described] == [8, 16]


def test_a_raw_binary_request_is_the_only_input_alone(http: httpx.Client, image: Array) -> None:
    answer = http.post("/v2/models/tiny/infer", content=image.tobytes(), headers={LENGTH: "0"})

    length = int(answer.headers[LENGTH])
    assert json.loads(answer.content[:length])["outputs"][0]["shape"] == [1, 4]
    np.testing.assert_allclose(np.frombuffer(answer.content[length:], "<f4"), tiny_answer(image, 4), atol=1e-5)


def test_a_raw_binary_request_of_a_string_model_is_one_string(http: httpx.Client) -> None:
    answer = http.post("/v2/models/echo/infer", content=b"as it is", headers={LENGTH: "0"})

    assert answer.content.endswith(struct.pack("<I", 8) + b"as it is")


def test_the_tokens_nan_and_infinity_are_numbers(http: httpx.Client) -> None:
    outputs = [{"name": "quotient", "parameters": {"binary_data": True}}]
    request = json.dumps(ask([tensor("a", [[float("nan"), float("-inf")]]), tensor("b", B)], outputs=outputs))
    assert "NaN" in request

    answer = infer(http, request.encode())

    assert answer.status_code == 200
    quotient = struct.unpack("<2f", answer.content[-8:])
    assert np.isnan(quotient[0])
    assert quotient[1] == float("inf")


def test_a_non_finite_output_cannot_be_json(http: httpx.Client) -> None:
    text = refused(infer(http, ask([tensor("a", [[0, 1]]), tensor("b", [[0, 0]])])), status=500)

    assert "request binary_data" in text


def test_rows_of_one_request_come_back_together(http: httpx.Client) -> None:
    rows = [[float(n), 1.0] for n in range(50)]
    ones = [[1.0, 1.0]] * 50

    answer = infer(http, ask([tensor("a", rows, shape=(50, 2)), tensor("b", ones, shape=(50, 2))]))

    assert answer.json()["outputs"][0]["data"][::2] == [float(n) for n in range(50)]


# what is refused

BAD_JSON: dict[str, tuple[Any, str]] = {
    "bad-json": (b"{", "not JSON"),
    "empty": (b"", "not JSON"),
    "not-an-object": (b"[]", "JSON object"),
    "too-deep": (b'{"inputs":' + b"[" * 5000, "not JSON"),
    "no-inputs": ({}, "'inputs'"),
    "input-is-no-object": (ask([1]), "inputs[0] must be an object"),
    "wrong-name": (ask([tensor("z", A), tensor("b", B)]), "'z'"),
    "no-name": (ask([tensor("", A)]), "inputs[0].name"),
    "missing": (ask([tensor("a", A)]), "missing: b"),
    "extra": (ask([tensor("a", A), tensor("b", B), tensor("c", B)]), "'c'"),
    "duplicate": (ask([tensor("a", A), tensor("a", A), tensor("b", B)]), "twice"),
    "wrong-datatype": (ask([tensor("a", [[1, 2]], "INT32"), tensor("b", B)]), "INT32, the model takes FP32"),
    "unknown-datatype": (ask([tensor("a", A, "FP8"), tensor("b", B)]), "'FP8'"),
    "wrong-width": (ask([tensor("a", [[1, 2, 3]], shape=(1, 3)), tensor("b", B)]), "[1, 3], the model takes [-1, 2]"),
    "wrong-rank": (ask([tensor("a", A[0], shape=(2,)), tensor("b", B)]), "[2], the model takes [-1, 2]"),
    "batch-sizes": (ask([tensor("a", A * 2, shape=(2, 2)), tensor("b", B)]), "one batch size"),
    "no-rows": (ask([tensor("a", [], shape=(0, 2)), tensor("b", [], shape=(0, 2))]), "one batch size"),
    "negative": (ask([tensor("a", A, shape=(-1, 2)), tensor("b", B)]), "integers of 0 or more"),
    "fraction": (ask([tensor("a", A, shape=(1.0, 2)), tensor("b", B)]), "integers of 0 or more"),
    "overflow": (ask([tensor("a", A, shape=(2**62, 2)), tensor("b", B)]), "has more elements"),
    "shape-is-text": (ask([tensor("a", A, shape=("1", 2)), tensor("b", B)]), "integers of 0 or more"),
    "shape-is-a-number": (ask([{**tensor("a", A), "shape": 2}, tensor("b", B)]), "list of integers"),
    "too-few": (ask([tensor("a", [1]), tensor("b", B)]), "1 elements in data"),
    "too-many": (ask([tensor("a", [1, 2, 3]), tensor("b", B)]), "3 elements in data"),
    "no-data": (ask([tensor("a", None), tensor("b", B)]), "data must be a list"),
    "null": (ask([tensor("a", [1, None]), tensor("b", B)]), "found null"),
    "text": (ask([tensor("a", ["1", "2"]), tensor("b", B)]), "found str"),
    "nested-deep": (
        ask([tensor("a", json.loads("[" * 200 + "]" * 200)), tensor("b", B)]),
        "nested more than 100 deep",
    ),
    "unknown-output": (ask(outputs=[{"name": "z"}]), "'z'"),
    "output-is-text": (ask(outputs=["quotient"]), "outputs[0]"),
    "classification": (ask(outputs=[{"name": "quotient", "parameters": {"classification": 1}}]), "classification"),
    "reserved-parameter": (ask(parameters={"triton_enable_empty_final_response": True}), "reserved"),
    "nested-parameter": (ask(parameters={"x": [1]}), "parameter 'x'"),
    "null-parameter": (ask(parameters={"x": None}), "parameter 'x'"),
    "nan-parameter": (ask(parameters={"x": float("nan")}), "parameter 'x'"),
    "negative-timeout": (ask(parameters={"timeout": -1}), "'timeout'"),
    "id-is-a-number": (ask(id=7), "'id'"),
    "nan-outside-data": (ask(id=float("nan")), "'id'"),
    "lone-surrogate": (ask([tensor("a", [[float("nan"), 1]]), tensor("b", B)], id="\ud800"), "not JSON"),
}


@pytest.mark.parametrize(("request_", "text"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_a_bad_request_is_400_and_says_why(http: httpx.Client, request_: Any, text: str) -> None:
    assert text in refused(infer(http, request_))


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("UINT8", 256),
        ("UINT8", -1),
        ("INT8", 128),
        ("INT64", 2**63),
        ("UINT64", 2**64),
        ("INT32", 1.5),
        ("INT16", True),
    ],
)
def test_a_number_is_never_truncated(http: httpx.Client, datatype: str, value: float) -> None:
    request = ask([tensor(datatype.lower(), [value], datatype, (1,))])

    assert datatype in refused(infer(http, request, "identity"))


def test_strings_must_be_strings(http: httpx.Client) -> None:
    assert "found int" in refused(infer(http, ask([tensor("text", [1], "BYTES", (1,))]), "echo"))


def binary_ask(a_size: Any, *, a_shape: tuple[int, ...] = (1, 2), both: bool = False) -> Json:
    a = tensor("a", A, shape=a_shape, parameters={"binary_data_size": a_size})
    if not both:
        del a["data"]
    return ask([a, tensor("b", B)])


BAD_BINARY: dict[str, tuple[Json, bytes, str]] = {
    "left-over": (binary_ask(8), bytes(9), "1 bytes behind the last input"),
    "short": (binary_ask(8), bytes(7), "7 bytes are left"),
    "not-the-shape": (binary_ask(4), bytes(4), "got 4 bytes"),
    "overflow": (binary_ask(8, a_shape=(2**40, 2**40)), bytes(8), "has more elements"),
    "negative": (binary_ask(-8), bytes(8), "unexpected size -8"),
    "boolean": (binary_ask(True), bytes(8), "unexpected size True"),
    "twice": (binary_ask(8, both=True), bytes(8), "both 'data' and 'binary_data_size'"),
}


@pytest.mark.parametrize(("request_", "binary", "text"), BAD_BINARY.values(), ids=BAD_BINARY.keys())
def test_bad_binary_data_is_400_and_says_why(http: httpx.Client, request_: Json, binary: bytes, text: str) -> None:
    assert text in refused(infer(http, request_, binary=binary))


@pytest.mark.parametrize(
    "raw",
    [b"\x05\0\0\0four", b"\x01\0\0\0ab", b"\xff\xff\xff\xffx", b"\1\0"],
    ids=["past-the-end", "left-over", "huge", "half-a-length"],
)
def test_bad_string_data_is_400(http: httpx.Client, raw: bytes) -> None:
    described = tensor("text", None, "BYTES", (1,), parameters={"binary_data_size": len(raw)})
    del described["data"]

    assert "'text'" in refused(infer(http, ask([described]), "echo", raw))


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1.0", "9" * 5000, "\u00b2"])
def test_a_wrong_header_length_is_400(http: httpx.Client, length: str) -> None:
    answer = http.post("/v2/models/tiny/infer", content=b"{}", headers=[(LENGTH.encode(), length.encode("latin-1"))])

    assert "Inference-Header-Content-Length" in refused(answer)


def test_a_raw_binary_request_needs_a_model_of_one_input(http: httpx.Client) -> None:
    answer = http.post("/v2/models/arithmetic/infer", content=bytes(8), headers={LENGTH: "0"})

    assert "exactly one input" in refused(answer)


def test_a_raw_binary_request_of_a_wrong_size_is_400(http: httpx.Client) -> None:
    answer = http.post("/v2/models/tiny/infer", content=bytes(47), headers={LENGTH: "0"})

    assert "47 bytes" in refused(answer)


@pytest.mark.parametrize(
    "path", ["nothing/infer", "tiny/versions/99/infer", "tiny%2Fversions%2F1/infer", "nothing/versions/1/infer"]
)
def test_an_unknown_model_or_version_is_404(http: httpx.Client, path: str) -> None:
    refused(http.post(f"/v2/models/{path}", content=b"{}"), status=404)


@pytest.mark.parametrize("path", ["/v2/models/nothing", "/v2/models/tiny/versions/9", "/v2/models/nothing/ready"])
def test_metadata_of_the_unknown_is_404(http: httpx.Client, path: str) -> None:
    refused(http.get(path), status=404)


def test_unknown_paths_and_wrong_methods_have_the_protocols_error_form(http: httpx.Client) -> None:
    refused(http.get("/v2/nothing"), status=404)
    refused(http.get("/v2/models/tiny/infer"), status=405)
    refused(http.post("/v2/models/tiny"), status=405)


def test_a_body_over_the_limit_is_413(http: httpx.Client) -> None:
    refused(http.post("/v2/models/tiny/infer", content=bytes(1_048_577)), status=413)


def test_a_deadline_in_the_request_is_kept(http: httpx.Client) -> None:
    request = ask([tensor("rounds", [4000], "INT64", (1,))], parameters={"timeout": 50_000})

    answer = infer(http, request, "slow")

    assert "deadline" in refused(answer, status=504)
    assert answer.elapsed.total_seconds() < 2


def test_metadata_is_at_v2_with_and_without_a_slash(http: httpx.Client) -> None:
    assert http.get("/v2").json() == http.get("/v2/").json()
