"""A forecaster served live: seeded paths are the same alone, in a crowd, and on every backend."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from exporters.archive import write_archive
from exporters.export import export
from loadtests.run import main as load
from model_store.store import Store
from penstock import app
from tests.forecasters import write_checkpoint
from tests.gateway.conftest import TORCHSERVE
from tests.gateway.live import EMBEDDED, LiveGateway, serving

_ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("forecaster")
    bundle = export(write_checkpoint(directory / "model"), directory / "bundle")
    Store(directory / "store").publish(bundle, name="sales", archive=write_archive)
    return directory / "store"


def bodies() -> list[dict[str, Any]]:
    configuration = {"num_samples": 20, "output_types": ["samples"], "seed": 4}
    return [
        {
            "instances": [{"start": "2024-03-01", "target": [float(level)] * length}],
            "configuration": configuration,
        }
        for level, length in ((1, 5), (300, 90), (7, 0), (2, 41), (50, 12))
    ]


def paths(gateway: LiveGateway) -> list[np.ndarray[Any, Any]]:
    """Of all series, asked for at once."""

    def ask(body: dict[str, Any]) -> np.ndarray[Any, Any]:
        answer = httpx.post(f"{gateway.url}/endpoints/sales/invocations", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return np.array(answer.json()["predictions"][0]["samples"])

    with ThreadPoolExecutor(5) as pool:
        return list(pool.map(ask, bodies()))


def test_seeded_paths_are_the_same_alone_and_in_a_crowd(store: Path) -> None:
    with serving(store, EMBEDDED) as gateway:
        together, again = paths(gateway), paths(gateway)
        lines = b"".join(json.dumps(body["instances"][0]).encode() + b"\n" for body in bodies())
        batch = httpx.post(
            f"{gateway.url}/endpoints/sales/invocations",
            content=lines,
            headers={"content-type": "application/jsonlines"},
        )
        bad = httpx.post(f"{gateway.url}/endpoints/sales/invocations", json={"instances": [{"target": [1]}]})

    for one, other in zip(together, again, strict=True):
        assert one.shape == (20, 4)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
    assert [sorted(json.loads(line)) for line in batch.text.splitlines()] == [["mean", "quantiles"]] * 5
    assert bad.status_code == 424
    assert "'start' is missing" in bad.json()["Message"]


def test_a_request_of_lines_is_configured_by_its_custom_attributes(store: Path) -> None:
    line = json.dumps({"start": "2024-03-01", "target": [1, 2, 3], "id": "a"}).encode()
    told = 'DEEPAR_INFERENCE_CONFIG={"num_samples": 3, "output_types": ["samples"], "forward_fields": ["id"]}'
    with serving(store, EMBEDDED) as gateway:

        def ask(attributes: str) -> httpx.Response:
            headers = {"content-type": "application/jsonlines", "x-amzn-sagemaker-custom-attributes": attributes}
            return httpx.post(f"{gateway.url}/endpoints/sales/invocations", content=line, headers=headers)

        answer, wrong = ask(told), ask("DEEPAR_INFERENCE_CONFIG={num_samples}")

    found = json.loads(answer.text)
    assert np.array(found["samples"]).shape == (3, 4)
    assert found["id"] == "a"
    assert wrong.json()["OriginalStatusCode"] == 400
    assert "custom attribute DEEPAR_INFERENCE_CONFIG" in wrong.json()["OriginalMessage"]


def test_users_of_every_protocol_get_right_answers(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(store, EMBEDDED) as gateway:
        told = ["--url", gateway.url, "--grpc", gateway.grpc_target, "--users", "4", "--duration", "3"]
        status = load(["--endpoint", "sales", *told])

    assert status == 0, capsys.readouterr().err


def test_predict_draws_what_the_gateway_forecasts(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    request, picture = tmp_path / "request.json", tmp_path / "forecast.png"
    request.write_text(json.dumps({"instances": [{"start": "2024-03-01", "target": [1, None, 3] * 9}]}))
    with serving(store, EMBEDDED) as gateway:
        asked = ["predict", "sales", str(request), "--url", gateway.url, "--plot"]
        drawn = CliRunner().invoke(app, [*asked, str(picture)])
        nowhere = CliRunner().invoke(app, [*asked, str(tmp_path / "none" / "forecast.png")])

    assert drawn.exit_code == 0, drawn.output
    assert len(json.loads(drawn.stdout)["predictions"][0]["quantiles"]["0.5"]) == 4
    with Image.open(picture) as image:
        assert image.format == "PNG"
    assert nowhere.exit_code == 1
    assert "No such file" in nowhere.stderr
    assert nowhere.stderr.count("\n") == 1


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_the_commands_of_the_page_run_as_they_are_written(tmp_path: Path) -> None:
    """But for fewer epochs, and ports that are free."""
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    page = (_ROOT / "docs" / "algorithms" / "deepar.md").read_text()
    commands = page.split("```sh\n")[1].split("```")[0]
    assert "epochs=10" in commands
    http, grpc, admin = (closed_port() for _ in range(3))
    commands = commands.replace("epochs=10", "epochs=1").replace("--wait", f"--url http://127.0.0.1:{http} --wait")
    for name, module in (("penstock", "-m penstock"), ("python", "")):  # as an installation puts them
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (tmp_path / name).chmod(0o755)
    script = "set -e\ntrap 'kill %1' ERR\n"
    ports = {"PENSTOCK_HTTP_PORT": http, "PENSTOCK_GRPC_PORT": grpc, "PENSTOCK_ADMIN_PORT": admin}
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {name: str(port) for name, port in ports.items()}
    ran = subprocess.run(
        ["bash", "-c", script + commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    (answer,) = (line for line in ran.stdout.splitlines() if line.startswith('{"predictions"'))
    assert len(json.loads(answer)["predictions"][0]["mean"]) == 24
    assert (tmp_path / "forecast.png").stat().st_size > 1000


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_gives_the_paths_that_the_embedded_workers_give(store: Path) -> None:
    found = []
    for pool in (EMBEDDED, TORCHSERVE):
        with serving(store, pool, wait_s=150) as gateway:
            found.append(paths(gateway))

    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
