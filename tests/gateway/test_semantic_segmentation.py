"""A segmenter served live: pictures of many sizes at once, alike by every backend."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from exporters.archive import write_archive
from exporters.export import export
from loadtests.run import main as load
from model_store.store import Store
from tests.bundles import image_png
from tests.gateway.conftest import TORCHSERVE
from tests.gateway.live import EMBEDDED, LiveGateway, serving
from tests.segmenters import write_checkpoint

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("segmenter")
    bundle = export(write_checkpoint(directory / "model", algorithm="deeplab"), directory / "bundle")
    Store(directory / "store").publish(bundle, name="roads", archive=write_archive)
    return directory / "store"


def pictures() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(5)
    sizes = [(48, 64), (61, 83), (48, 64), (33, 120), (61, 83), (8, 8)]
    return [random.integers(0, 256, (6, 6, 3), np.uint8).repeat(20, 0).repeat(20, 1)[:h, :w] for h, w in sizes]


def masks(gateway: LiveGateway) -> list[NDArray[np.uint8]]:
    """Of all pictures, asked for at once."""

    def ask(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        answer = httpx.post(
            f"{gateway.url}/endpoints/roads/invocations",
            content=image_png(pixels),
            headers={"content-type": "image/png"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/png"
        return np.array(Image.open(io.BytesIO(answer.content)))

    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(ask, pictures()))


def test_pictures_of_many_sizes_at_once_each_get_their_own_mask(store: Path) -> None:
    with serving(store, EMBEDDED) as gateway:
        found = masks(gateway)
        again = masks(gateway)

    assert [mask.shape for mask in found] == [picture.shape[:2] for picture in pictures()]
    assert len(set().union(*(np.unique(mask).tolist() for mask in found))) >= 2
    for one, other in zip(found, again, strict=True):
        assert (one == other).mean() > 0.999


def test_users_of_every_protocol_get_right_masks(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(store, EMBEDDED) as gateway:
        told = ["--url", gateway.url, "--grpc", gateway.grpc_target, "--users", "4", "--duration", "3"]
        status = load(["--endpoint", "roads", *told])

    assert status == 0, capsys.readouterr().err


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_gives_the_masks_that_the_embedded_workers_give(store: Path) -> None:
    found = []
    for pool in (EMBEDDED, TORCHSERVE):
        with serving(store, pool, wait_s=150) as gateway:
            found.append(masks(gateway))

    for ours, theirs in zip(*found, strict=True):
        assert (ours == theirs).mean() > 0.999
