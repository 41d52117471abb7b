"""What locust runs: `penstock load`, or by hand, with locust's own options and its web page:

locust -f loadtests/locustfile.py --host http://127.0.0.1:8080 --endpoint NAME --grpc 127.0.0.1:8081
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from locust import events

from loadtests.figures import percentile
from loadtests.protocols import OipGrpcUser, OipUser, SagemakerUser, TorchserveUser
from loadtests.workload import Neighbours, Unusable, fetch_metadata, load_workload

__all__ = ["OipGrpcUser", "OipUser", "SagemakerUser", "TorchserveUser"]

_MAX_ERRORS = 3


class Record:
    """Every answer's time, to the microsecond: locust's own statistics round to whole milliseconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self.failures: dict[str, Counter[str]] = defaultdict(Counter)
        self.began = time.monotonic()
        self.ended = self.began

    def add(self, name: str, response_time: float, exception: Exception | None = None, **_: Any) -> None:
        """A listener of locust's `request` event; `response_time` is in milliseconds."""
        self.ended = time.monotonic()
        self.seconds[name].append(response_time / 1000)
        if exception is not None:
            self.failures[name][str(exception)[:300]] += 1

    def report(self) -> dict[str, Any]:
        """By protocol: counts, answers per second, latencies in seconds, and the commonest failures."""
        elapsed = max(self.ended - self.began, 1e-9)
        return {
            name: {
                "requests": len(seconds),
                "failures": self.failures[name].total(),
                "per_second": (len(seconds) - self.failures[name].total()) / elapsed,
                **{f"p{share}_s": percentile(seconds, share / 100) for share in (50, 95, 99)},
                "errors": self.failures[name].most_common(_MAX_ERRORS),
            }
            for name, seconds in self.seconds.items()
        }


def _add_options(parser: Any, **_: Any) -> None:
    parser.add_argument("--endpoint", required=True, help="Name of the endpoint or model.")
    parser.add_argument("--grpc", default="127.0.0.1:8081", help="host:port of the gateway's gRPC port.")
    parser.add_argument("--images", default="", help="Directory of JPEG and PNG files to send.")
    parser.add_argument("--report-file", default="", help="Where to write the figures as JSON.")


def _prepare(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    try:
        metadata = fetch_metadata(options.host or "", options.endpoint)
        environment.workload = load_workload(metadata, Path(options.images) if options.images else None)
    except Unusable as error:
        sys.exit(f"penstock load: {error}")
    environment.neighbours = defaultdict(Neighbours)


def _begin(environment: Any, **_: Any) -> None:
    record = Record()
    environment.events.request.add_listener(record.add)
    environment.record = record


def _finish(environment: Any, **_: Any) -> None:
    record: Record | None = getattr(environment, "record", None)
    if environment.parsed_options.report_file and record is not None:
        Path(environment.parsed_options.report_file).write_text(json.dumps(record.report()))


_hooks: Any = events  # untyped
_hooks.init_command_line_parser.add_listener(_add_options)
_hooks.init.add_listener(_prepare)
_hooks.test_start.add_listener(_begin)
_hooks.quitting.add_listener(_finish)
