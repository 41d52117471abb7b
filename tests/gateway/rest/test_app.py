"""The API description tells the truth."""

from typing import Any

import httpx
import pytest

from gateway.rest.routes import ROUTES
from gateway.status import STATUS
from tests.gateway.live import LiveGateway

VALUES = {"{endpoint}": "tiny", "{model}": "tiny", "{version}": "1"}


@pytest.fixture
def paths(http: httpx.Client) -> dict[str, dict[str, Any]]:
    described: dict[str, dict[str, Any]] = http.get("/openapi.json").json()["paths"]
    return described


def concrete(path: str) -> str:
    for name, value in VALUES.items():
        path = path.replace(name, value)
    return path


def test_every_described_operation_exists(http: httpx.Client, paths: dict[str, dict[str, Any]], png: bytes) -> None:
    for path, operations in paths.items():
        for method in operations:
            answer = http.request(method, concrete(path), content=png if method != "get" else None)

            assert answer.status_code not in (404, 405), (method, path)
            assert str(answer.status_code) in operations[method]["responses"], (method, path, answer.status_code)


def test_every_prediction_route_is_described(paths: dict[str, dict[str, Any]]) -> None:
    for route in ROUTES:
        for path in route.paths:
            assert set(paths[path]) == {method.lower() for method in route.methods}


def test_error_statuses_come_from_the_table(paths: dict[str, dict[str, Any]]) -> None:
    table = {str(http.value) for http, _ in STATUS.values()}
    for route in ROUTES:
        for path in route.paths:
            described = {code for code in paths[path]["post"]["responses"] if int(code) >= 400}
            if route.protocol == "sagemaker":  # hides the model's status behind codes of its own
                assert described == {"400", "413", "424", "429", "500", "503"}
            else:
                assert described == table


def test_the_unknown_path_is_404_in_one_form(http: httpx.Client) -> None:
    answer = http.get("/nothing/here")

    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_management_is_not_on_the_public_port(http: httpx.Client, live: LiveGateway) -> None:
    for path in ("/metrics", "/models", "/pools", "/healthz"):
        assert http.get(path).status_code == 404
        assert httpx.get(live.admin_url + path).status_code == 200
