"""Algorithm `tensor`: JSON objects of the graph's own inputs, as strict as the graph is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from onnx import TensorProto, helper

from exporters.tensor import export_graph
from formats.envelope import Outcome, Prediction, Tensor
from formats.tensors import DATATYPES, array_of, tensor_of
from handlers.graph import Arrays, Runtime
from handlers.tensor import TensorHandler
from model_store.store import Bundle

Dimensions = Sequence[int | str]


def write_identity(directory: Path, **inputs: tuple[str, Dimensions]) -> TensorHandler:
    """Each input comes back as `<name>_out`."""
    nodes, sources, results = [], [], []
    for name, (datatype, shape) in inputs.items():
        kind = TensorProto.STRING if datatype == "BYTES" else helper.np_dtype_to_tensor_dtype(DATATYPES[datatype])
        sources.append(helper.make_tensor_value_info(name, kind, shape))
        results.append(helper.make_tensor_value_info(f"{name}_out", kind, shape))
        nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
    model = helper.make_model(
        helper.make_graph(nodes, "identity", sources, results),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = directory / "identity.onnx"
    path.write_bytes(model.SerializeToString())
    return TensorHandler(Bundle.open(export_graph(path, directory / "bundle")), Runtime())


def ask(handler: TensorHandler, body: object) -> Outcome:
    sent = body if isinstance(body, bytes) else orjson.dumps(body)
    (outcome,) = handler.predict([Prediction("m", "1", sent, "application/json")])
    return outcome


def answer(handler: TensorHandler, body: object) -> Any:
    outcome = ask(handler, body)
    assert outcome.ok, outcome.error_message
    assert outcome.content_type == "application/json"
    return orjson.loads(outcome.body)


def refusal(handler: TensorHandler, body: object) -> str:
    outcome = ask(handler, body)
    assert outcome.error_code == "InvalidBody"
    assert len(outcome.error_message) < 500
    return outcome.error_message


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TensorHandler:
    return write_identity(tmp_path_factory.mktemp("pair"), x=("FP32", ["N", 2]), id=("INT8", ["N"]))


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64])
def test_rows_come_back(pair: TensorHandler, num_rows: int) -> None:
    x, ids = [[i / 2, -i] for i in range(num_rows)], list(range(num_rows))

    assert answer(pair, {"id": ids, "x": x}) == {"x_out": x, "id_out": ids}


def test_requests_of_different_lengths_share_a_batch_and_keep_their_rows(pair: TensorHandler) -> None:
    bodies = [{"x": [[float(n), 0.0]] * n, "id": [n] * n} for n in (1, 3, 2)]
    batch = [Prediction("m", "1", orjson.dumps(body), "application/json") for body in bodies]
    batch.insert(1, Prediction("m", "1", b"{}", "application/json"))

    first, bad, *rest = pair.predict(batch)

    assert bad.error_code == "InvalidBody"
    assert [orjson.loads(o.body)["id_out"] for o in (first, *rest)] == [[1], [3, 3, 3], [2, 2]]


def test_rows_of_one_shape_share_a_run_and_no_run_fails_for_another_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = write_identity(tmp_path, x=("FP32", ["N", "W"]), y=("FP32", ["N", "V", 2]))
    joined: list[int] = []

    def collate(inputs: Sequence[Arrays]) -> Arrays:
        joined.append(len(inputs))
        return TensorHandler.collate(handler, inputs)

    monkeypatch.setattr(handler, "collate", collate)
    shapes = [(1, 3, 1), (2, 5, 1), (1, 5, 1), (1, 3, 4), (3, 5, 1)]
    bodies = [{"x": np.full((n, w), n).tolist(), "y": np.full((n, v, 2), w).tolist()} for n, w, v in shapes]

    outcomes = handler.predict([Prediction("m", "1", orjson.dumps(body), "application/json") for body in bodies])

    expected = [{"x_out": body["x"], "y_out": body["y"]} for body in bodies]
    assert [orjson.loads(outcome.body) for outcome in outcomes] == expected
    assert joined == [1, 3, 1]
    assert not caplog.records


GOOD = {"x": [[1, 2]], "id": [3]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body is not JSON"),
        (b"\xff\xfe", "body is not JSON"),
        (b'{"x": [[1, 2]], "id": [3]', "body is not JSON"),
        (b'{"x": [[1, NaN]], "id": [3]}', "body is not JSON"),
        (b'{"x": [[1, Infinity]], "id": [3]}', "body is not JSON"),
        (b'{"x": [[1, 1e999]], "id": [3]}', "body is not JSON"),
        (b"[" * 100_000, "body is not JSON"),
        ([1, 2], "found list"),
        (None, "found NoneType"),
        ({}, "exactly the fields x, id; found "),
        ({"x": [[1, 2]]}, "exactly the fields x, id; found x"),
        ({**GOOD, "y": 1}, "found x, id, y"),
        ({f"field{i}": i for i in range(10_000)}, "exactly the fields x, id"),
        ({**GOOD, "x": [[1, 2], [3]]}, "'x': rows of different lengths; expected shape [-1, 2]"),
        ({**GOOD, "x": [[1, [2]]]}, "'x': holds lists"),
        ({**GOOD, "x": [[1, 2, 3]]}, "'x': shape [1, 3] or ragged rows, expected [-1, 2]"),
        ({**GOOD, "x": [1, 2]}, "'x': shape [2]"),
        ({**GOOD, "x": 1}, "'x': shape []"),
        ({**GOOD, "x": None}, "'x': shape []"),
        ({**GOOD, "x": {"a": 1}}, "'x': shape []"),
        ({**GOOD, "x": []}, "'x': shape [0]"),
        ({"x": [[1, 2]] * 2, "id": [3]}, "one batch size of at least 1; got {'x': 2, 'id': 1}"),
        ({**GOOD, "x": [["1", "2"]]}, "'x': holds strings; expected FP32 of shape [-1, 2]"),
        ({**GOOD, "x": [[1, True]]}, "'x': holds booleans"),
        ({**GOOD, "x": [[1, None]]}, "'x': holds nulls"),
        ({**GOOD, "x": [[1, {}]]}, "'x': holds objects"),
        ({**GOOD, "x": [[1, 1e39]]}, "'x': a value is too large for FP32"),
        ({**GOOD, "id": [1.0]}, "'id': holds fractions; expected INT8"),
        ({**GOOD, "id": [True]}, "'id': holds booleans"),
        ({**GOOD, "id": [128]}, "'id': a value is outside -128 to 127"),
        ({**GOOD, "id": [-129]}, "'id': a value is outside -128 to 127"),
        ({**GOOD, "id": [2**64 - 1]}, "'id': a value is outside -128 to 127"),
        (b'{"x": [[1, 2]], "id": [18446744073709551616]}', "'id': holds fractions"),
        (b'{"id": [1], "x": ' + b"[" * 100 + b"]" * 100 + b"}", "'x': shape"),
    ],
)
def test_what_the_graph_cannot_take_is_refused_by_field_and_value(pair: TensorHandler, body: object, text: str) -> None:
    assert text in refusal(pair, body)


def test_one_long_text_beside_many_numbers_takes_no_more_memory_than_it_has(pair: TensorHandler) -> None:
    """numpy alone would make 200,000 texts of 1,000,000 characters: 800 GB."""
    assert "holds strings" in refusal(pair, {**GOOD, "x": [["a" * 1_000_000, 1]] + [[0, 0]] * 100_000})


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BYTES", "BOOL")])
def test_the_limits_of_every_number_are_kept(tmp_path: Path, datatype: str) -> None:
    handler = write_identity(tmp_path, x=(datatype, ["N"]))
    dtype = DATATYPES[datatype]
    if dtype.kind == "f":
        limits = [float(np.finfo(dtype).min), float(np.finfo(dtype).max)]
        beyond = [2.0**16] if datatype == "FP16" else [2.0**128] if datatype == "FP32" else []
    else:
        limits = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
        beyond = [limit for limit in (limits[0] - 1, limits[1] + 1) if -(2**63) <= limit < 2**64]

    back = answer(handler, {"x": limits})["x_out"]

    assert np.array(back, dtype=dtype).tolist() == limits
    for value in beyond:
        assert "a value is" in refusal(handler, {"x": [value]})


def test_booleans_and_texts_come_back(tmp_path: Path) -> None:
    handler = write_identity(tmp_path, flag=("BOOL", ["N"]), text=("BYTES", ["N"]))
    body = {"flag": [True, False, True], "text": ["", "é\u0000", "a" * 1000]}

    assert answer(handler, body) == {"flag_out": body["flag"], "text_out": body["text"]}
    assert "'flag': holds integers" in refusal(handler, {**body, "flag": [1, 0, 1]})
    assert "'text': holds integers" in refusal(handler, {**body, "text": ["a", 1, "b"]})


def test_raw_texts_reach_the_graph_as_text(tmp_path: Path) -> None:
    handler = write_identity(tmp_path, text=("BYTES", ["N"]))
    texts = np.array(["é", "", "b'x'"], object)

    good, bad = handler.predict(
        [
            Prediction("m", "1", tensors=(tensor_of("text", texts),)),
            Prediction("m", "1", tensors=(Tensor("text", "BYTES", (1,), b"\x01\0\0\0\xff"),)),
        ]
    )

    assert good.tensors is not None
    assert [e.decode() for e in array_of(good.tensors[0])] == texts.tolist()
    assert (bad.error_code, "must be UTF-8" in bad.error_message) == ("InvalidBody", True)


def test_a_scalar_is_a_scalar_on_both_ways(tmp_path: Path) -> None:
    handler = write_identity(tmp_path, x=("FP32", []), y=("INT64", [2]))

    assert answer(handler, {"x": 1.5, "y": [1, 2]}) == {"x_out": 1.5, "y_out": [1, 2]}
    assert "'x': shape [1]" in refusal(handler, {"x": [1.5], "y": [1, 2]})
    (raw,) = handler.predict(
        [Prediction("m", "1", tensors=(tensor_of("x", np.array(2.5, np.float32)), tensor_of("y", np.arange(2))))]
    )
    assert raw.tensors is not None
    assert raw.tensors[0] == Tensor("x_out", "FP32", (), np.float32(2.5).tobytes())


def test_an_answer_that_is_no_number_is_null(tmp_path: Path) -> None:
    """JSON has no NaN; the tensor protocols carry it as it is."""
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([helper.make_node("Log", ["x"], ["y"])], "log", [source], [result])
    path = tmp_path / "log.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    handler = TensorHandler(Bundle.open(export_graph(path, tmp_path / "bundle")), Runtime())

    assert answer(handler, {"x": [1, -1, 0]}) == {"y": [0.0, None, None]}
