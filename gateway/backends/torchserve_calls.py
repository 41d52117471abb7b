"""A batch as one call to TorchServe, and what TorchServe's answers really mean.

Its gRPC codes are upside down for retrying: a handler's exception is UNAVAILABLE, a full queue and a dead worker are
INTERNAL. So verdicts are read from the details text (protocol contract, sections 3.2, 3.4 and 5; measured with 0.12.0),
and gRPC's own retries are off.
"""

from __future__ import annotations

import enum
import http
import logging
from collections.abc import Iterator, Sequence

import grpc
import grpc.aio

from formats.envelope import Outcome, Prediction, Stages
from formats.errors import BackendFailed, Overloaded
from formats.packed import pack_predictions, unpack_outcomes
from formats.protos.torchserve_pb2 import Empty, PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from gateway.backends.backend import BatchLost, BatchRefused
from gateway.backends.torchserve_http import LocalHttp

__all__ = ["Caller", "Verdict", "target_of", "verdict_of"]

_log = logging.getLogger("penstock.torchserve")

_SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
_PACKED = "packed"
"""Input key of `handlers.torchserve`."""
PACKED_TYPE = "application/x-penstock-packed"
"""Content type of the same over REST, where a body has no key."""
_MAX_DETAILS = 4096
_MAX_CALL_BYTES = 64 * 1024 * 1024
"""Bodies of one call together; the JVM holds several copies of each."""
_PING_TIMEOUT_S = 2.0
_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # in truth the time limit of one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
]


class Verdict(enum.Enum):
    """What a failed call says about its batch."""

    REFUSED = "not executed: saturated, or nobody there"
    LOST = "perhaps executed, no answer will come"
    UNKNOWN_MODEL = "not executed: the server does not have the model"
    RAISED = "executed, the handler raised: repeating the same gives the same"
    EXHAUSTED = "executed, out of memory"
    UNUSABLE = "anything else"


# the first that is contained in the details decides
_BY_DETAILS: list[tuple[str, Verdict]] = [
    ("Worker died.", Verdict.LOST),
    ("has no worker to serve inference request", Verdict.REFUSED),
    ("Out of resources", Verdict.EXHAUSTED),
    ("ModelNotFoundException", Verdict.UNKNOWN_MODEL),
    ("ModelVersionNotFoundException", Verdict.UNKNOWN_MODEL),
    ("Prediction failed", Verdict.RAISED),
    ("number of batch response mismatched", Verdict.RAISED),
    ("Invalid model predict output", Verdict.RAISED),
    ("Unsupported model output data type", Verdict.RAISED),
]
# gRPC's own words for a call that never left
_NEVER_SENT = (
    "connections to all backends failing",
    "failed to connect",
    "connection refused",
    "resolution failed",
    "empty address list",
)


def verdict_of(code: grpc.StatusCode, details: str) -> Verdict:
    """Classify a failed call."""
    for text, verdict in _BY_DETAILS:
        if text in details:
            return verdict
    if code is grpc.StatusCode.UNAVAILABLE:
        return Verdict.REFUSED if any(text in details.lower() for text in _NEVER_SENT) else Verdict.LOST
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Verdict.LOST
    return Verdict.UNUSABLE


def target_of(targets: Sequence[str]) -> str:
    """The gRPC target of `host:port` entries: one name that DNS resolves to all servers, or plain addresses.

    Raises:
        ValueError: several entries with a name among them; gRPC resolves one name per channel.
    """
    if len(targets) == 1:
        return f"dns:///{targets[0]}"
    hosts = [target.rpartition(":")[0] for target in targets]
    if all(host.replace(".", "").isdecimal() for host in hosts):
        return f"ipv4:{','.join(targets)}"
    if all(host.startswith("[") for host in hosts):
        return f"ipv6:{','.join(targets)}"
    text = "give one DNS name that resolves to all servers, or their IP addresses"
    raise ValueError(f"targets {', '.join(targets)}: {text}; gRPC balances over one name or over addresses")


class _Failed(Exception):
    """A call that has no answer, and what that means."""

    def __init__(self, text: str, verdict: Verdict) -> None:
        super().__init__(text)
        self.verdict = verdict


class Caller:
    """A balanced channel to one or several TorchServe servers."""

    def __init__(self, target: str, timeout_s: float, local: str = "") -> None:
        """`timeout_s` ends a call that nothing else ended; TorchServe's own limit should come first.

        `local` is the `host:port` of the REST port of a server on this machine: predictions go there.
        """
        self._timeout_s = timeout_s
        self._http = LocalHttp(local, timeout_s) if local else None
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._predictions = self._channel.unary_unary(
            f"{_SERVICE}/Predictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        self._ping = self._channel.unary_unary(
            f"{_SERVICE}/Ping",
            request_serializer=Empty.SerializeToString,
            response_deserializer=TorchServeHealthResponse.FromString,
        )

    async def connect(self) -> None:
        """Until one server accepts a connection."""
        await self._channel.channel_ready()

    async def reachable(self) -> bool:
        """Does a server answer at all? Its word "Healthy" is not looked at: it is said of dead workers too."""
        try:
            await self._ping(Empty(), timeout=_PING_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
        await self._channel.close()

    async def predict(self, model: str, version: str, batch: Sequence[Prediction]) -> list[Outcome]:
        """Answer a batch: same length, same order.

        Args:
            model: the name that the server knows it by.
            version: empty for the server's default version.
            batch: may be empty, which asks no more than whether a worker answers.

        Raises:
            BatchRefused: nothing was executed.
            BatchLost: no answer will come.
        """
        return await self._predict_parts(model, version, list(_parts(batch)))

    async def _predict_parts(self, model: str, version: str, parts: Sequence[Sequence[Prediction]]) -> list[Outcome]:
        """One call after the other; each outcome has the stages of them all, as those of one call have."""
        outcomes: list[Outcome] = []
        stages: list[Stages] = []
        for part in parts:
            answered = await self._predict(model, version, part)
            outcomes += answered
            if answered and answered[0].stages is not None:
                stages.append(answered[0].stages)
        if stages and len(parts) > 1:
            total = Stages(*map(sum, zip(*stages, strict=True)))
            for outcome in outcomes:
                outcome.stages = total
        return outcomes

    async def _predict(self, model: str, version: str, batch: Sequence[Prediction]) -> list[Outcome]:
        send = self._send_grpc if self._http is None else self._send_http
        try:
            message = await send(model, version, pack_predictions(batch))
        except _Failed as failed:
            verdict = failed.verdict
            if verdict in (Verdict.REFUSED, Verdict.UNKNOWN_MODEL):
                raise BatchRefused(f"{model}: {failed}") from failed
            if verdict is Verdict.LOST:
                raise BatchLost(f"{model}: {failed}") from failed
            _log.error("model %s: %s: %s", model, verdict.value, failed)
            return await self._divided(model, version, batch, verdict)
        return _unpacked(model, message, len(batch))

    async def _send_grpc(self, model: str, version: str, message: bytes) -> bytes:
        request = PredictionsRequest(model_name=model, model_version=version, input={_PACKED: message})
        try:
            response: PredictionResponse = await self._predictions(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            raise _Failed(f"{error.code().name} {details}", verdict_of(error.code(), details)) from error
        return response.prediction

    async def _send_http(self, model: str, version: str, message: bytes) -> bytes:
        assert self._http is not None
        path = f"/predictions/{model}/{version}" if version else f"/predictions/{model}"
        answer = await self._http.post(path, PACKED_TYPE, message)
        if answer.status == http.HTTPStatus.OK:
            return answer.body
        details = answer.body[:_MAX_DETAILS].decode(errors="replace")
        raise _Failed(f"{answer.status} {details}", verdict_of(grpc.StatusCode.INTERNAL, details))

    async def _divided(self, model: str, version: str, batch: Sequence[Prediction], verdict: Verdict) -> list[Outcome]:
        """A batch that failed as a whole, in smaller pieces: innocent neighbours get their answers."""
        if len(batch) < 2 or verdict is Verdict.UNUSABLE:
            failure = {
                Verdict.RAISED: BackendFailed(f"the handler of model '{model}' failed; see the log of its worker"),
                Verdict.EXHAUSTED: Overloaded(f"model '{model}' ran out of memory on this request; try again later"),
            }.get(verdict, BackendFailed(f"model '{model}': TorchServe gave no usable answer; see the gateway's log"))
            return [Outcome.of_error(failure)] * len(batch)
        size = 1 if verdict is Verdict.RAISED else (len(batch) + 1) // 2
        pieces = [batch[start : start + size] for start in range(0, len(batch), size)]
        return await self._predict_parts(model, version, pieces)


def _unpacked(model: str, message: bytes, size: int) -> list[Outcome]:
    try:
        outcomes = unpack_outcomes(message)
    except (ValueError, TypeError) as error:
        _log.error("model %s: %s", model, error)
        failure = BackendFailed(f"model '{model}': its handler does not speak packed batches; publish it again")
        return [Outcome.of_error(failure)] * size
    if len(outcomes) == size:
        return outcomes
    if len(outcomes) == 1 and not outcomes[0].ok:  # it could not read the batch at all
        return outcomes * size
    failure = BackendFailed(f"model '{model}': {len(outcomes)} answers for {size} requests")
    return [Outcome.of_error(failure)] * size


def _parts(batch: Sequence[Prediction]) -> Iterator[Sequence[Prediction]]:
    """The batch in pieces of at most `_MAX_CALL_BYTES`, or of one item."""
    start, size_bytes = 0, 0
    for index, prediction in enumerate(batch):
        item_bytes = len(prediction.body) + sum(len(tensor.data) for tensor in prediction.tensors or ())
        if index > start and size_bytes + item_bytes > _MAX_CALL_BYTES:
            yield batch[start:index]
            start, size_bytes = index, 0
        size_bytes += item_bytes
    yield batch[start:]
