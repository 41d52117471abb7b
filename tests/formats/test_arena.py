"""Memory shared by two processes: what is put is found, without a copy, and no place leads outside."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest

from formats.arena import ARENA_BYTES, LARGE_BYTES, Arena
from formats.envelope import Outcome, Prediction, Tensor
from formats.packed import pack_outcomes, pack_predictions, unpack_outcomes, unpack_predictions

pytestmark = pytest.mark.skipif(not Arena.supported(), reason="shared arenas need Linux")
LARGE = bytes(range(256)) * (LARGE_BYTES // 256)


@pytest.fixture
def pair() -> Iterator[tuple[Arena, Arena]]:
    """The sender's and the receiver's map of the same memory."""
    descriptor = Arena.create()
    yield Arena(descriptor), Arena(descriptor)
    os.close(descriptor)


def test_large_bodies_lie_outside_the_message(pair: tuple[Arena, Arena]) -> None:
    sender, receiver = pair
    tensor = Tensor("x", "UINT8", (len(LARGE),), memoryview(LARGE)[::-1].tobytes())
    batch = [Prediction("m", "1", body=LARGE), Prediction("m", "1", body=b"s"), Prediction("m", "1", tensors=(tensor,))]

    message = pack_predictions(batch, sender)

    assert len(message) < 200
    assert unpack_predictions(message, "m", "1", receiver) == batch


def test_a_tensor_is_read_where_it_lies_and_cannot_be_written(pair: tuple[Arena, Arena]) -> None:
    sender, receiver = pair
    message = pack_predictions([Prediction("m", "1", tensors=(Tensor("x", "UINT8", (), LARGE),))], sender)

    ((tensor,),) = (p.tensors or () for p in unpack_predictions(message, "m", "1", receiver))
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.readonly
    pack_predictions([Prediction("m", "1", body=LARGE[::-1])], sender)
    assert tensor.data == LARGE[::-1]


def test_an_answer_outlives_the_next_one(pair: tuple[Arena, Arena]) -> None:
    sender, receiver = pair
    answer = Outcome(body=LARGE, tensors=(Tensor("x", "UINT8", (), LARGE),))
    (back,) = unpack_outcomes(pack_outcomes([answer], sender), receiver)

    pack_outcomes([Outcome(body=LARGE[::-1])], sender)

    assert back == answer


def test_what_finds_no_room_goes_in_the_message(pair: tuple[Arena, Arena]) -> None:
    sender, receiver = pair
    half = bytes(ARENA_BYTES // 2 + 1)
    batch = [Prediction("m", "1", body=half), Prediction("m", "1", body=half), Prediction("m", "1", body=LARGE)]

    message = pack_predictions(batch, sender)

    assert len(half) < len(message) < len(half) + 200
    assert unpack_predictions(message, "m", "1", receiver) == batch


def test_any_view_can_be_put(pair: tuple[Arena, Arena]) -> None:
    sender, receiver = pair
    numbers = np.frombuffer(LARGE, "<f8")

    place = sender.put(numbers.data)

    assert isinstance(place, msgpack.ExtType)
    assert receiver.look_up(*place) == LARGE


@pytest.mark.parametrize(
    ("code", "place"),
    [
        (2, bytes(8)),
        (1, bytes(7)),
        (1, (ARENA_BYTES).to_bytes(4, "little") + (1).to_bytes(4, "little")),
        (1, b"\xff" * 8),
    ],
)
def test_a_place_outside_is_refused(code: int, place: bytes, pair: tuple[Arena, Arena]) -> None:
    message = msgpack.packb((2, [(msgpack.ExtType(code, place), "", "", "", None, [], {}, "")], None))

    with pytest.raises(ValueError, match=r"shared memory"):
        unpack_predictions(message, "m", "1", pair[1])


def test_a_place_means_nothing_without_an_arena(pair: tuple[Arena, Arena]) -> None:
    message = pack_predictions([Prediction("m", "1", body=LARGE)], pair[0])

    with pytest.raises(ValueError, match="item 0 has fields of the wrong"):
        unpack_predictions(message, "m", "1")


def test_neither_side_can_shrink_it_under_the_other() -> None:
    descriptor = Arena.create()
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        assert os.fstat(descriptor).st_size == ARENA_BYTES
    finally:
        os.close(descriptor)


def test_it_takes_memory_by_the_page_and_is_gone_with_its_users() -> None:
    program = (
        "import os; from formats.arena import Arena; fd = Arena.create(); a = Arena(fd); a.put(bytes(1_000_000));"
        "print(os.fstat(fd).st_blocks * 512)"
    )
    taken = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    assert 1_000_000 <= taken <= 1_000_000 + 2 * max(mmap.PAGESIZE, 2**21)
