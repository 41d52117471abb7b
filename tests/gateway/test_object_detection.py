"""A detector served live: on the CPU pool although there is one for GPUs, and alike by every backend."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
from botocore.config import Config

from exporters.archive import write_archive
from exporters.export import export
from loadtests.run import main as load
from model_store.store import Store
from tests.bundles import image_png
from tests.detectors import write_checkpoint
from tests.gateway.conftest import TORCHSERVE
from tests.gateway.live import EMBEDDED, LiveGateway, serving

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

GPU_POOL = """
[pools.gpu]
device = "gpu"
workers = 1
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("detector")
    bundle = export(write_checkpoint(directory / "model", nms_topk=30), directory / "bundle")
    Store(directory / "store").publish(bundle, name="cells", archive=write_archive)
    return directory / "store"


def pictures() -> list[bytes]:
    random = np.random.default_rng(5)
    made = []
    for _ in range(6):
        height, width = random.integers(50, 400, 2)
        pixels = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
        pixels[height // 4 : height // 2, width // 3 :] = random.integers(0, 256, 3)
        made.append(image_png(pixels))
    return made


def ask(gateway: LiveGateway, body: bytes) -> list[list[float]]:
    answer = httpx.post(
        f"{gateway.url}/endpoints/cells/invocations",
        content=body,
        headers={"content-type": "image/png", "accept": "application/json;threshold=0.2"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    rows: list[list[float]] = answer.json()["prediction"]
    return rows


def test_detection_runs_on_the_cpu_pool_by_policy(store: Path) -> None:
    """The pool for GPUs stands first; the algorithm's own placement decides."""
    with serving(store, GPU_POOL + EMBEDDED) as gateway:
        (model,) = gateway.models().values()
        assert ask(gateway, pictures()[0])
        log = gateway.log

    assert "cells version 1 mode predict: runs on pool cpu (placement cpu, gpu)" in log
    assert {pool["name"]: pool["state"] for pool in model["pools"]} == {"cpu": "ready", "gpu": "cold"}


def test_boto3_gets_boxes(store: Path) -> None:
    with serving(store, EMBEDDED) as gateway:
        client: Any = boto3.client(
            "sagemaker-runtime",
            endpoint_url=gateway.url,
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}),
        )
        answer = client.invoke_endpoint(EndpointName="cells", ContentType="image/jpeg", Body=pictures()[1])
        text = answer["Body"].read()

    assert answer["ContentType"] == "application/json"
    assert text.startswith(b'{"prediction":[[')


def test_users_of_every_protocol_get_right_boxes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(store, EMBEDDED) as gateway:
        told = ["--url", gateway.url, "--grpc", gateway.grpc_target, "--users", "4", "--duration", "3"]
        status = load(["--endpoint", "cells", *told])
    said = capsys.readouterr()

    assert status == 0, said.err
    _, _, *rows = (line.split("|") for line in said.out.splitlines() if line.startswith("|"))
    assert [row[3].strip() for row in rows] == ["0"] * 4


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_finds_what_the_embedded_workers_find(store: Path) -> None:
    found = []
    for pool in (EMBEDDED, TORCHSERVE):
        with serving(store, pool, wait_s=150) as gateway:
            found.append([np.array(ask(gateway, body)).reshape(-1, 6) for body in pictures()])

    assert sum(map(len, found[0])) > 6
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(np.sort(theirs, axis=0), np.sort(ours, axis=0), atol=1e-3)
