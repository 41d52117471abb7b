"""Inference requests that repeat each other but for their numbers: what else they say is read once.

As with the heads in front of them (ADR 11). Kept with each head, so that what comes with secrets, and never has a head
that is kept, is not kept either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from formats.envelope import Tensor
from formats.tensors import DATATYPES, num_elements
from gateway.tensor_protocol import KnownSignature

__all__ = ["Known", "KnownRequests"]

_DATA = b'"data":'
_MAX_TRIES = 8
_MAX_BYTES = 2048
"""Of all but the numbers."""
_BRACKET = re.compile(rb"[\[\]]")
_FIELDS = frozenset({"inputs", "outputs", "parameters"})
_OF_REQUEST = frozenset({"binary_data_output"})
"""What tritonclient says where it names no outputs."""
_OF_BINARY = frozenset({"binary_data_size"})


class Known(KnownSignature):
    """What a request says beside its numbers. It has no id, and no parameter but what `as_binary` tells."""

    __slots__ = ("_answered", "_heads", "as_binary", "count", "described", "ends")

    def __init__(self, tensors: Sequence[Tensor], wanted: Sequence[str], as_binary: Mapping[str, bool]) -> None:
        """Args:
        tensors: of one such request.
        wanted: names of the outputs asked for, none for all.
        as_binary: see `oip._wanted`.
        """
        super().__init__(wanted)
        self.as_binary = as_binary
        self.described = [(each.name, each.datatype, each.shape) for each in tensors]
        self.count = num_elements(tensors[0].name, tensors[0].shape)
        """Elements of the first."""
        self.ends: list[int] = []
        """Where each binary tensor ends, from the first one's begin on."""
        self._answered: list[object] = []
        self._heads: list[bytes] = []

    def answer(self, name: str, version: str, outputs: Sequence[Tensor]) -> bytes:
        """The response of a request whose outputs are all to be JSON, none of them strings."""
        described: list[object] = [version, *[(each.name, each.datatype, each.shape) for each in outputs]]
        if described != self._answered:
            self._answered, self._heads = described, _heads(name, version, outputs)
        parts: list[bytes] = []
        for head, each in zip(self._heads, outputs, strict=False):
            flat = np.frombuffer(each.data, DATATYPES[each.datatype])
            if each.datatype == "FP16":
                flat = flat.astype(np.float32)
            parts += (head, orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY))
        parts.append(self._heads[-1])
        return b"".join(parts)


class KnownRequests:
    """Those that one head has stood before."""

    def __init__(self) -> None:
        self._seen = False
        self._num_tries = 0
        """Also those that came to nothing: who sends what cannot be kept is not to pay for it each time."""
        self._open: dict[bytes, list[tuple[bytes, Known]]] = {}
        """Of JSON with one tensor: by what stands before its numbers, what stands behind them."""
        self._whole: dict[bytes, Known] = {}
        """Of binary tensors: by the JSON before them."""

    def find_open(self, body: bytes) -> tuple[Known, list[Any]] | None:
        """What is known of a JSON request, and its one tensor's numbers as they are written."""
        begin = body.find(_DATA) + len(_DATA)
        for behind, known in self._open.get(body[:begin], ()):
            end = len(body) - len(behind)
            if end > begin and body.endswith(behind):
                try:
                    numbers = orjson.loads(memoryview(body)[begin:end])
                except ValueError:
                    return None
                return (known, numbers) if type(numbers) is list else None
        return None

    def find_whole(self, body: bytes, length: int) -> tuple[Known, tuple[Tensor, ...]] | None:
        """Likewise, of `length` bytes of JSON with binary tensors behind."""
        known = self._whole.get(body[:length])
        if known is None or len(body) - length != known.ends[-1]:
            return None
        binary, begin, tensors = memoryview(body)[length:], 0, []
        for (name, datatype, shape), end in zip(known.described, known.ends, strict=True):
            tensors.append(Tensor(name, datatype, shape, binary[begin:end]))
            begin = end
        return known, tuple(tensors)

    def remember(self, body: bytes, length: int, header: Mapping[str, Any], read: Callable[[], Known]) -> None:
        """Keep what was found fine the second time that it comes, if reading it again could tell nothing else.

        Args:
            body: the request.
            length: of its JSON, where binary tensors follow it, else 0.
            header: what that JSON says.
            read: makes something known of it.
        """
        seen, self._seen = self._seen, True
        # heads that come once are not worth it; ids and most parameters differ from one to the next
        if not seen or self._num_tries >= _MAX_TRIES or not header.keys() <= _FIELDS:
            return
        if not header.get("parameters", {}).keys() <= _OF_REQUEST:
            return
        self._num_tries += 1
        known = read()
        if any(datatype in ("BYTES", "BOOL") for _, datatype, _ in known.described):
            return  # whose bytes have to be looked at
        inputs = header["inputs"]
        if length:
            if length <= _MAX_BYTES and all(each.get("parameters", {}).keys() == _OF_BINARY for each in inputs):
                known.ends = np.cumsum([each["parameters"]["binary_data_size"] for each in inputs]).tolist()
                self._whole[body[:length]] = known
        elif len(inputs) == 1 and (begin := body.find(_DATA) + len(_DATA)) >= len(_DATA):
            before, behind = body[:begin], body[_end_of_list(body, begin) :]
            if len(before) + len(behind) <= _MAX_BYTES and _says_the_same(before, behind, header):
                self._open.setdefault(before, []).append((behind, known))


def _end_of_list(body: bytes, begin: int) -> int:
    """Behind the bracket that closes the first one."""
    depth = 0
    for bracket in _BRACKET.finditer(body, begin):
        depth += 1 if bracket[0] == b"[" else -1
        if depth <= 0:
            return bracket.end()
    return len(body)


def _says_the_same(before: bytes, behind: bytes, header: Mapping[str, Any]) -> bool:
    """Whether what stands between the two is the tensor's data, and all else is as in the header."""
    (tensor,) = header["inputs"]
    if "parameters" in tensor:
        return False
    try:
        found = orjson.loads(before + b"[null]" + behind)
    except ValueError:
        return False
    return bool(found == {**header, "inputs": [{**tensor, "data": [None]}]})


def _heads(name: str, version: str, outputs: Sequence[Tensor]) -> list[bytes]:
    """What stands before each output's numbers, and behind the last."""
    first = orjson.dumps({"model_name": name, "model_version": version, "outputs": []})[: -len(b"]}")]
    heads, between = [], first
    for each in outputs:
        described = orjson.dumps({"name": each.name, "datatype": each.datatype, "shape": each.shape})
        heads.append(between + described[:-1] + b"," + _DATA)
        between = b"},"
    return [*heads, b"}]}" if heads else first + b"]}"]
