"""What a body in pieces costs, and how it is kept."""

import random
import sys

from gateway.rest.upload import MAX_PIECES, Upload, merge


def kept(pieces: list[bytes]) -> list[bytes]:
    """As the front door does it."""
    found: list[bytes] = []
    for piece in pieces:
        if len(found) < MAX_PIECES:
            found.append(piece)
        else:
            merge(found, piece)
    return found


def test_many_small_pieces_are_kept_as_few() -> None:
    pieces = [random.Random(7).randbytes(2) for _ in range(100_000)]

    found = kept(pieces)

    assert b"".join(found) == b"".join(pieces)
    assert len(found) <= MAX_PIECES
    assert sum(map(sys.getsizeof, found)) < 300_000 + 60 * MAX_PIECES  # instead of 35 bytes and a place for each two


def test_what_is_kept_is_bytes_when_it_is_joined() -> None:
    found = kept([b"ab"] * (MAX_PIECES + 1))

    assert len(found) > 1
    assert type(b"".join(found)) is bytes


def test_a_body_of_known_length_has_no_overhead() -> None:
    upload = Upload(0.0)
    upload.read(300, 100)

    assert upload.read(50, 150) == 0


def test_what_is_neither_body_nor_chunk_is_overhead() -> None:
    upload = Upload(0.0)
    upload.read(300, 100)
    upload.num_chunks = 2

    assert upload.read(50 + 2 * 16, 150) == 0
    assert upload.read(7, 150) == 7
