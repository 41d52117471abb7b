"""HTTP/2 on the server's side: section numbers are those of RFC 9113."""

import asyncio
import struct
from typing import Any

import pytest

from gateway.grpc.frames import PREFACE, ErrorCode, Flag, Kind, frame, goaway, reset, settings, window_update
from gateway.grpc.headers import encode_headers
from tests.gateway.grpc.peer import HEADERS, Peer, Server, message

PROTOCOL, CALM = ErrorCode.PROTOCOL_ERROR, ErrorCode.ENHANCE_YOUR_CALM
SIZE, FLOW, CLOSED = ErrorCode.FRAME_SIZE_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.STREAM_CLOSED
END = Flag.END_HEADERS | Flag.END_STREAM
WINDOW, CONNECTION_WINDOW = 20_000, 70_000  # of `peer.LIMITS`


def works(peer: Peer, number: int) -> bool:
    """The connection still answers, on a stream that is new."""
    answer = peer.call(number, payload=b"still here")
    return (answer.body, answer.ended) == (message(b"still here"), True)


# the beginning: section 3.4


def test_the_server_says_at_once_what_it_takes(server: Server) -> None:
    peer = server.connect(greet=False)

    given = dict(struct.iter_unpack(">HI", peer.kinds(Kind.SETTINGS)[0].payload))
    assert given == {3: 10, 4: WINDOW, 5: 30_000, 6: 1000}
    assert peer.granted(0) == CONNECTION_WINDOW - 65_535


def test_a_whole_call_is_answered_in_one_write(peer: Peer) -> None:
    written: list[bytes] = []
    peer.connection._transport.write = written.append  # type: ignore[method-assign, assignment]

    peer.feed(peer.request(1))

    assert len(written) == 1


def test_a_conversation_cut_anywhere_is_the_same(server: Server) -> None:
    whole = server.connect(greet=False)
    conversation = [PREFACE, settings((4, 100_000)), whole.request(1), frame(Kind.PING, 0, 0, bytes(8))]
    whole.feed(*conversation)

    for pieces in (1, 2, 3, 7):
        peer = server.connect(greet=False)
        data = b"".join(conversation)
        for at in range(0, len(data), pieces):
            peer.feed(data[at : at + pieces])
        assert (peer.answers, peer.said) == (whole.answers, whole.said)


def test_a_cut_at_each_place_changes_nothing(server: Server) -> None:
    data = PREFACE + settings() + server.connect().request(1)
    for at in range(1, len(data)):
        peer = server.connect(greet=False)
        peer.feed(data[:at])
        peer.feed(data[at:])
        assert peer.answer(1).body == message()


NO_PREFACE = {
    "http/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("160301020001"),
    "almost": PREFACE[:-1] + b"\r",
    "no-settings": PREFACE + frame(Kind.PING, 0, 0, bytes(8)),
    "acknowledged-settings": PREFACE + frame(Kind.SETTINGS, Flag.ACK, 0, b""),
    "unknown-first": PREFACE + frame(0x77, 0, 0, b""),
}


@pytest.mark.parametrize("data", NO_PREFACE.values(), ids=NO_PREFACE.keys())
def test_what_is_no_http2_is_turned_away(server: Server, data: bytes) -> None:
    peer = server.connect(greet=False)

    peer.feed(data)
    peer.feed(b"more of it" * 100)

    assert peer.goodbye == PROTOCOL


UNFINISHED = {
    "nothing": b"",
    "preface": PREFACE[:10],
    "no-settings": PREFACE,
    "settings": PREFACE + settings((4, 5))[:-1],
    "frame": PREFACE + settings() + frame(Kind.PING, 0, 0, bytes(8))[:5],
    "headers": PREFACE + settings() + frame(Kind.HEADERS, Flag.END_HEADERS, 1, bytes(100))[:50],
    "block": PREFACE + settings() + frame(Kind.HEADERS, 0, 1, b"\x82"),
    "block-that-goes-on": PREFACE + settings() + frame(Kind.HEADERS, 0, 1, b"") + frame(Kind.CONTINUATION, 0, 1, b""),
}


@pytest.mark.parametrize("data", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_what_is_never_completed_ends_with_the_connection(server: Server, data: bytes) -> None:
    peer, other = server.connect(greet=False), server.connect()
    peer.feed(data)

    server.enforce(9)
    peer.wait(0.02)
    assert not peer.closed
    server.enforce(11)
    peer.wait(0.02)

    assert (peer.closed, peer.goodbye) == (True, CALM)
    assert works(other, 1)


def test_to_go_on_a_little_at_a_time_is_not_to_complete(server: Server) -> None:
    block, headers = server.connect(), server.connect()
    block.feed(frame(Kind.HEADERS, 0, 1, b""))
    headers.feed(frame(Kind.HEADERS, Flag.END_HEADERS, 1, bytes(100))[:50])

    for peer, more in ((block, frame(Kind.CONTINUATION, 0, 1, b"")), (headers, b"x")):
        peer.connection._reader.since -= 11
        peer.feed(more)
    server.enforce(0)

    assert (block.goodbye, headers.goodbye) == (CALM, CALM)


def test_what_was_completed_is_not_held_against_who_was_slow(server: Server, peer: Peer) -> None:
    request = peer.begin(1, "Hold")
    for piece in (
        request[:7],
        request[7:],
        frame(Kind.HEADERS, 0, 3, b""),
        frame(Kind.CONTINUATION, 4, 3, peer.block()),
    ):
        peer.feed(piece)

    server.enforce(11)

    assert not peer.kinds(Kind.GOAWAY)


def test_an_idle_connection_is_told_to_go(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"))
    server.enforce(100)
    peer._run(lambda: server.held[0].reply(b""))
    server.enforce(170)  # the call is over since some time after 100

    assert not peer.kinds(Kind.GOAWAY)
    peer.feed(frame(Kind.PING, 0, 0, bytes(8)))  # which is no call
    server.enforce(180)
    peer.wait(0.02)

    assert (peer.goodbye, peer.closed) == (ErrorCode.NO_ERROR, True)


def test_calls_between_two_looks_are_noticed(server: Server, peer: Peer) -> None:
    for number in range(1, 11, 2):
        peer.call(number)
        server.enforce(70 * number)

    assert not peer.kinds(Kind.GOAWAY)


def test_an_old_connection_takes_no_more_calls(server: Server, peer: Peer) -> None:
    """`Server` lets them become 1000 s old, give or take a tenth."""
    peer.feed(peer.request(1, "Hold"))
    left = peer.connection.retires - server.loop.time()
    assert 899 < left < 1100

    server.enforce(left - 1)
    assert not peer.kinds(Kind.GOAWAY)
    server.enforce(left + 1)
    assert (peer.goodbye, peer.call(3).reset) == (ErrorCode.NO_ERROR, ErrorCode.REFUSED_STREAM)
    peer._run(lambda: server.held[0].reply(b"done"))
    peer.wait(0.02)

    assert (peer.answer(1).body, peer.closed) == (message(b"done"), True)


def test_calls_that_outlast_an_old_connection_are_cancelled(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"))

    left = peer.connection.retires - server.loop.time()

    server.enforce(left + 1)
    assert not server.cancelled
    server.enforce(left + 61)

    assert (server.cancelled, peer.closed) == ([1], True)


# frames: sections 4 and 6


def test_padding_is_not_part_of_the_message(peer: Peer) -> None:
    block = peer.block()
    data = b"\x07" + message(b"padded") + bytes(7)

    peer.feed(frame(Kind.HEADERS, Flag.END_HEADERS | Flag.PADDED, 1, b"\x03" + block + bytes(3)))
    peer.feed(frame(Kind.DATA, Flag.END_STREAM | Flag.PADDED, 1, data))

    assert peer.answer(1).body == message(b"padded")


def test_a_frame_of_data_may_come_in_any_two_parts(server: Server) -> None:
    """Also one with padding, and one that is longer than what is read at once."""
    block = server.connect().begin(1)
    padded = frame(Kind.DATA, Flag.END_STREAM | Flag.PADDED, 1, b"\x07" + message(b"padded") + bytes(7))
    for data in (padded, frame(Kind.DATA, Flag.END_STREAM, 1, message(b"plain"))):
        for at in range(1, len(data)):
            peer = server.connect()
            peer.feed(block, data[:at])
            peer.feed(data[at:], frame(Kind.PING, 0, 0, bytes(8)))

            assert peer.answer(1).body in (message(b"padded"), message(b"plain"))
            assert peer.connection.streams == {}
            assert len(peer.kinds(Kind.PING)) == 1


def test_a_message_longer_than_the_window_may_come_in_frames_as_long_as_can_be(server: Server) -> None:
    peer = server.connect(greet={4: 2**20})
    long = message(bytes(range(250)) * 200)
    cuts = ((0, 20_000), (20_000, 50_000), (50_000, 60_000))
    frames = b"".join(frame(Kind.DATA, end > len(long), 1, long[begin:end]) for begin, end in cuts)

    peer.feed(peer.begin(1), frames[:5000])
    assert peer.granted(1) == 50_005 - WINDOW  # at once, for a frame that is not there yet
    for at in range(5000, len(frames), 7000):
        peer.feed(frames[at : at + 7000])

    assert peer.answer(1).reset is None
    assert peer.answer(1).body == long


def test_the_rest_of_a_frame_that_nobody_wants_is_read_over(server: Server, peer: Peer) -> None:
    answered = frame(Kind.DATA, 0, 1, message(bytes(10), length=60_000) + bytes(10_000))  # refused by its length
    unknown = frame(0x77, 0, 1, bytes(25_000))
    ended = frame(Kind.DATA, 0, 1, bytes(15_000))
    peer.feed(peer.begin(1), answered[:100])
    assert peer.answer(1).status == "RESOURCE_EXHAUSTED"

    rest = answered[100:] + unknown + ended + frame(Kind.PING, 0, 0, bytes(8))
    for at in range(0, len(rest), 999):
        peer.feed(rest[at : at + 999])

    assert len(peer.kinds(Kind.PING)) == 1
    assert works(peer, 3)


def test_priority_is_read_over(peer: Peer) -> None:
    flags = Flag.END_HEADERS | Flag.PRIORITY | Flag.PADDED
    peer.feed(frame(Kind.PRIORITY, 0, 3, bytes(5)), frame(Kind.HEADERS, flags, 3, b"\x00" + bytes(5) + peer.block()))
    peer.feed(peer.data(3, message()))

    assert peer.answer(3).status == "OK"


def test_a_block_may_go_on_in_other_frames(peer: Peer) -> None:
    block = peer.block(x="y" * 100)
    pieces = [block[at : at + 20] for at in range(0, len(block), 20)]
    assert len(pieces) > 3

    peer.feed(frame(Kind.HEADERS, 0, 1, pieces[0]), *(frame(Kind.CONTINUATION, 0, 1, each) for each in pieces[1:]))
    peer.feed(frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, b""), peer.data(1, message()))

    assert peer.answer(1).body == message()


def test_the_end_of_a_stream_may_stand_on_headers_that_go_on(peer: Peer) -> None:
    peer.feed(frame(Kind.HEADERS, Flag.END_STREAM, 1, peer.block()), frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, b""))

    assert (peer.answer(1).status, peer.answer(1).ended, peer.answer(1).reset) == ("INTERNAL", True, None)


def test_the_reserved_bit_and_unknown_flags_and_frames_are_ignored(peer: Peer) -> None:
    peer.feed(frame(Kind.HEADERS, 0xC0 | Flag.END_HEADERS, 1 | 1 << 31, peer.block()), frame(0x77, 0xFF, 1, b"?"))
    peer.feed(peer.data(1, message()))

    assert peer.answer(1).status == "OK"


def continuations(count: int, size: int) -> bytes:
    return frame(Kind.HEADERS, 0, 1, b"") + b"".join(frame(Kind.CONTINUATION, 0, 1, bytes(size)) for _ in range(count))


def setting(name: int, value: int) -> bytes:
    return settings((name, value))


BLOCK = encode_headers(*((name.encode(), value.encode()) for name, value in HEADERS.items()))
OPEN = frame(Kind.HEADERS, Flag.END_HEADERS, 1, BLOCK)
"""A request on stream 1 whose data is still to come; no table is used, so that it can stand anywhere."""
BAD: dict[str, tuple[bytes, ErrorCode]] = {
    "frame-too-long": (struct.pack(">BHBBI", 0, 30_001, Kind.DATA, 0, 1), SIZE),
    "headers-too-long": (frame(Kind.HEADERS, END, 1, bytes(16_385)), CALM),
    "headers-that-will-be-too-long": (frame(Kind.HEADERS, END, 1, bytes(16_385))[:20], CALM),
    "data-on-0": (frame(Kind.DATA, 0, 0, b"x"), PROTOCOL),
    "data-on-idle": (frame(Kind.DATA, 0, 5, b"x"), PROTOCOL),
    "data-on-even": (OPEN.replace(b"\0\0\0\1", b"\0\0\0\5", 1) + frame(Kind.DATA, 0, 2, b"x"), PROTOCOL),
    "data-padding": (OPEN + frame(Kind.DATA, Flag.PADDED, 1, b"\x05abcd"), PROTOCOL),
    "data-padding-empty": (OPEN + frame(Kind.DATA, Flag.PADDED, 1, b""), PROTOCOL),
    "headers-on-0": (frame(Kind.HEADERS, END, 0, BLOCK), PROTOCOL),
    "headers-on-even": (frame(Kind.HEADERS, END, 2, BLOCK), PROTOCOL),
    "headers-padding": (frame(Kind.HEADERS, END | Flag.PADDED, 1, b"\xff" + BLOCK[:99]), PROTOCOL),
    "headers-priority": (frame(Kind.HEADERS, END | Flag.PRIORITY, 1, b"abcd"), SIZE),
    "stream-again": (frame(Kind.HEADERS, END, 1, BLOCK) * 2, PROTOCOL),
    "stream-lower": (frame(Kind.HEADERS, END, 5, BLOCK) + frame(Kind.HEADERS, END, 3, BLOCK), PROTOCOL),
    "block-interrupted": (frame(Kind.HEADERS, 0, 1, BLOCK) + frame(Kind.PING, 0, 0, bytes(8)), PROTOCOL),
    "block-interrupted-by-unknown": (frame(Kind.HEADERS, 0, 1, BLOCK) + frame(0x77, 0, 0, b""), PROTOCOL),
    "block-of-another": (frame(Kind.HEADERS, 0, 1, BLOCK) + frame(Kind.CONTINUATION, 4, 3, b""), PROTOCOL),
    "continuation-of-nothing": (frame(Kind.CONTINUATION, 4, 1, b""), PROTOCOL),
    "continuations-empty": (continuations(100, 0), CALM),
    "continuations-long": (continuations(5, 1000), CALM),
    "priority-on-0": (frame(Kind.PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    "priority-size": (frame(Kind.PRIORITY, 0, 1, bytes(4)), SIZE),
    "reset-on-0": (frame(Kind.RST_STREAM, 0, 0, bytes(4)), PROTOCOL),
    "reset-on-idle": (frame(Kind.RST_STREAM, 0, 1, bytes(4)), PROTOCOL),
    "reset-on-even": (OPEN.replace(b"\0\0\0\1", b"\0\0\0\5", 1) + frame(Kind.RST_STREAM, 0, 2, bytes(4)), PROTOCOL),
    "reset-size": (OPEN + frame(Kind.RST_STREAM, 0, 1, bytes(5)), SIZE),
    "settings-on-1": (frame(Kind.SETTINGS, 0, 1, b""), PROTOCOL),
    "settings-size": (frame(Kind.SETTINGS, 0, 0, bytes(7)), SIZE),
    "settings-ack-size": (frame(Kind.SETTINGS, Flag.ACK, 0, bytes(6)), SIZE),
    "settings-push": (setting(2, 2), PROTOCOL),
    "settings-window": (setting(4, 2**31), FLOW),
    "settings-window-replaced": (settings((4, 2**31), (4, 1)), FLOW),
    "settings-frame-small": (setting(5, 16_383), PROTOCOL),
    "settings-frame-large": (setting(5, 2**24), PROTOCOL),
    "push-promise": (frame(Kind.PUSH_PROMISE, 4, 1, bytes(4) + BLOCK), PROTOCOL),
    "ping-on-1": (frame(Kind.PING, 0, 1, bytes(8)), PROTOCOL),
    "ping-size": (frame(Kind.PING, 0, 0, bytes(7)), SIZE),
    "goaway-on-1": (frame(Kind.GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "goaway-size": (frame(Kind.GOAWAY, 0, 0, bytes(7)), SIZE),
    "window-size": (frame(Kind.WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
    "window-on-idle": (window_update(1, 5), PROTOCOL),
    "window-of-0": (window_update(0, 0), PROTOCOL),
    "window-overflow": (window_update(0, 2**31 - 1), FLOW),
    "window-overflow-by-settings": (OPEN + window_update(1, 2**30) + setting(4, 2**30), FLOW),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD.keys())
def test_a_broken_rule_ends_the_connection_with_its_reason(
    server: Server, peer: Peer, data: bytes, code: ErrorCode
) -> None:
    other = server.connect()

    peer.feed(data, peer.request(99))
    peer.wait(0.02)

    assert peer.goodbye == code
    assert peer.closed
    assert server.in_flight == 0
    assert works(other, 1)


# streams: section 5.1

MORE = frame(Kind.DATA, 0, 1, b"x")
ENDED = frame(Kind.HEADERS, Flag.END_HEADERS, 1, BLOCK.replace(b"Echo", b"Hold")) + frame(Kind.DATA, 1, 1, message())
"""A request on stream 1 that is held."""
LONG = message(bytes(15_995), length=50_000)
BAD_STREAM: dict[str, tuple[bytes, ErrorCode]] = {
    "data-after-the-end": (ENDED + MORE, CLOSED),
    "headers-after-the-end": (ENDED + frame(Kind.HEADERS, END, 1, encode_headers((b"x", b"y"))), CLOSED),
    "trailers-that-go-on": (OPEN + frame(Kind.HEADERS, 4, 1, encode_headers((b"x", b"y"))), PROTOCOL),
    "trailers-like-a-request": (OPEN + frame(Kind.HEADERS, END, 1, BLOCK), PROTOCOL),
    "window-of-0": (OPEN + window_update(1, 0), PROTOCOL),
    "window-overflow": (OPEN + window_update(1, 2**31 - 1), FLOW),
    "a-frame-longer-than-the-window": (OPEN + frame(Kind.DATA, 0, 1, LONG + bytes(8000)), FLOW),
    "more-than-the-window": (OPEN + frame(Kind.DATA, 0, 1, LONG) + frame(Kind.DATA, 0, 1, bytes(16_000)) * 3, FLOW),
}


@pytest.mark.parametrize(("data", "code"), BAD_STREAM.values(), ids=BAD_STREAM.keys())
def test_a_rule_that_one_stream_breaks_ends_that_alone(
    server: Server, peer: Peer, data: bytes, code: ErrorCode
) -> None:
    peer.feed(data)

    assert peer.answer(1).reset == code
    assert server.in_flight == 0
    assert works(peer, 3)
    for call in server.held:  # its answer comes too late
        call.reply(b"nobody reads this")
    assert server.cancelled == [1] * len(server.held)


def test_streams_may_be_left_out(peer: Peer) -> None:
    assert [peer.call(number).status for number in (1, 7, 21)] == ["OK"] * 3


def test_trailers_end_a_request(peer: Peer) -> None:
    trailers = frame(Kind.HEADERS, END, 1, encode_headers((b"x", b"y")))

    peer.feed(peer.begin(1), peer.data(1, message(), end=False), trailers)

    assert peer.answer(1).body == message()


def test_what_is_still_on_its_way_to_an_ended_stream_is_read_over(peer: Peer) -> None:
    peer.feed(peer.begin(1, "Nothing"))
    assert (peer.answer(1).status, peer.answer(1).reset) == ("UNIMPLEMENTED", ErrorCode.NO_ERROR)

    trailers = frame(Kind.HEADERS, END, 1, encode_headers((b"x", b"y")))
    peer.feed(peer.data(1, bytes(50_000), end=False), window_update(1, 7), trailers, reset(1, ErrorCode.CANCEL))

    assert works(peer, 3)


def test_too_many_streams_at_once_are_refused_and_may_come_again(server: Server, peer: Peer) -> None:
    for number in range(1, 25, 2):
        peer.feed(peer.request(number, "Hold"))

    assert len(server.held) == server.limits.max_streams
    assert [peer.answer(number).reset for number in (21, 23)] == [ErrorCode.REFUSED_STREAM] * 2
    server.held[0].reply(b"")
    assert works(peer, 25)


# flow control of answers: sections 5.2 and 6.9


def test_an_answer_longer_than_the_window_comes_as_the_window_opens(server: Server) -> None:
    peer = server.connect(greet={4: 10})
    answer = peer.call(1, payload=b"x" * 100)
    assert (answer.body, answer.ended) == (message(b"x" * 100)[:10], False)

    peer.widen(1, 1)
    assert len(peer.answer(1).body) == 11
    peer.widen(1, 94)

    assert (answer.body, answer.status, answer.ended) == (message(b"x" * 100), "OK", True)
    assert peer.connection.outgoing.unsent == 0


def test_an_answer_longer_than_the_connections_window_comes_as_that_opens(server: Server) -> None:
    peer = server.connect(greet={4: 2**20})
    peer.feed(peer.request(1, payload=b"x" * 40_000), peer.request(3, payload=b"y" * 40_000))
    first, second = peer.answer(1), peer.answer(3)
    assert (first.ended, len(first.body) + len(second.body)) == (True, 65_535)

    peer.feed(window_update(0, 10_000), window_update(0, 10_000))

    assert second.body == message(b"y" * 40_000)


def test_settings_change_the_windows_of_answers_that_wait(server: Server) -> None:
    peer = server.connect(greet={4: 10})
    peer.call(1, payload=b"x" * 100)

    peer.feed(setting(4, 4))  # leaves a window of -6 (6.9.2)
    peer.widen(1, 6)
    assert len(peer.answer(1).body) == 10
    peer.feed(setting(4, 30))
    assert len(peer.answer(1).body) == 10 + 26
    peer.feed(setting(4, 1000))

    assert peer.answer(1).ended


def test_an_answer_without_data_needs_no_window(server: Server) -> None:
    peer = server.connect(greet={4: 0})

    assert peer.call(1, "Nothing").ended


def test_long_answers_are_cut_into_the_frames_that_the_client_takes(server: Server) -> None:
    sizes: list[int] = []

    for most in (16_384, 30_000):
        peer = server.connect(greet={4: 2**20, 5: most})
        peer.widen(0, 2**20)
        peer.call(1, payload=bytes(39_995))
        sizes += [len(each.payload) for each in peer.data_frames]

    assert sizes == [16_384, 16_384, 7232, 30_000, 10_000]


def test_answers_that_nobody_lets_through_end_with_the_connection(server: Server) -> None:
    peer = server.connect(greet={4: 0})
    peer.call(1)

    server.enforce(29)
    assert not peer.closed
    server.enforce(31)

    assert peer.closed


def test_who_lets_answers_through_may_take_its_time(server: Server) -> None:
    peer = server.connect(greet={4: 1})
    peer.call(1)
    peer.connection.outgoing.waiting_since = server.loop.time() - 25
    peer.widen(1, 1)

    server.enforce(20)

    assert not peer.closed


def test_no_more_requests_are_taken_while_too_many_answers_wait(server: Server) -> None:
    peer = server.connect(greet={4: 0})
    for number in (1, 3, 5):
        peer.call(number, payload=bytes(40_000))

    assert peer.call(7).reset == ErrorCode.REFUSED_STREAM
    peer.cancel(1)

    assert peer.call(9).reset is None
    assert peer.connection.outgoing.unsent == 2 * 40_005 + 10


def test_a_flood_of_windows_is_worked_off_once(server: Server) -> None:
    peer = server.connect(greet={4: 0})
    numbers = range(1, 21, 2)
    for number in numbers:
        peer.call(number, payload=bytes(1000))

    peer.feed(*(window_update(number, 1) for _ in range(500) for number in numbers))

    assert [len(each.payload) for each in peer.data_frames] == [500] * 10


# flow control of requests


def test_the_window_of_the_connection_opens_as_data_comes(peer: Peer) -> None:
    before = peer.granted(0)
    peer.widen(0, 2**20)
    for number in range(1, 41, 2):
        assert peer.call(number, payload=bytes(10_000)).status == "OK"

    assert peer.granted(0) - before > 20 * 10_000 - CONNECTION_WINDOW // 2 - 10_000


def test_a_long_message_is_let_in_whole_as_soon_as_it_says_how_long(peer: Peer) -> None:
    peer.feed(peer.begin(1), peer.data(1, message(bytes(50_000))[:10], end=False))

    assert peer.granted(1) == 50_005 - WINDOW


def test_long_messages_wait_in_turn_when_together_they_are_too_long(server: Server, peer: Peer) -> None:
    payload = bytes(50_000)  # 30,005 beyond the window; 100,000 bytes are the most
    numbers = [1, 3, 5, 7, 9]
    for number in numbers:
        peer.feed(peer.begin(number), peer.data(number, message(payload)[:10], end=False))
    assert [bool(peer.granted(number)) for number in numbers] == [True, True, True, False, False]

    server.enforce(29)
    for number in numbers:
        peer.feed(peer.data(number, message(payload)[10:]))
        assert peer.answer(number).reset is None
        assert len(server.seen) == (number + 1) // 2

    assert peer.connection.room._granted == 0


def test_who_waits_for_others_is_not_blamed_for_it(server: Server, peer: Peer) -> None:
    for number in (1, 3, 5, 7):
        peer.feed(peer.begin(number), peer.data(number, message(bytes(50_000))[:10], end=False))

    for stream in peer.connection.streams.values():
        stream.heard -= 31

    server.enforce(0)

    assert [peer.answer(number).ended for number in (1, 3, 5, 7)] == [True, True, True, False]
    assert peer.granted(7) == 50_005 - WINDOW  # and now there is room


@pytest.mark.parametrize("ending", ["reset", "lost"])
def test_what_ends_gives_its_room_to_others(server: Server, peer: Peer, ending: str) -> None:
    for number in (1, 3, 5, 7):
        peer.feed(peer.begin(number), peer.data(number, message(bytes(50_000))[:10], end=False))

    if ending == "reset":
        peer.cancel(3)
        assert peer.granted(7)
        assert peer.connection.room._granted == 3 * 30_005
    else:
        peer.lose()
        assert (peer.granted(7), peer.connection.room._granted, server.in_flight) == (0, 0, 0)


def test_padding_does_not_use_up_what_the_message_needs(peer: Peer) -> None:
    request, used = message(bytes(30_000)), 0
    peer.feed(peer.begin(1))
    while request:
        window = WINDOW + peer.granted(1) - used
        before, after = (b"\xff", bytes(255)) if window > 256 else (b"", b"")
        data = request[: min(1000, window - len(before + after))]
        request = request[len(data) :]
        used += len(before + data + after)
        flags = (Flag.PADDED if before else 0) | (0 if request else Flag.END_STREAM)
        peer.feed(frame(Kind.DATA, flags, 1, before + data + after))

    assert peer.answer(1).body == message(bytes(30_000))
    assert used > 30_005 + 20 * 256


def test_a_client_that_pauses_within_a_request_is_told_so(server: Server, peer: Peer) -> None:
    peer.feed(peer.begin(1), peer.data(1, message()[:7], end=False))

    server.enforce(31)

    assert (peer.answer(1).status, peer.answer(1).ended) == ("DEADLINE_EXCEEDED", True)
    assert "30 s" in peer.answer(1).headers["grpc-message"]


def test_a_client_that_pauses_within_a_message_of_a_conversation_is_told_so(server: Server, peer: Peer) -> None:
    peer.feed(peer.begin(1, "Chat"), peer.data(1, message() + message()[:7], end=False))

    server.enforce(29)
    assert not peer.answer(1).ended
    server.enforce(31)
    peer.wait(0)

    assert (peer.answer(1).status, server.in_flight) == ("DEADLINE_EXCEEDED", 0)


@pytest.mark.parametrize("sent", [b"", message()])
def test_between_the_messages_of_a_conversation_a_client_may_pause(server: Server, peer: Peer, sent: bytes) -> None:
    peer.feed(peer.begin(1, "Chat"), peer.data(1, sent, end=False))

    server.enforce(500)

    assert not peer.answer(1).ended


@pytest.mark.parametrize(("more", "late"), [({}, 61), ({"grpc_timeout": "5S"}, 6)], ids=["ours", "the-clients"])
def test_a_request_is_complete_within_its_deadline_however_steadily_it_comes(
    server: Server, peer: Peer, more: dict[str, Any], late: float
) -> None:
    peer.feed(peer.begin(1, "Hold", **more), peer.data(1, message()[:-1], end=False))
    peer.connection.streams[1].heard += late

    server.enforce(late - 2)
    assert not peer.answer(1).ended
    server.enforce(late)

    assert (peer.answer(1).status, server.in_flight) == ("DEADLINE_EXCEEDED", 0)


# resets: sections 5.4.2 and 6.4


def test_a_reset_cancels_the_call_and_nothing_else(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"), peer.request(3, "Hold"))

    peer.cancel(1)

    assert (server.cancelled, server.in_flight) == ([1], 1)
    for call in server.held:
        call.reply(b"late")
    assert (peer.answer(1).headers, peer.answer(3).body) == ({}, message(b"late"))


def test_a_reset_before_the_message_leaves_nothing(server: Server, peer: Peer) -> None:
    peer.feed(peer.begin(1, "Hold"), reset(1, ErrorCode.CANCEL), peer.data(1, message()))

    assert (server.in_flight, server.held, peer.connection.streams) == (0, [], {})


def test_a_reset_while_the_answer_waits_ends_it(server: Server) -> None:
    peer = server.connect(greet={4: 10})
    peer.call(1, payload=bytes(100))

    peer.cancel(1)
    peer.widen(0, 1000)

    assert (len(peer.answer(1).body), peer.connection.outgoing.unsent, peer.connection.streams) == (10, 0, {})


def test_a_reset_after_the_answer_is_read_over(peer: Peer) -> None:
    peer.call(1)
    peer.cancel(1)

    assert works(peer, 3)


def test_a_lost_connection_cancels_what_it_carried(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"), peer.request(3, "Hold"), peer.begin(5))

    peer.lose()

    assert (server.cancelled, server.in_flight, len(server.application.connections)) == ([1, 3], 0, 0)
    server.held[0].reply(b"nobody is there")


def test_as_many_cancels_as_there_are_streams_are_nothing_bad(server: Server, peer: Peer) -> None:
    for first in range(1, 201, 20):
        numbers = range(first, first + 20, 2)
        peer.feed(*(peer.request(number, "Hold") for number in numbers))
        peer.feed(*(reset(number, ErrorCode.CANCEL) for number in numbers))

    assert len(server.cancelled) == 100
    assert works(peer, 301)


RAPID: dict[str, Any] = {
    "reset-by-the-client": lambda number: reset(number, ErrorCode.CANCEL),
    # CVE-2025-8671: the server is made to reset
    "window-of-0": lambda number: window_update(number, 0),
    "data-after-the-end": lambda number: frame(Kind.DATA, 0, number, b"x"),
}


@pytest.mark.parametrize("ending", RAPID.values(), ids=RAPID.keys())
def test_rapid_resets_end_the_connection(server: Server, peer: Peer, ending: Any) -> None:
    for number in range(1, 1001, 2):
        peer.feed(peer.request(number, "Hold"), ending(number))

    assert peer.goodbye == CALM
    assert len(server.cancelled) < 300  # 210, and 100 more for each second
    assert server.in_flight == 0


def test_resets_are_forgiven_in_time(server: Server, peer: Peer) -> None:
    for number in range(1, 401, 2):
        peer.feed(peer.request(number, "Hold"), reset(number, ErrorCode.CANCEL))
    peer.connection._unrest_at -= 2  # seconds

    for number in range(401, 801, 2):
        peer.feed(peer.request(number, "Hold"), reset(number, ErrorCode.CANCEL))

    assert peer.goodbye is None


# pings, settings and clients that do not read: sections 6.5 and 6.7


def test_a_ping_comes_back(peer: Peer) -> None:
    peer.feed(frame(Kind.PING, 0, 0, b"12345678"), frame(Kind.PING, Flag.ACK, 0, b"87654321"))

    assert [(each.flags, each.payload) for each in peer.kinds(Kind.PING)] == [(Flag.ACK, b"12345678")]


def test_a_flood_of_pings_ends_the_connection(peer: Peer) -> None:
    """The words are gRPC's: its clients then ask less often."""
    peer.feed(frame(Kind.PING, 0, 0, bytes(8)) * 10_000)

    assert peer.goodbye == CALM
    assert peer.kinds(Kind.GOAWAY)[0].payload[8:] == b"too_many_pings"
    assert len(peer.kinds(Kind.PING)) < 300


def test_a_ping_for_each_answer_is_nothing_bad(peer: Peer) -> None:
    for number in range(1, 1001, 2):
        assert peer.call(number).ended
        peer.feed(frame(Kind.PING, 0, 0, bytes(8)))

    assert peer.goodbye is None


def test_settings_are_acknowledged(peer: Peer) -> None:
    peer.feed(settings((1, 0), (2, 0), (3, 7), (6, 100), (0x99, 5)), frame(Kind.SETTINGS, Flag.ACK, 0, b""))

    assert [each.flags for each in peer.kinds(Kind.SETTINGS)] == [0, Flag.ACK, Flag.ACK]


def test_a_flood_of_settings_ends_the_connection(peer: Peer) -> None:
    peer.feed(settings((4, 1), (4, 2)) * 300)

    assert peer.goodbye == CALM


def test_who_does_not_read_is_not_read_from(server: Server) -> None:
    peer = server.connect(reads=False, greet={4: 2**20})

    peer.feed(*(peer.request(number, payload=bytes(16_000)) for number in range(1, 11, 2)))
    assert not peer.reading
    server.enforce(29)
    assert not peer.closed
    peer.connection.resume_writing()
    assert peer.reading
    peer.connection.pause_writing()
    server.enforce(31)

    assert peer.closed


def test_a_closed_connection_whose_last_words_nobody_takes_is_aborted(server: Server) -> None:
    peer = server.connect(reads=False)
    aborted = []
    peer.abort = lambda: aborted.append(True)  # type: ignore[method-assign]
    peer.close = lambda: None  # type: ignore[method-assign]

    peer.feed(window_update(0, 0))
    peer.wait(0.02)
    server.enforce(31)

    assert aborted


# goodbye: section 6.8


def test_a_goodbye_lets_calls_finish_and_takes_no_new_ones(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"))

    peer._run(peer.connection.go_away)
    peer.feed(peer.request(3))
    assert struct.unpack(">II", peer.kinds(Kind.GOAWAY)[0].payload) == (1, ErrorCode.NO_ERROR)
    assert peer.answer(3).reset == ErrorCode.REFUSED_STREAM
    peer._run(lambda: server.held[0].reply(b"done"))

    assert peer.answer(1).body == message(b"done")
    peer.wait(0.02)
    assert peer.closed


def test_a_client_that_says_goodbye_gets_its_answers_first(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"), goaway(0, ErrorCode.NO_ERROR, "thanks") * 100)
    assert not peer.closed

    peer._run(lambda: server.held[0].reply(b"done"))
    peer.wait(0.02)

    assert (peer.answer(1).status, peer.closed) == ("OK", True)


def test_nothing_is_answered_after_the_connection_was_given_up(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"), window_update(0, 0), peer.request(3))
    peer.feed(peer.request(5))

    assert (peer.goodbye, server.cancelled, len(server.seen)) == (PROTOCOL, [1], 1)


def test_the_text_of_a_goodbye_is_short(peer: Peer) -> None:
    peer.feed(frame(Kind.HEADERS, END, 1, b"\xff" * 16_000))

    last = peer.kinds(Kind.GOAWAY)[0]
    assert (last.code, len(last.payload) < 300) == (ErrorCode.COMPRESSION_ERROR, True)


def test_a_fault_of_our_own_ends_one_connection_only(
    server: Server, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = server.connect()
    monkeypatch.setitem(peer.connection._reader.handlers, Kind.PING, lambda *_: 1 / 0)

    peer.feed(frame(Kind.PING, 0, 0, bytes(8)))

    assert peer.goodbye == ErrorCode.INTERNAL_ERROR
    assert works(other, 1)


def test_a_loop_that_ends_takes_its_connections_along(server: Server, peer: Peer) -> None:
    async def end() -> None:
        peer.connection.close()
        await asyncio.sleep(0)

    server.loop.run_until_complete(end())

    assert (peer.closed, server.application.connections) == (True, set())
