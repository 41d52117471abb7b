"""One live gateway per backend for all protocol tests, and the unmodified client of each protocol."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import grpc
import httpx
import numpy as np
import pytest
from botocore.config import Config
from PIL import Image

from tests.bundles import image_png, publish_tiny
from tests.gateway import graphs
from tests.gateway.live import EMBEDDED, LiveGateway, serving

IN_PROCESS = """
[pools.cpu]
device = "cpu"
workers = 0
"""
TORCHSERVE = """
[pools.cpu]
device = "cpu"
backend = "torchserve"
managed = true
workers = 1
"""
TOP = """
max_body_bytes = 1048576
default_endpoint = "tiny"
grpc_reflection = true
"""
ENDPOINTS = """
[endpoints.shop]
variants = [
    { name = "old", model = "tiny", version = "1", weight = 3 },
    { name = "new", model = "tiny", version = "2", weight = 1 },
]
"""


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store: `tiny` version 1 of three classes and version 2 of four, and the graphs of `tests.gateway.graphs`."""
    store = tmp_path_factory.mktemp("zoo") / "store"
    publish_tiny(store, num_classes=3)
    publish_tiny(store, num_classes=4)
    for publish in (
        graphs.publish_arithmetic,
        graphs.publish_echo,
        graphs.publish_identity,
        graphs.publish_slow,
    ):
        publish(store)
    return store


@pytest.fixture(
    scope="session", params=["embedded", "in_process", pytest.param("torchserve", marks=pytest.mark.torchserve)]
)
def live(request: pytest.FixtureRequest, zoo: Path) -> Iterator[LiveGateway]:
    """A real gateway over the zoo, once for each backend."""
    if request.param == "torchserve" and shutil.which("java") is None:
        pytest.skip("TorchServe needs Java")
    pools = {"embedded": EMBEDDED, "in_process": IN_PROCESS, "torchserve": TORCHSERVE}[request.param]
    with serving(zoo, pools + ENDPOINTS, top=TOP, wait_s=150) as gateway:
        yield gateway


@pytest.fixture
def http(live: LiveGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


@pytest.fixture
def channel(live: LiveGateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(live.grpc_target, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture
def sagemaker(live: LiveGateway) -> Iterator[Any]:
    client = sagemaker_client(live)
    yield client
    client.close()


def sagemaker_client(live: LiveGateway) -> Any:
    """As a user makes it, but for retries, which would only make failing tests slow."""
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=live.url,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="session")
def image() -> np.ndarray[Any, np.dtype[Any]]:
    """A mostly green picture of the tiny classifier's own size, (4, 4, 3) uint8."""
    return np.random.default_rng(7).integers((0, 120, 0), (120, 255, 90), (4, 4, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def png(image: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    return image_png(image)


@pytest.fixture(scope="session")
def truncated_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:-600]
