"""What TorchServe's answers mean, and a batch that takes several calls."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from formats.envelope import Outcome, Prediction, Stages
from formats.packed import pack_outcomes, unpack_predictions
from formats.protos.torchserve_pb2 import PredictionResponse, PredictionsRequest
from gateway.backends import torchserve_calls
from gateway.backends.torchserve_calls import _PACKED, _SERVICE, Caller, _parts, target_of, verdict_of
from handlers.torchserve import PACKED

NO_WORKER = (
    'Model "m" has no worker to serve inference request. Please use scale workers API to add workers. If this is a '
    "sequence inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize\n"
    "InternalServerException.()"
)
UNAVAILABLE, INTERNAL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        (INTERNAL, "Worker died.\nInternalServerException.()", "LOST"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Worker died.", "LOST"),
        (
            INTERNAL,
            NO_WORKER,
            "REFUSED",
        ),
        (UNAVAILABLE, "Prediction failed", "RAISED"),
        (UNAVAILABLE, "number of batch response mismatched", "RAISED"),
        (UNAVAILABLE, "Invalid model predict output", "RAISED"),
        (UNAVAILABLE, "Unsupported model output data type.", "RAISED"),
        (INTERNAL, "Out of resources", "EXHAUSTED"),
        (INTERNAL, "Model not found: m\nModelNotFoundException.()", "UNKNOWN_MODEL"),
        (INTERNAL, "Model version: 9 does not exist\nModelVersionNotFoundException.()", "UNKNOWN_MODEL"),
        (UNAVAILABLE, "failed to connect to all addresses; last error: UNKNOWN: Connection refused (111)", "REFUSED"),
        (UNAVAILABLE, "connections to all backends failing; last error: ipv4:1.2.3.4:5: Socket closed", "REFUSED"),
        (UNAVAILABLE, "DNS resolution failed for nowhere:1", "REFUSED"),
        (UNAVAILABLE, "Socket closed", "LOST"),
        (UNAVAILABLE, "recvmsg:Connection reset by peer", "LOST"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", "LOST"),
        (grpc.StatusCode.CANCELLED, "RST_STREAM with error code 8", "UNUSABLE"),
        (grpc.StatusCode.PERMISSION_DENIED, "Token Authorization failed.", "UNUSABLE"),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found", "UNUSABLE"),
    ],
)
def test_the_details_decide_not_the_code(code: grpc.StatusCode, details: str, verdict: str) -> None:
    """Protocol contract, sections 3.2, 3.4 and 5."""
    assert verdict_of(code, details).name == verdict


@pytest.mark.parametrize(
    ("targets", "target"),
    [
        (["torchserve.models.svc:7070"], "dns:///torchserve.models.svc:7070"),
        (["10.0.0.1:7070", "10.0.0.2:7070"], "ipv4:10.0.0.1:7070,10.0.0.2:7070"),
        (["[::1]:7070", "[::2]:7070"], "ipv6:[::1]:7070,[::2]:7070"),
    ],
)
def test_targets_become_one_name_or_many_addresses(targets: list[str], target: str) -> None:
    assert target_of(targets) == target


def test_several_names_are_refused_because_a_channel_resolves_one() -> None:
    with pytest.raises(ValueError, match=r"a:1, b:1.*one DNS name"):
        target_of(["a:1", "b:1"])


def test_a_batch_of_huge_bodies_travels_in_several_calls() -> None:
    """32 bodies of 25 MB in one message would need several times 800 MB of the JVM's heap."""
    batch = [Prediction("m", "1", bytes(size)) for size in (40 << 20, 20 << 20, 10 << 20, 80 << 20, 1)]

    assert [[len(p.body) >> 20 for p in part] for part in _parts(batch)] == [[40, 20], [10], [80], [0]]


def test_an_empty_batch_is_still_one_call() -> None:
    assert list(_parts([])) == [[]]


def test_both_sides_spell_the_input_key_alike() -> None:
    assert _PACKED == PACKED


class _Server:
    """Speaks TorchServe's protocol as its worker does: each body comes back, at one second a stage and item."""

    def __init__(self, poison: bytes = b"") -> None:
        self.sizes: list[int] = []
        self._poison = poison

    async def predictions(self, request: PredictionsRequest, context: Any) -> PredictionResponse:
        batch = unpack_predictions(request.input[_PACKED], "m", "1")
        self.sizes.append(len(batch))
        if any(each.body == self._poison for each in batch):
            await context.abort(UNAVAILABLE, "Prediction failed")
        each = float(len(batch))
        return PredictionResponse(
            prediction=pack_outcomes([Outcome(p.body, stages=Stages(each, each, each)) for p in batch])
        )

    def predict(self, bodies: bytes) -> list[Outcome]:
        """Serve one batch of bodies of a byte each."""
        return asyncio.run(self._predict([Prediction("m", "1", bytes([each])) for each in bodies]))

    async def _predict(self, batch: list[Prediction]) -> list[Outcome]:
        method = grpc.unary_unary_rpc_method_handler(
            self.predictions, PredictionsRequest.FromString, PredictionResponse.SerializeToString
        )
        server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler(_SERVICE.strip("/"), {"Predictions": method})
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        caller = Caller(f"ipv4:127.0.0.1:{port}", 30)
        try:
            return await caller.predict("m", "1", batch)
        finally:
            await caller.close()
            await server.stop(None)


def test_a_batch_in_several_calls_has_the_stages_of_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `hop`, which is what a call took beside its stages, would hold the work of all calls but the first."""
    monkeypatch.setattr(torchserve_calls, "_MAX_CALL_BYTES", 2)
    server = _Server()

    outcomes = server.predict(b"abcde")

    assert server.sizes == [2, 2, 1]
    assert [outcome.body for outcome in outcomes] == [b"a", b"b", b"c", b"d", b"e"]
    assert {outcome.stages for outcome in outcomes} == {Stages(5.0, 5.0, 5.0)}


def test_a_batch_that_was_divided_has_the_stages_of_its_pieces() -> None:
    server = _Server(poison=b"a")

    outcomes = server.predict(b"abc")

    assert server.sizes == [3, 1, 1, 1]
    assert [outcome.body or outcome.error_code for outcome in outcomes] == ["BackendFailed", b"b", b"c"]
    assert {outcome.stages for outcome in outcomes} == {Stages(2.0, 2.0, 2.0)}
