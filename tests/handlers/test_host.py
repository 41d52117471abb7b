"""An embedded worker: every frame is answered, whatever it holds, and the worker lives on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
import orjson
import pytest

from formats.envelope import Outcome, Prediction
from formats.frames import HEADER, Frame, FrameParser, Kind, encode_frame
from formats.packed import pack_predictions, unpack_outcomes
from handlers.host import Host
from model_store.manifest import Manifest
from model_store.store import Bundle, seal
from tests.bundles import golden_image, image_png, tiny_answer, write_tiny_classifier

PNG = image_png(golden_image(4, 4))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_classifier(tmp_path / "tiny")


def changed(bundle: Path, **fields: object) -> Path:
    """Seal the bundle again with other fields."""
    seal(bundle, Manifest.model_validate({**Bundle.open(bundle).manifest.model_dump(), **fields}))
    return bundle


def order(bundle: Path, **runtime: object) -> bytes:
    packed: bytes = msgpack.packb({"path": str(bundle), "runtime": {"engine": "onnx", "device": "cpu", **runtime}})
    return packed


def batch(*bodies: bytes) -> bytes:
    return pack_predictions([Prediction("tiny", "1", body, "image/png", "application/json") for body in bodies])


class Worker:
    """The gateway's end of one worker, a frame at a time."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.connection, self.process = connection, process
        self._parser = FrameParser()

    def receive(self, count: int) -> list[Frame]:
        frames: list[Frame] = []
        while len(frames) < count:
            data = self.connection.recv(1 << 16)
            assert data, "the worker closed its end"
            frames += self._parser.feed(data)
        return frames

    def ask(self, kind: int, slot: int = 1, payload: bytes = b"", call: int = 7) -> Frame:
        self.connection.sendall(HEADER.pack(len(payload), kind, call, slot) + payload)
        (frame,) = self.receive(1)
        assert (frame.call, frame.slot) == (call, slot)
        return frame


@contextmanager
def running() -> Iterator[Worker]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "handlers.host", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            yield Worker(ours, process)
        finally:
            ours.close()
            if process.wait(20) != 0:
                pytest.fail(f"the worker ended with status {process.returncode}")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One real process for all that must not end it; it must end by itself, with status 0, when its socket does."""
    with running() as live:
        yield live


def failure(frame: Frame) -> tuple[str, str]:
    assert frame.kind == Kind.FAILED
    code, text = msgpack.unpackb(frame.payload)
    return code, text


def answers(frame: Frame) -> list[Outcome]:
    assert frame.kind == Kind.DONE, failure(frame)
    return unpack_outcomes(frame.payload)


def check_alive(worker: Worker, bundle: Path) -> None:
    assert worker.ask(Kind.LOAD, 99, order(bundle)).kind == Kind.DONE
    (outcome,) = answers(worker.ask(Kind.RUN, 99, batch(PNG)))
    np.testing.assert_allclose(orjson.loads(outcome.body), tiny_answer(golden_image(4, 4)), atol=1e-5)


def test_a_worker_loads_answers_and_unloads(worker: Worker, bundle: Path) -> None:
    assert worker.ask(Kind.LOAD, 1, order(bundle)) == Frame(Kind.DONE, 7, 1, b"")
    good, bad = answers(worker.ask(Kind.RUN, 1, batch(PNG, b"no picture")))
    assert (good.error_code, bad.error_code) == ("", "InvalidBody")
    assert worker.ask(Kind.UNLOAD, 1) == Frame(Kind.DONE, 7, 1, b"")

    assert failure(worker.ask(Kind.RUN, 1, batch(PNG))) == ("BackendFailed", "no model is loaded in slot 1")


def test_a_batch_before_its_model_is_refused(worker: Worker) -> None:
    assert failure(worker.ask(Kind.RUN, 12345, batch(PNG))) == ("BackendFailed", "no model is loaded in slot 12345")


def test_a_corrupt_bundle_is_refused_by_file(worker: Worker, bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")

    code, text = failure(worker.ask(Kind.LOAD, 1, order(bundle)))

    assert code == "CorruptBundle"
    assert "model.onnx does not match its checksum" in text


def test_a_missing_bundle_is_refused_by_its_place_and_not_by_its_whole_path(worker: Worker, tmp_path: Path) -> None:
    code, text = failure(worker.ask(Kind.LOAD, 1, order(tmp_path / "nowhere")))

    assert code == "CorruptBundle"
    assert f"{tmp_path.name}/nowhere: manifest.json is missing" in text
    assert str(tmp_path) not in text


def test_an_unknown_algorithm_is_refused_with_the_known_ones(worker: Worker, bundle: Path) -> None:
    code, text = failure(worker.ask(Kind.LOAD, 1, order(changed(bundle, algorithm="alchemy"))))

    assert code == "BackendFailed"
    assert "no handler for algorithm 'alchemy'; known: " in text


def test_a_model_that_strays_from_its_golden_answer_is_not_ready(worker: Worker, bundle: Path) -> None:
    (bundle / "golden.json").write_bytes(b"[0.1, 0.2, 0.7]")

    code, text = failure(worker.ask(Kind.LOAD, 1, order(changed(bundle))))

    assert code == "NotReady"
    assert "golden request: answer strays by" in text


def test_a_model_that_refuses_its_golden_request_is_not_ready(worker: Worker, bundle: Path) -> None:
    (bundle / "golden.png").write_bytes(b"no picture")

    code, text = failure(worker.ask(Kind.LOAD, 1, order(changed(bundle))))

    assert code == "NotReady"
    assert "golden request failed: InvalidBody" in text


def test_a_graph_that_is_none_fails_its_load(worker: Worker, bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"not a graph")

    assert failure(worker.ask(Kind.LOAD, 1, order(changed(bundle))))[0] == "BackendFailed"


def test_a_load_that_fails_leaves_what_was_loaded(worker: Worker, bundle: Path, tmp_path: Path) -> None:
    worker.ask(Kind.LOAD, 5, order(bundle))

    failure(worker.ask(Kind.LOAD, 5, order(tmp_path / "nowhere")))

    assert len(answers(worker.ask(Kind.RUN, 5, batch(PNG)))) == 1


@pytest.mark.parametrize("kind", [Kind.LOAD, Kind.RUN])
@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xc1", b"garbage", b"\0" * 10_000, b"\x91" * 10_000, b"\xdd\xff\xff\xff\xff"),
        *(msgpack.packb(value) for value in ({}, {"path": 1, "runtime": {}}, {"path": "", "runtime": None}, [1, [1]])),
        msgpack.packb({"path": "/nowhere/\ud800", "runtime": {}}, unicode_errors="surrogatepass"),
    ],
)
def test_a_garbage_payload_fails_and_the_worker_lives_on(
    worker: Worker, bundle: Path, kind: Kind, payload: bytes
) -> None:
    worker.ask(Kind.LOAD, 3, order(bundle))

    assert failure(worker.ask(kind, 3, payload))[0] in ("BackendFailed", "CorruptBundle")
    assert len(answers(worker.ask(Kind.RUN, 3, batch(PNG)))) == 1


@pytest.mark.parametrize("runtime", [{"engine": "tea"}, {"surprise": 1}, {"threads": "many"}])
def test_a_runtime_that_cannot_be_fails_or_is_ignored_but_never_kills(
    worker: Worker, bundle: Path, runtime: dict[str, object]
) -> None:
    worker.ask(Kind.LOAD, 1, order(bundle, **runtime))

    check_alive(worker, bundle)


@pytest.mark.parametrize("kind", [0, 4, 5, 6, 255])
def test_a_kind_that_nobody_sends_is_refused(worker: Worker, kind: int) -> None:
    assert failure(worker.ask(kind)) == ("BackendFailed", f"unknown frame kind {kind}")


def test_frames_that_come_in_pieces_or_together_are_answered_in_order(worker: Worker, bundle: Path) -> None:
    worker.ask(Kind.LOAD, 1, order(bundle))
    run = encode_frame(Kind.RUN, 21, 1, batch(PNG))
    for byte in run[:40]:
        worker.connection.sendall(bytes([byte]))

    worker.connection.sendall(run[40:] + encode_frame(Kind.UNLOAD, 22, 8))

    first, second = worker.receive(2)
    assert [(first.call, first.kind), (second.call, second.kind)] == [(21, Kind.DONE), (22, Kind.DONE)]


def test_signals_meant_for_the_gateway_do_not_end_a_worker(worker: Worker, bundle: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.process.pid, number)

    check_alive(worker, bundle)


def test_a_worker_ends_when_its_socket_is_cut_within_a_frame() -> None:
    with running() as live:
        live.connection.sendall(HEADER.pack(1000, Kind.RUN, 1, 1) + b"only the beginning")


def test_an_empty_batch_is_answered(bundle: Path) -> None:
    host = Host()
    host.answer(Kind.LOAD, 1, 1, order(bundle))

    (frame,) = FrameParser().feed(host.answer(Kind.RUN, 2, 1, batch()))

    assert answers(frame) == []
