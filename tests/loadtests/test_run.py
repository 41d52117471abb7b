"""`penstock load` against a real gateway."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.run import _run_locust
from tests.bundles import publish_tiny
from tests.gateway.live import LiveGateway, serving

PROTOCOLS = ("sagemaker", "torchserve", "oip", "oip-grpc")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    store = tmp_path_factory.mktemp("load") / "store"
    publish_tiny(store)
    with serving(store) as live:
        yield live


def load(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "load", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def load_live(gateway: LiveGateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    return load("--url", gateway.url, "--grpc", gateway.grpc_target, "--duration", "3", *arguments)


def rows(table: str) -> dict[str, list[float]]:
    """Requests, failures, answers per second, and three latencies in milliseconds, by protocol."""
    found = re.findall(r"^\| ([a-z-]*[a-z]) +\|((?: +[\d.]+ \|)+)$", table, re.MULTILINE)
    return {name: [float(cell) for cell in cells.split("|")[:-1]] for name, cells in found}


def test_every_protocol_is_loaded_and_nothing_fails(gateway: LiveGateway) -> None:
    run = load_live(gateway, "--endpoint", "tiny", "--users", "8")

    assert run.returncode == 0, run.stderr
    table = rows(run.stdout)
    assert set(table) == set(PROTOCOLS)
    for requests, failures, per_second, p50, p95, p99 in table.values():
        assert requests >= 20
        assert failures == 0
        assert requests / 8 < per_second < requests  # 3 seconds, give or take a busy machine
        assert 0 < p50 <= p95 <= p99 < 3000


def test_one_protocol_can_be_chosen(gateway: LiveGateway) -> None:
    run = load_live(gateway, "--endpoint", "tiny", "--protocol", "oip-grpc", "--users", "2")

    assert run.returncode == 0, run.stderr
    assert set(rows(run.stdout)) == {"oip-grpc"}


def test_a_failing_protocol_fails_the_command_and_says_why(gateway: LiveGateway) -> None:
    arguments = ("--endpoint", "tiny", "--protocol", "oip-grpc", "--grpc", f"127.0.0.1:{free_port()}")
    run = load_live(gateway, *arguments)

    assert run.returncode == 1
    requests, failures, *_ = rows(run.stdout)["oip-grpc"]
    assert requests == failures > 0
    assert "Connection refused" in run.stderr


def test_a_picture_that_no_model_can_read_fails_the_command(gateway: LiveGateway, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    run = load_live(gateway, "--endpoint", "tiny", "--images", str(tmp_path))

    assert run.returncode == 1
    assert "a picture cannot be decoded" in run.stderr


def test_a_closed_port_is_said_in_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    run = load("--url", url, "--endpoint", "tiny")

    assert run.returncode == 1
    assert run.stderr.splitlines() == [f"penstock load: no gateway at {url}: [Errno 111] Connection refused"]


def test_a_load_generator_that_never_ends_is_killed_and_said() -> None:
    """Nothing of it is left behind: an unreaped process would be a warning, and those are errors here."""
    status, said = _run_locust([sys.executable, "-c", "import time; time.sleep(300)"], 0.5)

    assert (status, said) == (1, "still running after 0.5 s\n")


def test_an_unknown_endpoint_is_said_in_one_line(gateway: LiveGateway) -> None:
    run = load_live(gateway, "--endpoint", "nope")

    assert run.returncode == 1
    assert "404" in run.stderr
    assert "nope" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--duration", "0", "--endpoint", "x"), "at least 1 second"),
        (("--protocol", "smtp", "--endpoint", "x"), "invalid choice: 'smtp'"),
        ((), "--endpoint"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: tuple[str, ...], complaint: str) -> None:
    run = load(*arguments)

    assert run.returncode == 2
    assert complaint in run.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
