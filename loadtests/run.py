"""`penstock load`: users of every protocol on a running gateway, and a table of what they met."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.figures import markdown_table, three_digits
from loadtests.workload import Unusable, fetch_metadata, load_workload

__all__ = ["PROTOCOLS", "main"]

PROTOCOLS = {"sagemaker": "SagemakerUser", "torchserve": "TorchserveUser", "oip": "OipUser", "oip-grpc": "OipGrpcUser"}
"""By the name in the table, the user class in `loadtests.locustfile`."""

_START_PATIENCE_S = 60.0
_STOP_PATIENCE_S = 75.0
"""Longer than a request may take: locust waits for those that are under way."""
_ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    """Run the load test.

    Returns:
        0: every protocol was answered and nothing failed; 1: something failed or was not answered at all, or there is
        nothing to test; 2: the arguments make no sense.
    """
    try:
        options = _parse(arguments)
    except SystemExit as exit_:  # argparse has said why
        return int(exit_.code or 0)
    images = Path(options.images) if options.images else None
    try:
        load_workload(fetch_metadata(options.url, options.endpoint), images)
    except Unusable as error:
        print(f"penstock load: {error}", file=sys.stderr)
        return 1
    chosen = list(PROTOCOLS) if options.protocol == "all" else [options.protocol]
    if options.users < len(chosen):
        print(f"penstock load: --users {options.users}: {len(chosen)} protocols need one each", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        report_file = Path(directory) / "report.json"
        patience_s = _START_PATIENCE_S + options.duration + _STOP_PATIENCE_S
        status, said = _run_locust(_locust_command(options, chosen, report_file), patience_s)
        if status or not report_file.exists():  # not for failed requests: those are in the report
            print(f"{said}penstock load: locust ended with status {status}", file=sys.stderr)
            return 1
        report = json.loads(report_file.read_text())
    return _judge(report, chosen)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="penstock load",
        description="Load-test a running gateway: all users at once, each with one request at a time.",
        add_help=False,
    )
    parser.add_argument("--help", "--help-load", action="help", help="Show this and exit.")
    parser.add_argument("--endpoint", required=True, help="Name of the endpoint or model to test.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="The gateway's HTTP port (%(default)s).")
    parser.add_argument("--grpc", default="127.0.0.1:8081", help="The gateway's gRPC port (%(default)s).")
    parser.add_argument("--users", type=int, default=8, help="Users over all protocols together (%(default)s).")
    parser.add_argument("--duration", type=int, default=30, help="Seconds (%(default)s).")
    parser.add_argument("--protocol", choices=["all", *PROTOCOLS], default="all", help="(%(default)s)")
    parser.add_argument("--images", default="", help="Directory of JPEG and PNG files; default: made-up pictures.")
    options = parser.parse_args(arguments)
    if options.duration < 1:
        parser.error(f"--duration {options.duration}: expected at least 1 second")
    return options


def _locust_command(options: argparse.Namespace, chosen: Sequence[str], report_file: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), "--headless"),
        *("--only-summary", "--loglevel", "ERROR", "--exit-code-on-error", "0"),
        *("--host", options.url, "--endpoint", options.endpoint, "--grpc", options.grpc, "--images", options.images),
        *("--users", str(options.users), "--spawn-rate", str(options.users), "--run-time", f"{options.duration}s"),
        *("--stop-timeout", "60", "--report-file", str(report_file), *(PROTOCOLS[each] for each in chosen)),
    ]


def _run_locust(command: Sequence[str], patience_s: float) -> tuple[int, str]:
    """Run in a process of its own, since locust replaces the standard library's sockets by its own.

    Returns:
        its exit status (1 when it had to be killed after `patience_s` seconds), and what it said: tables in whole
        milliseconds, and tracebacks if there are any.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            status = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return 1, f"still running after {patience_s:g} s\n"
        except KeyboardInterrupt:  # locust got it too: it ends the run and reports what there is
            status = process.wait(_STOP_PATIENCE_S)
            if status:  # it was still starting
                return status, "interrupted\n"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        return status, output.read().decode(errors="replace")


def _judge(report: Mapping[str, Any], chosen: Sequence[str]) -> int:
    rows, healthy = [], True
    for protocol in chosen:
        found = report.get(protocol)
        if found is None:
            rows.append([protocol, "0", "-", "-", "-", "-", "-"])
            healthy = False
            continue
        latencies = [three_digits(found[name] * 1000) for name in ("p50_s", "p95_s", "p99_s")]
        counts = [str(found["requests"]), str(found["failures"]), three_digits(found["per_second"])]
        rows.append([protocol, *counts, *latencies])
        healthy = healthy and not found["failures"]
    print(markdown_table(["protocol", "requests", "failures", "answers/s", "p50 ms", "p95 ms", "p99 ms"], rows))
    for protocol in chosen:
        for text, count in report.get(protocol, {}).get("errors", []):
            print(f"{protocol}: {count} x {text}", file=sys.stderr)
    return 0 if healthy else 1
