"""locust's users as clients of any peer, with the last line of `loadtests.bench.client`; they check every answer.

The dearest client by far: it looks into every answer and runs several times more Python per request than the others,
so that a quick server waits for it. What it took of the cores stands in the page's column `client cores`.

python -m loadtests.bench.locust_client PORT CONNECTIONS SECONDS REQUEST-FILE
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# first of all: it makes gRPC and sockets wait for gevent
from loadtests.protocols import OipGrpcUser, SagemakerUser  # isort: split

import gevent  # type: ignore[import-untyped]
import numpy as np
from locust.env import Environment

from formats.protos import open_inference_pb2
from loadtests.bench.requests import Array, Request
from loadtests.locustfile import Record
from loadtests.workload import Body

__all__ = ["main"]


class HttpUser(SagemakerUser):
    """Posts the peer's own bodies, with its own headers, to its own path."""

    request: Request

    def post(self, path: str, index: int, body: bytes, headers: dict[str, str], values: Callable[[Any], Array]) -> None:
        del headers, values  # those of SageMaker's protocol
        read = self.request.read
        super().post(path, index, body, dict(self.request.headers), lambda r: read(r.content, r.headers))


@dataclass
class BenchWorkload:
    """As `loadtests.workload.Workload`."""

    request: Request
    accept: str = "*/*"

    def __post_init__(self) -> None:
        contents = [file.read_bytes() for file in self.request.bodies]
        self.bodies = [Body("", data) for data in contents]
        self.tensors: list[Mapping[str, Array]] = []
        if self.request.is_grpc:
            messages = [open_inference_pb2.ModelInferRequest.FromString(data) for data in contents]
            self.model_name = messages[0].model_name
            self.tensors = [{"x": _x_of(message)} for message in messages]

    def check_body(self, answer: bytes) -> Array:
        return self.request.read(answer, {})

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        return outputs["y"]

    def check(self, index: int, values: Array) -> None:
        """In the place of `loadtests.workload.Neighbours`: here each right answer is known beforehand."""
        self.request.compare(index, values)


def _x_of(message: open_inference_pb2.ModelInferRequest) -> Array:
    return np.frombuffer(message.raw_input_contents[0], np.float32).reshape(tuple(message.inputs[0].shape))


def run(port: int, num_users: int, seconds: float, request: Request) -> dict[str, Any]:
    workload = BenchWorkload(request)
    user: Any = OipGrpcUser if request.is_grpc else HttpUser
    user.request, user.path = request, request.path
    environment: Any = Environment(user_classes=[user], host=f"http://127.0.0.1:{port}")
    environment.workload = workload
    environment.neighbours = defaultdict(lambda: workload)
    environment.parsed_options = SimpleNamespace(
        grpc=f"127.0.0.1:{port}", endpoint=workload.model_name if request.is_grpc else ""
    )
    runner = environment.create_local_runner()
    runner.start(num_users, spawn_rate=num_users)
    runner.spawning_greenlet.join()
    record = Record()
    cpu_began = time.process_time()
    environment.events.request.add_listener(record.add)
    gevent.sleep(seconds)
    cpu_s = time.process_time() - cpu_began
    # before the users are ended, which would count as failures
    found = record.report().get(user.protocol, {"requests": 0, "failures": 0, "p50_s": 0.0, "p99_s": 0.0, "errors": []})
    return {
        "answers": found["requests"],
        "seconds": max(record.ended - record.began, 1e-9),
        "p50_s": found["p50_s"],
        "p99_s": found["p99_s"],
        "errors": found["failures"],
        "cpu_s": cpu_s,
        "why": found["errors"][0][0] if found["errors"] else "",
    }


def main(arguments: list[str]) -> None:
    port, num_users, seconds, request_file = arguments
    request = Request.load(Path(request_file).read_text())
    print(json.dumps(run(int(port), int(num_users), float(seconds), request)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
