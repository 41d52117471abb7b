"""Inference requests that repeat each other but for their raw tensors: what else they say is read once.

As with the heads of HTTP/1.1 (ADR 11): a client asks the same again and again, with other numbers. To parse a small
message, to look into it and to write the answer took a fifth of all that the gateway does for a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

from google.protobuf.message import DecodeError

from formats.envelope import Tensor
from formats.protos import open_inference_pb2 as pb
from gateway.tensor_protocol import KnownSignature

__all__ = ["Known", "KnownRequests", "response_head"]

_MAX_TRIES = 1024
_MAX_OF_A_SIZE = 8
_MAX_BYTES = 2048
"""Of all but the tensors."""
_MAX_TENSORS = 16
_RAW_INPUT = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_RAW_OUTPUT = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER

_tensor = partial(tuple.__new__, Tensor)
"""Makes one in half the time that its constructor takes."""


class Known(KnownSignature):
    """What a request says beside its raw tensors, and where those lie in it."""

    __slots__ = ("_answer_head", "_answered", "_described", "_places", "_text", "message")

    def __init__(self, message: pb.ModelInferRequest, text: bytes, sizes: Sequence[int]) -> None:
        """Args:
        message: without raw tensors.
        text: the same in bytes, which the tensors follow.
        sizes: of the tensors, in bytes.
        """
        super().__init__([each.name for each in message.outputs])
        self.message = message
        self._text = text
        self._described = [(each.name, each.datatype, tuple(each.shape)) for each in message.inputs]
        self._places: list[tuple[int, bytes, int]] = []
        """Of each raw tensor: where its field begins, how, and where it ends."""
        at = len(text)
        for size in sizes:
            head = field_head(_RAW_INPUT, size)
            self._places.append((at, head, at + len(head) + size))
            at += len(head) + size
        self._answered: list[object] = []
        self._answer_head = b""

    def tensors(self, data: bytes | bytearray) -> tuple[Tensor, ...] | None:
        """Those of a message of this size, uncopied; None if it is another one."""
        if not data.startswith(self._text):
            return None
        whole, found = memoryview(data).toreadonly(), []
        for (name, datatype, shape), (begin, head, end) in zip(self._described, self._places, strict=True):
            if not data.startswith(head, begin):
                return None
            found.append(_tensor((name, datatype, shape, whole[begin + len(head) : end])))
        return tuple(found)

    def answer(self, version: str, outputs: Sequence[Tensor]) -> bytes:
        """The response; all but its numbers is that of the last one, if the same outputs were described."""
        described: list[object] = [version, *[(each.name, each.datatype, each.shape) for each in outputs]]
        if described != self._answered:
            self._answered = described
            self._answer_head = response_head(self.message, version, outputs).SerializeToString()
        parts: list[bytes | memoryview] = [self._answer_head]
        for each in outputs:
            parts += (field_head(_RAW_OUTPUT, len(each.data)), each.data)
        return b"".join(parts)


class KnownRequests:
    """Requests that were answered, by their size and by their bytes. Shared by all connections of a process."""

    def __init__(self) -> None:
        self._of_size: dict[int, list[Known]] = {}
        self._tries: Counter[int] = Counter()
        """By size, also those that came to nothing: who sends what cannot be kept is not to pay for it each time."""

    def find(self, data: bytes | bytearray) -> tuple[Known, tuple[Tensor, ...]] | None:
        """What is known of a message, and the tensors in it."""
        for known in self._of_size.get(len(data), ()):
            tensors = known.tensors(data)
            if tensors is not None:
                return known, tensors
        return None

    def remember(self, data: bytes | bytearray, message: pb.ModelInferRequest, tensors: Sequence[Tensor]) -> None:
        """Keep what was found fine, if reading it again could tell nothing else.

        Args:
            data: the request.
            message: what it says; of its raw tensors, nothing is read.
            tensors: those.
        """
        if message.id or message.parameters or not 0 < len(tensors) <= _MAX_TENSORS:
            return  # of these, the next is another
        if any(each.parameters for each in message.inputs) or any(each.parameters for each in message.outputs):
            return
        if any(each.datatype == "BYTES" for each in tensors):  # whose sizes say nothing of the next
            return
        if self._tries[len(data)] >= _MAX_OF_A_SIZE:
            return
        if self._tries.total() >= _MAX_TRIES:
            self._of_size.clear()
            self._tries.clear()
        self._tries[len(data)] += 1
        sizes = [len(each.data) for each in tensors]
        length = len(data) - sum(len(field_head(_RAW_INPUT, size)) + size for size in sizes)
        if not 0 < length <= _MAX_BYTES:
            return
        text = bytes(data[:length])
        bare = _parsed(text)
        if bare is None or bare.raw_input_contents or not _same_but_raw(bare, message):
            return  # fields in another order
        known = Known(bare, text, sizes)
        again = known.tensors(data)
        if again is not None and [each.data for each in again] == [each.data for each in tensors]:
            self._of_size.setdefault(len(data), []).append(known)


def response_head(message: pb.ModelInferRequest, version: str, outputs: Iterable[Tensor]) -> pb.ModelInferResponse:
    """The response without its raw tensors, which follow all else."""
    described = [
        pb.ModelInferResponse.InferOutputTensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in outputs
    ]
    return pb.ModelInferResponse(model_name=message.model_name, model_version=version, id=message.id, outputs=described)


@lru_cache(maxsize=4096)
def field_head(number: int, size: int) -> bytes:
    """What stands before so many bytes of a field: its tag, and their number (protocol buffers, wire format)."""
    found = bytearray([number << 3 | 2])
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


def _parsed(text: bytes) -> pb.ModelInferRequest | None:
    try:
        return pb.ModelInferRequest.FromString(text)
    except (DecodeError, UnicodeDecodeError):
        return None


def _same_but_raw(bare: pb.ModelInferRequest, message: pb.ModelInferRequest) -> bool:
    other = pb.ModelInferRequest()
    other.CopyFrom(message)
    other.ClearField("raw_input_contents")
    return bool(bare == other)
