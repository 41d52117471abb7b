import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from formats.protos import torchserve_pb2
from formats.protos.generate import generate, privatise

PROTOS = Path(torchserve_pb2.__file__).parent


def test_the_committed_modules_are_what_the_protos_compile_to(tmp_path: Path) -> None:
    for proto in PROTOS.glob("*.proto"):
        shutil.copy(proto, tmp_path)

    for module in generate(tmp_path):
        assert module.read_text() == (PROTOS / module.name).read_text(), (
            f"run python -m formats.protos.generate: {module}"
        )


def test_messages_stay_out_of_the_default_pool() -> None:
    name = torchserve_pb2.PredictionsRequest.DESCRIPTOR.full_name

    assert name == "org.pytorch.serve.grpc.inference.PredictionsRequest"
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(name)  # type: ignore[no-untyped-call]


def test_another_copy_of_the_same_messages_lives_in_the_same_process() -> None:
    """What failed with the default pool: two modules, one full name, different content."""
    script = """
from google.protobuf import descriptor_pb2, descriptor_pool
other = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="org.pytorch.serve.grpc.inference")
other.message_type.add(name="PredictionsRequest")
descriptor_pool.Default().Add(other)
from formats.protos import torchserve_pb2
assert torchserve_pb2.PredictionsRequest(model_name="m").SerializeToString() == b"\\n\\x01m"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


def test_a_proto_that_imports_another_is_refused() -> None:
    with pytest.raises(ValueError, match="imports another"):
        privatise("from google.protobuf import empty_pb2 as google_dot_protobuf_dot_empty__pb2\n", "x.proto")


def test_a_request_has_the_wire_form_of_torchserve() -> None:
    """Field numbers of the protocol contract, section 3.4, spelled out in bytes."""
    request = torchserve_pb2.PredictionsRequest(model_name="m", model_version="1", input={"data": b"\x01"})

    assert request.SerializeToString() == b"\x0a\x01m\x12\x011\x1a\x09\x0a\x04data\x12\x01\x01"
