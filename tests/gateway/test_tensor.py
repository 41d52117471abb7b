"""Somebody else's graph through a live gateway: the numbers that it computes, in whatever batch and protocol."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from exporters.archive import write_archive
from exporters.tensor import export_graph, parse_spec
from model_store.store import Store
from tests.gateway.conftest import IN_PROCESS
from tests.gateway.live import EMBEDDED, LiveGateway, serving

Array = np.ndarray[Any, np.dtype[Any]]

PLAIN_ROUTES = ["/predictions/{}", "/endpoints/{}/invocations"]
NUM_REQUESTS = 60


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rows(random: np.random.Generator, width: int) -> Array:
    """Of one to five rows, no number near 0."""
    return random.uniform(0.5, 9, (random.integers(1, 6), width)).astype(np.float32)


@pytest.mark.parametrize("route", PLAIN_ROUTES)
def test_plain_json_gets_the_numbers_of_its_own_rows(http: httpx.Client, route: str) -> None:
    """Many clients at once, so that requests share batches."""
    random = np.random.default_rng(5)
    pairs = [(a, a[::-1] + random.uniform(0, 9)) for a in (rows(random, 2) for _ in range(NUM_REQUESTS))]

    def ask(pair: tuple[Array, Array]) -> dict[str, Any]:
        return post(http, route.format("arithmetic"), {"a": pair[0].tolist(), "b": pair[1].tolist()})

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(ask, pairs))

    for (a, b), answer in zip(pairs, answers, strict=True):
        assert list(answer) == ["quotient", "whole"]
        np.testing.assert_allclose(answer["quotient"], a / b, rtol=1e-6)
        assert answer["whole"] == a.astype(int).tolist()


class Regression(torch.nn.Module):
    """(N, 3) and a shift (N,) to (N, 2) and the larger of the two, INT64."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(3, 8)
        self.out = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.out(torch.tanh(self.hidden(x))) + shift.unsqueeze(1)
        return scores, scores.argmax(1)


@pytest.fixture(scope="module")
def regression() -> Regression:
    torch.manual_seed(3)
    return Regression().eval()


@pytest.fixture(scope="module", params=["embedded", "in_process"])
def torchscript(
    request: pytest.FixtureRequest, regression: Regression, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveGateway]:
    """A gateway that serves `Regression` as TorchScript."""
    root = tmp_path_factory.mktemp("torchscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, which is what is served
        torch.jit.script(regression).save(str(root / "m.pt"))  # type: ignore[no-untyped-call]
    bundle = export_graph(
        root / "m.pt",
        root / "bundle",
        inputs=[parse_spec("x:FP32:-1,3"), parse_spec("shift:FP32:-1")],
        outputs=[parse_spec("scores:FP32:-1,2"), parse_spec("best:INT64:-1")],
    )
    store = Store(root / "store")
    assert store.publish(bundle, name="regression", archive=write_archive).manifest.graphs["model"].batched
    pool = {"embedded": EMBEDDED.replace("workers = 2", "workers = 1"), "in_process": IN_PROCESS}[request.param]
    with serving(root / "store", pool, wait_s=150) as gateway:
        yield gateway


@pytest.mark.parametrize("route", [*PLAIN_ROUTES, "/v2/models/{}/infer"])
def test_a_torchscript_graph_answers_as_its_module_does(
    torchscript: LiveGateway, regression: Regression, route: str
) -> None:
    random = np.random.default_rng(6)
    asked = [(x, random.normal(size=len(x)).astype(np.float32)) for x in (rows(random, 3) for _ in range(NUM_REQUESTS))]

    with httpx.Client(base_url=torchscript.url, timeout=60) as client, ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda pair: _scores_of(client, route.format("regression"), *pair), asked))

    for (x, shift), (scores, best) in zip(asked, answers, strict=True):
        with torch.inference_mode():
            expected, index = regression(torch.from_numpy(x), torch.from_numpy(shift))
        np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
        np.testing.assert_array_equal(best, index.numpy())


def _scores_of(client: httpx.Client, path: str, x: Array, shift: Array) -> tuple[Array, Array]:
    if not path.startswith("/v2/"):
        answer = post(client, path, {"x": x.tolist(), "shift": shift.tolist()})
        return np.array(answer["scores"]), np.array(answer["best"])
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in (("x", x), ("shift", shift))
    ]
    answer = post(client, path, {"inputs": inputs})
    found = {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer["outputs"]}
    return found["scores"], found["best"]
