"""The load: `wrk` for quick answers, because it takes little from the cores that it measures, where it is installed.

For slow answers, and without wrk, `loadtests.bench.client`. Both keep connections open, send the next request on each
as soon as the last is answered, count, and look at every status. What is in the answers is checked before and after
by `loadtests.bench.requests.ask`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.requests import Request

__all__ = ["Burst", "generator_name", "send"]

_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Burst:
    """What the clients saw for a while."""

    answers: int
    seconds: float
    p50_s: float
    p99_s: float


def generator_name(request: Request) -> str:
    return "wrk" if request.quick and shutil.which("wrk") else "own client"


def send(port: int, request: Request, connections: int, seconds: int) -> Burst:
    """Load one server for whole seconds.

    Raises:
        RuntimeError: an answer had another status than 200, or none came; counting it would flatter the server.
    """
    url = f"http://127.0.0.1:{port}{request.path}"
    headers = [part for pair in request.headers.items() for part in pair]
    tail = [str(request.body_file), *headers]
    if generator_name(request) == "wrk":
        threads = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
        command = ["wrk", *threads, "-s", str(_SCRIPT), url, "--", *tail]
    else:
        command = [sys.executable, "-m", "loadtests.bench.client", url, str(connections), str(seconds), *tail]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=False)
    if done.returncode:
        raise RuntimeError(f"{url}: the load generator failed: {done.stderr[-500:] or done.stdout[-500:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["errors"] or not found["answers"]:
        raise RuntimeError(f"{url}: {found['answers']} answers, {found['errors']} failed at {connections} connections")
    return Burst(found["answers"], found["seconds"], found["p50_s"], found["p99_s"])
