"""One of several gateway processes, started and led by `gateway.supervisor` over a socket pair.

Lines of JSON travel on it. To this process: first an object of settings, index and admin_socket, then `"close_door"`,
`"drain"`, `"hurry"`. From it: `{"started": ...}` when it listens, `{"failed": reason}`, `{"door": "closed"}`. That the
link ends is an order too: a supervisor that is gone, whatever became of it, means drain and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import orjson
import uvloop

from formats.errors import PenstockError
from gateway.listening import stop_signals
from gateway.logs import configure_logs
from gateway.server import Gateway
from gateway.settings import parse_settings

__all__ = ["main"]

_log = logging.getLogger("penstock.process")

_MAX_LINE_BYTES = 16 * 1024 * 1024
_DEFERENCE_S = 0.5


async def _serve(link: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=link, limit=_MAX_LINE_BYTES)
    line = await reader.readline()
    if not line:
        return 0  # the supervisor has gone already
    order = orjson.loads(line)
    settings = parse_settings(order["settings"])
    configure_logs(settings.log_format, order["index"])
    signalled, _ = stop_signals()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def tell(message: dict[str, Any]) -> None:
        if not writer.is_closing():
            writer.write(orjson.dumps(message) + b"\n")

    try:
        gateway = Gateway(settings, Path(order["admin_socket"]))
        obeying = [
            asyncio.create_task(_obey(reader, gateway, stop, hurry, tell)),
            asyncio.create_task(_heed(signalled, stop)),
        ]
        await gateway.serve(stop, hurry, lambda started: tell({"started": {"empty": started.empty}}))
        for task in obeying:
            task.cancel()
    except (PenstockError, OSError, ValueError) as error:
        tell({"failed": " ".join(str(error).splitlines())})
        return 1
    except Exception as error:  # noqa: BLE001  the supervisor says which process it was, this log says where
        _log.exception("cannot serve")
        tell({"failed": f"{type(error).__name__}: {error}"})
        return 1
    finally:
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()
        if order["temporary"] and settings.run_dir is not None:
            shutil.rmtree(settings.run_dir, ignore_errors=True)
            with contextlib.suppress(OSError):  # the last one out, should the supervisor be gone
                settings.run_dir.parent.rmdir()
    return 0


async def _obey(
    reader: asyncio.StreamReader, gateway: Gateway, stop: asyncio.Event, hurry: asyncio.Event, tell: Any
) -> None:
    async for line in reader:
        match orjson.loads(line):
            case "close_door":
                gateway.close_door()
                tell({"door": "closed"})
            case "drain":
                stop.set()
            case "hurry":
                hurry.set()
    if not stop.is_set():
        _log.error("the supervisor is gone: draining")
        stop.set()


async def _heed(signalled: asyncio.Event, stop: asyncio.Event) -> None:
    """A signal drains this process, but the supervisor goes first: it may have had the same signal.

    Whoever stops a service often signals all its processes. Only the supervisor can close every door before any
    connection, and only its second signal means hurry.
    """
    await signalled.wait()
    await asyncio.sleep(_DEFERENCE_S)
    stop.set()


def main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_serve(link))
    sys.exit(status)


if __name__ == "__main__":
    main()
