"""The same pictures through embedded workers and through TorchServe: the same answers."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.bundles import publish_tiny
from tests.gateway.conftest import TORCHSERVE
from tests.gateway.live import EMBEDDED, serving

NUM_IMAGES = 200


def pictures() -> list[tuple[bytes, str]]:
    """Encoded images and their media types: colour, grey, palette and transparent ones from 1 to 300 pixels wide."""
    random = np.random.default_rng(2026)
    made = []
    for index in range(NUM_IMAGES):
        height, width = random.integers(1, 300, 2)
        base = random.integers(0, 256, (1, 1, 3))
        noise = random.integers(-60, 60, (int(height), int(width), 3))
        image = Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))
        form = "JPEG" if index % 2 else "PNG"
        modes = ["RGB", "L"] if form == "JPEG" else ["RGB", "L", "P", "RGBA"]
        buffer = io.BytesIO()
        image.convert(modes[index // 2 % len(modes)]).save(buffer, form)
        made.append((buffer.getvalue(), f"image/{form.lower()}"))
    return made


def answers(store: Path, pool: str, sent: list[tuple[bytes, str]]) -> np.ndarray[Any, Any]:
    """(N, 5) probabilities of all pictures, asked for by eight clients at once so that they share batches."""
    with serving(store, pool, wait_s=150) as gateway, httpx.Client(base_url=gateway.url, timeout=60) as client:

        def ask(picture: tuple[bytes, str]) -> list[float]:
            body, kind = picture
            answer = client.post("/endpoints/tiny/invocations", content=body, headers={"content-type": kind})
            assert answer.status_code == 200, answer.text
            probabilities: list[float] = answer.json()
            return probabilities

        with ThreadPoolExecutor(8) as clients:
            return np.array(list(clients.map(ask, sent)))


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_answers_as_the_embedded_workers_do(tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish_tiny(store, num_classes=5, height=24, width=32)
    sent = pictures()

    embedded = answers(store, EMBEDDED, sent)
    torchserve = answers(store, TORCHSERVE, sent)

    assert embedded.shape == (NUM_IMAGES, 5)
    assert len(set(embedded.argmax(axis=1))) >= 3  # the pictures are varied
    np.testing.assert_array_equal(torchserve.argmax(axis=1), embedded.argmax(axis=1))
    np.testing.assert_allclose(torchserve, embedded, atol=1e-4)
