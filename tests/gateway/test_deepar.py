"""A forecaster served live: seeded paths are the same alone, in a crowd, and on every backend."""

from __future__ import annotations

import json
import shutil
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


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_gives_the_paths_that_the_embedded_workers_give(store: Path) -> None:
    found = []
    for pool in (EMBEDDED, TORCHSERVE):
        with serving(store, pool, wait_s=150) as gateway:
            found.append(paths(gateway))

    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
