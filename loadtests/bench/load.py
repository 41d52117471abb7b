"""The load: `wrk` and `h2load` for quick answers, because they take little from the cores that they measure.

For slow answers, and where those are not installed, `loadtests.bench.client` and `loadtests.bench.grpc_client`. All of
them keep connections open, send the next request on each as soon as the last is answered, count, and look at every
status. What is in the answers is checked before and after, by `loadtests.bench.answers`; `locust`, if it is asked for,
checks that of every answer. All of them send several bodies in turn, but for h2load, which knows a single one, and for
wrk where the bodies are large.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadtests.bench.requests import FRAME_SUFFIX, Request
from loadtests.figures import percentile

__all__ = ["GENERATORS", "Burst", "Generator", "Load", "generator_name", "send"]

Generator = Literal["auto", "own", "locust"]
GENERATORS: tuple[Generator, ...] = ("auto", "own", "locust")

_SCRIPT = Path(__file__).with_name("wrk.lua")
_PATIENCE_S = 90
_COPIED_BYTES = 16_384
"""Up to here bodies take turns in wrk, which copies what its script returns; copying more would show in the figures."""


@dataclass(frozen=True)
class Load:
    connections: int
    seconds: int
    generator: Generator = "auto"
    cores: Sequence[int] = ()
    """Those that the load generator must keep to; all, if none are named."""


@dataclass(frozen=True)
class Burst:
    """What the clients saw for a while."""

    answers: int
    seconds: float
    p50_s: float
    p99_s: float
    cpu_s: float | None = None
    """What a client in Python used for its requests; its start takes much more."""


def generator_name(request: Request, connections: int, generator: Generator = "auto") -> str:
    if generator == "locust":
        return "locust"
    tool = "h2load" if request.is_grpc else "wrk"
    return tool if generator == "auto" and connections <= request.quick_up_to and shutil.which(tool) else "own client"


def send(port: int, request: Request, load: Load, answer_bytes: int = 0) -> Burst:
    """Load one server for whole seconds.

    Args:
        answer_bytes: of the message of a right answer: h2load knows HTTP's statuses only, and a failed call has no
            message.

    Raises:
        RuntimeError: an answer was no success, or none came; counting it would flatter the server.
    """
    url = f"http://127.0.0.1:{port}{request.path}"
    name = generator_name(request, load.connections, load.generator)
    if name == "h2load":
        found = _h2load(url, request, load, answer_bytes)
    elif name == "wrk":
        counts = ["-t1", f"-c{load.connections}", f"-d{load.seconds}s", "--timeout", "30s"]
        found = _last_line(_run(load, "wrk", *counts, "-s", str(_SCRIPT), url, "--", *_tail(request, _COPIED_BYTES)))
    elif name == "locust":
        found = _locust(port, request, load)
    else:
        module = "loadtests.bench.grpc_client" if request.is_grpc else "loadtests.bench.client"
        arguments = (url, str(load.connections), str(load.seconds), *_tail(request))
        found = _last_line(_run(load, sys.executable, "-m", module, *arguments))
    if found["errors"] or not found["answers"]:
        why = f": {found['why']}" if found.get("why") else ""
        raise RuntimeError(
            f"{request.path}: {found['errors']} of {found['answers']} answers at {load.connections} connections "
            f"failed{why}"
        )
    return Burst(found["answers"], found["seconds"], found["p50_s"], found["p99_s"], found.get("cpu_s"))


def _tail(request: Request, largest: int | None = None) -> list[str]:
    """The bodies' files, or the first alone where it is larger than that, and the headers."""
    single = largest is not None and request.bodies[0].stat().st_size > largest
    files = request.bodies[:1] if single else request.bodies
    return [os.pathsep.join(map(str, files)), *(part for pair in request.headers.items() for part in pair)]


def _run(load: Load, *command: str) -> str:
    confined = ("taskset", "-c", ",".join(map(str, load.cores))) if load.cores else ()
    try:
        done = subprocess.run(
            [*confined, *command], capture_output=True, text=True, timeout=load.seconds + _PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer for {_PATIENCE_S} s") from None
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-500:] or done.stdout[-500:]}")
    return done.stdout


def _last_line(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def _locust(port: int, request: Request, load: Load) -> dict[str, Any]:
    if request.is_grpc and not request.path.startswith("/inference."):
        raise RuntimeError("locust has no user for TorchServe's own gRPC calls")
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "request"
        file.write_text(request.dump())
        arguments = (str(port), str(load.connections), str(load.seconds), str(file))
        return _last_line(_run(load, sys.executable, "-m", "loadtests.bench.locust_client", *arguments))


def _h2load(url: str, request: Request, load: Load, answer_bytes: int) -> dict[str, Any]:
    """One stream a connection, as the other clients; a failed call shows by the message that is missing."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        output = _run(
            load,
            *("h2load", "-t1", f"-c{load.connections}", "-m1", f"-D{load.seconds}", f"--log-file={log}"),
            *("-d", str(request.bodies[0].with_suffix(FRAME_SUFFIX)), "-H", "te: trailers"),
            *("-H", "content-type: application/grpc", url),
        )
        lines = [line.split() for line in log.read_text().splitlines()]
    latencies = [int(duration) / 1e6 for _, status, duration in lines if status == "200"] or [0.0]
    received = re.search(r"\((\d+)\) data", output)
    assert received, output
    whole = int(received[1]) // (answer_bytes + 5)  # the prefix of a message
    return {
        "answers": len(lines),
        "seconds": load.seconds,
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
        # all that are whole, less those of the last moment that the log no longer has
        "errors": max(0, len(lines) - min(whole, len(latencies))) if answer_bytes else len(lines) - len(latencies),
    }
