"""The main loop of an embedded worker: one socket to the gateway, many models, one batch at a time.

Started by `gateway.backends.embedded` as `python -m handlers.host FD [REQUESTS ANSWERS]`, the descriptors of the socket
and of the arenas for large bodies. The end of the socket is the only order to stop:
signals meant for the gateway reach the whole process group, and a worker that obeyed them would drop what it runs.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack

from formats.arena import Arena
from formats.errors import BackendFailed, PenstockError, code_of
from formats.frames import FrameParser, Kind, encode_frame
from formats.garbage_collection import put_aside
from formats.packed import pack_outcomes, unpack_predictions
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle

__all__ = ["Host", "main", "open_handler"]

_log = logging.getLogger("penstock.host")

_READ_BYTES = 64 * 1024
"""Below the size from which the allocator asks the kernel for fresh pages each time."""


class Host:
    """Answers frames with frames; knows nothing of sockets."""

    def __init__(self, requests: Arena | None = None, answers: Arena | None = None) -> None:
        """Args: requests, answers: where large bodies lie; None when they come in the frames."""
        self._handlers: dict[int, Handler] = {}
        self._requests = requests
        self._answers = answers

    def answer(self, kind: int, call: int, slot: int, payload: bytes) -> bytes:
        """The reply to one frame, whatever goes wrong inside."""
        try:
            if kind == Kind.RUN:
                return encode_frame(Kind.DONE, call, slot, self._run(slot, payload))
            if kind == Kind.LOAD:
                self._handlers[slot] = load(payload)
                put_aside()
            elif kind == Kind.UNLOAD:
                self._handlers.pop(slot, None)
                put_aside(again=True)
            else:
                return _failed(call, slot, BackendFailed(f"unknown frame kind {kind}"))
        except PenstockError as error:
            return _failed(call, slot, error)
        except Exception as error:  # noqa: BLE001  a worker lives on: the gateway is told, the log has the trace
            _log.exception("frame of kind %d failed", kind)
            text = f"{type(error).__name__}: {error}" if kind == Kind.LOAD else "the worker failed; see its log"
            return _failed(call, slot, BackendFailed(text))
        return encode_frame(Kind.DONE, call, slot)

    def _run(self, slot: int, payload: bytes) -> bytes:
        handler = self._handlers.get(slot)
        if handler is None:
            raise BackendFailed(f"no model is loaded in slot {slot}")
        manifest = handler.manifest
        batch = unpack_predictions(payload, manifest.name, manifest.version, self._requests)
        return pack_outcomes(handler.predict(batch), self._answers)


def load(payload: bytes) -> Handler:
    """The handler that a LOAD payload asks for."""
    order = msgpack.unpackb(payload)
    return open_handler(Path(order["path"]), order["runtime"])


def open_handler(path: Path, runtime: Mapping[str, Any]) -> Handler:
    """Build the handler of a bundle, with the fields of `Runtime`, and hold it against its golden request.

    Raises:
        PenstockError: the bundle is damaged, or its answer is not the golden one.
    """
    bundle = Bundle.open(path)
    handler = load_handler(bundle, Runtime(**runtime))
    golden = golden_prediction(bundle)
    if golden is not None:
        (outcome,) = handler.predict([golden])
        check_golden(bundle, outcome)
    return handler


def _failed(call: int, slot: int, error: PenstockError) -> bytes:
    text = msgpack.packb((code_of(error), str(error)), unicode_errors="replace")  # a path may hold any bytes
    return encode_frame(Kind.FAILED, call, slot, text)


def serve(connection: socket.socket, host: Host) -> None:
    """Answer frames until the other end closes."""
    parser = FrameParser()
    while data := connection.recv(_READ_BYTES):
        for frame in parser.feed(data):
            connection.sendall(host.answer(*frame))


def main() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s %(levelname)s worker {os.getpid()}: %(message)s"
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    descriptor, *arenas = map(int, sys.argv[1:])
    host = Host(*map(Arena, arenas))
    for each in arenas:
        os.close(each)
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(True)
    try:
        serve(connection, host)
    except (BrokenPipeError, ConnectionResetError):
        _log.warning("the gateway is gone")


if __name__ == "__main__":
    main()
