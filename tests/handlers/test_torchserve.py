import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from formats.envelope import Prediction
from formats.errors import CorruptBundle
from formats.packed import pack_predictions, unpack_outcomes
from gateway.status import STATUS
from handlers.torchserve import PACKED, OneLine, PenstockService, runtime_of, status_of
from tests.bundles import golden_image, image_png, tiny_answer, write_tiny_classifier

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # it reads its version from a file that it does not close
    from ts.context import Context, RequestProcessor

PNG = image_png(golden_image(4, 4))
ANSWER = tiny_answer(golden_image(4, 4)).tolist()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_classifier(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def service(directory: Path) -> PenstockService:
    service = PenstockService()
    service.initialize(context_of(directory))
    return service


def context_of(directory: Path, headers: list[Mapping[str, Any]] | None = None) -> Context:
    """TorchServe's own context, as its worker makes it for a batch with these request headers."""
    context = Context("tiny", str(directory), {}, 1, None, "0.12.0")
    context.request_processor = [RequestProcessor(dict(each)) for each in headers or []]
    return context


def packed(*batch: Prediction) -> dict[str, Any]:
    return {PACKED: bytearray(pack_predictions(batch))}


def ask(body: bytes) -> Prediction:
    return Prediction("tiny", "1", body, "image/png")


def test_a_packed_batch_is_answered_item_by_item(service: PenstockService, directory: Path) -> None:
    (reply,) = service.handle([packed(ask(PNG), ask(b"no image"), ask(PNG))], context_of(directory, [{}]))

    first, second, third = unpack_outcomes(reply)
    assert orjson.loads(first.body) == pytest.approx(ANSWER, abs=1e-6)
    assert second.error_code == "InvalidBody"
    assert third.body == first.body


def test_an_empty_packed_batch_has_an_empty_answer(service: PenstockService, directory: Path) -> None:
    """How the gateway asks whether a worker answers at all."""
    (reply,) = service.handle([packed()], context_of(directory, [{}]))

    assert unpack_outcomes(reply) == []


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x92\x63\x90", b"\x92\x01\x91\x90", b"\x92\x01\x05"])
def test_a_packed_message_that_cannot_be_read_is_answered_not_raised(
    service: PenstockService, directory: Path, garbage: bytes
) -> None:
    (reply,) = service.handle([{PACKED: bytearray(garbage)}], context_of(directory, [{}]))

    assert [outcome.error_code for outcome in unpack_outcomes(reply)] == ["BackendFailed"]


@pytest.mark.parametrize(
    ("inputs", "headers", "status"),
    [
        ({"body": bytearray(PNG)}, {}, None),
        ({"data": bytearray(PNG)}, {"Content-Type": "image/png"}, None),
        ({"body": bytearray(PNG)}, {"CONTENT-TYPE": "application/octet-stream"}, None),
        (
            {"photo": bytearray(PNG)},
            {"content-type": "multipart/form-data; boundary=x", "photo": {"content-type": "image/png"}},
            None,
        ),
        ({"body": bytearray(b"no image")}, {"Content-Type": "image/png"}, 400),
        ({"body": "text"}, {"Content-Type": "text/plain"}, 415),
        ({"body": {"a": 1}}, {"Content-Type": "application/json"}, 415),
        ({"body": bytearray(PNG)}, {"Accept": "text/csv"}, 406),
        ({"a": b"1", "b": b"2"}, {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        ({}, {}, 400),
    ],
)
def test_plain_requests_get_a_status_of_their_own(
    service: PenstockService, directory: Path, inputs: dict[str, Any], headers: dict[str, Any], status: int | None
) -> None:
    context = context_of(directory, [headers])
    (reply,) = service.handle([inputs], context)

    assert context.get_response_status(0)[0] == (status or 200)
    if status is None:
        assert orjson.loads(reply) == pytest.approx(ANSWER, abs=1e-6)
    else:
        assert orjson.loads(reply)["code"] == status
    assert context.get_response_content_type(0) == "application/json"


def test_plain_and_packed_requests_share_a_batch_of_torchserve(service: PenstockService, directory: Path) -> None:
    context = context_of(directory, [{}, {}, {}])
    replies = service.handle([{"body": bytearray(b"bad")}, packed(ask(PNG)), {"body": bytearray(PNG)}], context)

    assert [context.get_response_status(index)[0] for index in range(3)] == [400, 200, 200]
    assert unpack_outcomes(replies[1])[0].body == replies[2]


def test_statuses_are_those_of_the_gateway() -> None:
    assert {kind: status_of(kind("")) for kind in STATUS} == {kind: http.value for kind, (http, _) in STATUS.items()}


def test_a_bundle_that_does_not_load_leaves_its_reason_for_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_tiny_classifier(tmp_path / "bundle")
    (directory / "model.onnx").write_bytes(b"altered")
    monkeypatch.setenv("PENSTOCK_WORKER_REPORTS", str(tmp_path))
    with pytest.raises(CorruptBundle):
        PenstockService().initialize(context_of(directory))

    report = orjson.loads((tmp_path / "tiny.json").read_bytes())
    assert report["code"] == "CorruptBundle"
    assert "model.onnx" in report["message"]


def test_the_device_comes_from_torchserve_and_the_rest_from_the_gateway() -> None:
    runtime = runtime_of("1", {"PENSTOCK_WORKER_ENGINE": "torchscript", "PENSTOCK_WORKER_THREADS": "3"})

    assert (runtime.device, runtime.device_index, runtime.engine, runtime.threads) == ("gpu", 1, "torchscript", 3)
    assert runtime_of(None, {}).device == "cpu"


@pytest.mark.parametrize(
    "text", ["x\n[METRICS]Forged.Count:1|#Level:Host|#type:COUNTER|#hostname:h,1", "\r\n[PID]1", "[PID]1", "[METRICS]x"]
)
def test_a_clients_text_writes_no_line_that_torchserve_obeys(text: str) -> None:
    """Its reader takes `^(INFO > )?[METRICS]...` for metrics and `^(INFO > )?[PID]n$` for the process to kill."""
    line = OneLine().format(logging.LogRecord("penstock", logging.ERROR, "", 0, text, None, None))

    assert "\n" not in line
    assert "\r" not in line
    assert not line.startswith(("[METRICS]", "[PID]", "INFO > "))


def test_a_clients_text_does_not_announce_a_worker() -> None:
    line = OneLine().format(logging.LogRecord("penstock", logging.ERROR, "", 0, "Torch worker started.", None, None))

    assert not line.endswith("Torch worker started.")


def test_torchserves_own_metrics_pass_unchanged() -> None:
    record = logging.LogRecord(
        "ts.metrics.caching_metric", logging.INFO, "", 0, "[METRICS]PredictionTime.ms:1", None, None
    )

    assert OneLine().format(record) == "[METRICS]PredictionTime.ms:1"
