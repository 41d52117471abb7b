"""The load: `wrk` and `h2load` for quick answers, because they take little from the cores that they measure.

For slow answers, and where those are not installed, `loadtests.bench.client` and `loadtests.bench.grpc_client`. All of
them keep connections open, send the next request on each as soon as the last is answered, count, and look at every
status. What is in the answers is checked before and after by `loadtests.bench.requests.ask`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.bench.requests import FRAME_SUFFIX, Request
from loadtests.figures import percentile

__all__ = ["Burst", "generator_name", "send"]

_SCRIPT = Path(__file__).with_name("wrk.lua")
_PATIENCE_S = 90


@dataclass(frozen=True)
class Burst:
    """What the clients saw for a while."""

    answers: int
    seconds: float
    p50_s: float
    p99_s: float


def generator_name(request: Request, connections: int) -> str:
    tool = "h2load" if request.is_grpc else "wrk"
    return tool if connections <= request.quick_up_to and shutil.which(tool) else "own client"


def send(port: int, request: Request, connections: int, seconds: int, answer_bytes: int = 0) -> Burst:
    """Load one server for whole seconds.

    Args:
        answer_bytes: of the message of a right answer: h2load knows HTTP's statuses only, and a failed call has no
            message.

    Raises:
        RuntimeError: an answer was no success, or none came; counting it would flatter the server.
    """
    url = f"http://127.0.0.1:{port}{request.path}"
    name = generator_name(request, connections)
    if name == "h2load":
        found = _h2load(url, request, connections, seconds, answer_bytes)
    elif name == "wrk":
        threads = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
        found = _last_line(_run("wrk", *threads, "-s", str(_SCRIPT), url, "--", *_tail(request), seconds=seconds))
    else:
        module = "loadtests.bench.grpc_client" if request.is_grpc else "loadtests.bench.client"
        arguments = (url, str(connections), str(seconds), *_tail(request))
        found = _last_line(_run(sys.executable, "-m", module, *arguments, seconds=seconds))
    if found["errors"] or not found["answers"]:
        raise RuntimeError(
            f"{request.path}: {found['errors']} of {found['answers']} answers at {connections} connections failed"
        )
    return Burst(found["answers"], found["seconds"], found["p50_s"], found["p99_s"])


def _tail(request: Request) -> list[str]:
    return [str(request.body_file), *(part for pair in request.headers.items() for part in pair)]


def _run(*command: str, seconds: int) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer for {_PATIENCE_S} s") from None
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-500:] or done.stdout[-500:]}")
    return done.stdout


def _last_line(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def _h2load(url: str, request: Request, connections: int, seconds: int, answer_bytes: int) -> dict[str, Any]:
    """One stream a connection, as the other clients; a failed call shows by the message that is missing."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        output = _run(
            *("h2load", "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"--log-file={log}"),
            *("-d", str(request.body_file.with_suffix(FRAME_SUFFIX)), "-H", "te: trailers"),
            *("-H", "content-type: application/grpc", url),
            seconds=seconds,
        )
        lines = [line.split() for line in log.read_text().splitlines()]
    latencies = [int(duration) / 1e6 for _, status, duration in lines if status == "200"] or [0.0]
    received = re.search(r"\((\d+)\) data", output)
    assert received, output
    whole = int(received[1]) // (answer_bytes + 5)  # the prefix of a message
    return {
        "answers": len(lines),
        "seconds": seconds,
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
        # all that are whole, less those of the last moment that the log no longer has
        "errors": max(0, len(lines) - min(whole, len(latencies))) if answer_bytes else len(lines) - len(latencies),
    }
