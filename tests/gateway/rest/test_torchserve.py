"""TorchServe's REST inference API (protocol contract, section 3.2)."""

import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.bundles import tiny_answer
from tests.gateway.live import LiveGateway

Array = np.ndarray[Any, np.dtype[Any]]


def test_a_prediction_is_the_right_one(http: httpx.Client, png: bytes, image: Array) -> None:
    answer = http.post("/predictions/tiny", content=png, headers={"content-type": "image/png"})

    assert answer.status_code == 200
    assert answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-cache, no-store, private"
    np.testing.assert_allclose(answer.json(), tiny_answer(image, 4), atol=1e-5)


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_version_can_be_addressed(http: httpx.Client, png: bytes, image: Array, version: str) -> None:
    answer = http.post(f"/predictions/tiny/{version}", content=png, headers={"content-type": "image/png"})

    np.testing.assert_allclose(answer.json(), tiny_answer(image, 2 + int(version)), atol=1e-5)


@pytest.mark.parametrize(
    "options", [["-T", "picture.png"], ["-X", "POST", "-T", "picture.png"], ["-F", "data=@picture.png"]]
)
def test_the_documented_curl_lines_work(
    live: LiveGateway, png: bytes, image: Array, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "picture.png").write_bytes(png)

    said = subprocess.run(
        ["curl", "-sSf", *options, f"{live.url}/predictions/tiny"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )

    np.testing.assert_allclose(httpx.Response(200, content=said.stdout).json(), tiny_answer(image, 4), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/predictions/nothing", 404, "ModelNotFoundException"),
        ("/predictions/tiny/99", 404, "ModelVersionNotFoundException"),
        ("/predictions/tiny%2F1", 404, "ModelNotFoundException"),
    ],
)
def test_an_unknown_name_is_404_in_torchserves_form(http: httpx.Client, path: str, status: int, kind: str) -> None:
    answer = http.post(path, content=b"x", headers={"content-type": "image/png"})

    assert answer.status_code == status
    assert {"code": status, "type": kind}.items() <= answer.json().items()
    assert set(answer.json()) == {"code", "type", "message"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {"content-type": "image/png"}, 400),
        (b"x", {"content-type": "text/plain"}, 415),
        (b"x", {"content-type": "image/png", "accept": "image/gif"}, 406),
        (b"x", {"content-type": "multipart/form-data"}, 400),
        (b"--b\r\n\r\nx", {"content-type": "multipart/form-data; boundary=b"}, 400),
        (bytes(1_048_577), {"content-type": "image/png"}, 413),
    ],
    ids=["empty", "content-type", "accept", "no-boundary", "open-part", "too-large"],
)
def test_a_bad_request_has_torchserves_error_object(
    http: httpx.Client, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = http.post("/predictions/tiny", content=body, headers=headers)

    assert answer.status_code == status
    assert (answer.json()["code"], answer.json()["type"]) == (status, "BadRequestException")


def test_get_is_a_wrong_method(http: httpx.Client) -> None:
    assert http.get("/predictions/tiny").status_code == 405
