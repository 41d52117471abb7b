import grpc
import pytest

from formats.envelope import Prediction
from gateway.backends.torchserve_calls import _PACKED, _parts, target_of, verdict_of
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
