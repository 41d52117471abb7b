"""The same handlers inside TorchServe: what `handler.py` in an archive delegates to (protocol contract, section 3.5).

One archive serves two kinds of callers, told apart by the input's key:

- `packed`: a whole batch as one message of `formats.packed`, answered by one such message. Penstock's gateway calls so,
  because TorchServe's gRPC loses each item's status and TorchServe's own batches fail as a whole.
- anything else: one plain request, as TorchServe's own clients send it; its status goes into the HTTP response.

No exception leaves `handle`: TorchServe would fail every request of the batch for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from formats.envelope import Outcome, Prediction
from formats.errors import (
    BackendFailed,
    BodyTooLarge,
    CorruptBundle,
    DeadlineExceeded,
    InvalidBody,
    NotAcceptable,
    NotFound,
    PenstockError,
    RequestError,
    UnsupportedContentType,
    code_of,
)
from formats.packed import pack_outcomes, unpack_predictions
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle

__all__ = ["PACKED", "OneLine", "PenstockService", "runtime_of"]

PACKED = "packed"
"""Input key of a packed batch."""
PACKED_TYPE = "application/x-penstock-packed"
"""Its content type over REST, where a body has no key."""

_log = logging.getLogger("penstock.torchserve")

# TorchServe's clients send these, or nothing, for any file: its documentation's curl lines do
_UNDECLARED = frozenset({"", "application/octet-stream"})
# only what differs from 400 for the client's faults and 503 for the operator's
_STATUS: dict[type[PenstockError], int] = {
    UnsupportedContentType: 415,
    NotAcceptable: 406,
    BodyTooLarge: 413,
    NotFound: 404,
    DeadlineExceeded: 504,
    BackendFailed: 500,
    CorruptBundle: 500,
}


class PenstockService:
    """TorchServe's handler contract around a `Handler`."""

    def __init__(self) -> None:
        self._handler: Handler | None = None

    def initialize(self, context: Any) -> None:
        """Verify and load the unpacked archive and reproduce its golden request.

        Raises:
            PenstockError: why not. TorchServe only logs that, so it is also written where the gateway looks for it.
        """
        properties = context.system_properties
        reports = os.environ.get("PENSTOCK_WORKER_REPORTS")
        _tame_logs(quiet=reports is not None)
        try:
            bundle = Bundle.open(Path(properties["model_dir"]))
            handler = load_handler(bundle, runtime_of(properties.get("gpu_id"), os.environ))
            golden = golden_prediction(bundle)
            if golden is not None:
                check_golden(bundle, handler.predict([golden])[0])
        except Exception as error:
            if reports:
                _report(Path(reports) / f"{context.model_name}.json", error)
            raise
        self._handler = handler

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer TorchServe's batch: one entry per request, in order."""
        assert self._handler is not None, "TorchServe initialises a worker before its first request"
        answers = [b""] * len(data)
        plain = []
        for index, inputs in enumerate(data):
            message = _packed(inputs, context, index)
            if message is None:
                plain.append(index)
            else:
                answers[index] = self._answer_packed(self._handler, message)
        if plain:
            outcomes = self._answer_plain(self._handler, [(index, data[index]) for index in plain], context)
            for index, outcome in zip(plain, outcomes, strict=True):
                answers[index] = _respond(outcome, index, context)
        return answers

    def _answer_packed(self, handler: Handler, message: bytes) -> bytes:
        try:
            batch = unpack_predictions(message, handler.manifest.name, handler.manifest.version)
        except (ValueError, TypeError) as error:
            return pack_outcomes([Outcome.of_error(BackendFailed(f"unreadable batch: {error}"))])
        return pack_outcomes(_predict(handler, batch))

    def _answer_plain(
        self, handler: Handler, requests: Sequence[tuple[int, Mapping[str, Any]]], context: Any
    ) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(requests)
        batch: list[Prediction] = []
        places: list[int] = []
        for place, (index, inputs) in enumerate(requests):
            try:
                batch.append(_plain_prediction(handler, inputs, context.get_all_request_header(index)))
                places.append(place)
            except PenstockError as error:
                outcomes[place] = Outcome.of_error(error)
        for place, outcome in zip(places, _predict(handler, batch), strict=True):
            outcomes[place] = outcome
        return [outcome for outcome in outcomes if outcome is not None]


def _packed(inputs: Mapping[str, Any], context: Any, index: int) -> bytes | None:
    """The packed batch that a request is, if it is one: by its key over gRPC, by its content type over REST."""
    if PACKED in inputs:
        return bytes(inputs[PACKED])
    if context.get_request_header(index, "Content-Type") == PACKED_TYPE and "body" in inputs:
        return _bytes(inputs["body"])
    return None


class OneLine(logging.Formatter):
    """Log records in a form that TorchServe does not take for anything else.

    It reads a worker's output line by line: one that begins with `[METRICS]` becomes a metric, one that begins with
    `[PID]` changes which process it kills, one that ends with `Torch worker started.` ends the start-up. A client's
    text inside an error message must not write such lines, so each record is one line of a fixed beginning and end.
    """

    def format(self, record: logging.LogRecord) -> str:
        if record.name.startswith("ts.metrics"):  # TorchServe's own, meant to be read
            return record.getMessage()
        text = super().format(record).replace("\r", "\\r").replace("\n", "\\n")
        return f"{record.levelname} {record.name}: {text} ({record.process})"


def runtime_of(gpu_id: int | str | None, environment: Mapping[str, str]) -> Runtime:
    """How this worker runs its graphs: the device by TorchServe, the rest by the gateway that started the server."""
    engine: Literal["onnx", "torchscript"] = (
        "torchscript" if environment.get("PENSTOCK_WORKER_ENGINE") == "torchscript" else "onnx"
    )
    threads = int(environment.get("PENSTOCK_WORKER_THREADS", "1"))
    if gpu_id is None:
        return Runtime(engine=engine, threads=threads)
    return Runtime(engine=engine, threads=threads, device="gpu", device_index=int(gpu_id))


def status_of(error: PenstockError) -> int:
    """HTTP status for plain callers; the same as the gateway gives."""
    return _STATUS.get(type(error), 400 if isinstance(error, RequestError) else 503)


def _predict(handler: Handler, batch: Sequence[Prediction]) -> list[Outcome]:
    if not batch:
        return []
    try:
        return handler.predict(batch)
    except Exception as error:  # noqa: BLE001  leaving would fail the requests that TorchServe batched with this one
        _log.error("a batch of %d failed", len(batch), exc_info=error)
        failure = BackendFailed(f"model '{handler.manifest.name}' failed; see the log of its worker")
        return [Outcome.of_error(failure)] * len(batch)


def _plain_prediction(handler: Handler, inputs: Mapping[str, Any], headers: Mapping[str, Any]) -> Prediction:
    """A request as TorchServe's REST or gRPC clients send it: `body`, `data`, or the only part of a form."""
    key = next((name for name in ("body", "data") if name in inputs), None)
    if key is None:
        if len(inputs) != 1:
            raise InvalidBody(f"expected one body or one form field named data; found {', '.join(inputs) or 'nothing'}")
        (key,) = inputs
    lower = {name.lower(): _text(value) for name, value in headers.items() if not isinstance(value, Mapping)}
    part = headers.get(key)
    content_type = _text(part.get("content-type")) if isinstance(part, Mapping) else ""
    content_type = content_type or lower.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() in _UNDECLARED:
        content_type = handler.manifest.modes[handler.manifest.default_mode].content_types[0]
    return Prediction(
        model=handler.manifest.name,
        version=handler.manifest.version,
        body=_bytes(inputs[key]),
        content_type=content_type,
        accept=lower.get("accept", ""),
        request_id=lower.get("x-request-id", ""),
        traceparent=lower.get("traceparent", ""),
    )


def _respond(outcome: Outcome, index: int, context: Any) -> bytes:
    if outcome.ok:
        context.set_response_content_type(index, outcome.content_type)
        return outcome.body
    error = outcome.error()
    status = status_of(error)
    context.set_response_status(status, code_of(error), index)
    context.set_response_content_type(index, "application/json")
    return orjson.dumps({"code": status, "type": code_of(error), "message": str(error)})


def _bytes(value: Any) -> bytes:
    """What TorchServe made of a body: bytes, text where the header said so, or an object where it said JSON."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return value.encode() if isinstance(value, str) else orjson.dumps(value)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else str(value or "")


def _tame_logs(*, quiet: bool) -> None:
    """`quiet` saves several lines per request, which TorchServe parses; the gateway measures by itself."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(OneLine())
    if quiet:
        logging.getLogger().setLevel(logging.WARNING)


def _report(path: Path, error: Exception) -> None:
    """Leave the reason of a failed start for the gateway; whole or not at all."""
    code = code_of(error) if isinstance(error, PenstockError) else code_of(BackendFailed())
    text = str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_bytes(orjson.dumps({"code": code, "message": text}))
    aside.replace(path)


_service = PenstockService()


def handle(data: Sequence[Mapping[str, Any]] | None, context: Any) -> list[bytes] | None:
    """TorchServe's function entry point `handlers.torchserve:handle`; called once without data to initialise."""
    if data is None:
        _service.initialize(context)
        return None
    return _service.handle(data, context)
