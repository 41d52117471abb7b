"""A model with modes: scores run on one pool and embeddings on another, as variable, endpoint or request say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from exporters.archive import write_archive
from exporters.export import export
from model_store.store import Store
from tests.gateway.conftest import TORCHSERVE
from tests.gateway.live import EMBEDDED, LiveGateway, eventually, serving
from tests.pair_models import write_checkpoint

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

# a CPU plays the part of the GPU
POOLS = """
[pools.cpu]
device = "cpu"
workers = 1
[pools.gpu]
device = "gpu"
workers = 1
on_cpu = true
[[endpoints.vectors.variants]]
model = "pairs"
mode = "embedding"
[[endpoints.scores.variants]]
model = "pairs"
mode = "classification"
"""
PAIR = {"in0": [6, 17, 3], "in1": [16, 2]}
ITEM = {"in0": [6, 17, 3]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pairs")
    bundle = export(write_checkpoint(directory / "model", enc0_network="hcnn"), directory / "bundle")
    Store(directory / "store").publish(bundle, name="pairs", archive=write_archive)
    return directory / "store"


@pytest.fixture(scope="module")
def gateway(store: Path) -> Iterator[LiveGateway]:
    with serving(store, POOLS) as live:
        eventually(lambda: all(pool["state"] == "ready" for pool in live.models()["pairs", "1"]["pools"]))
        yield live


def ask(gateway: LiveGateway, endpoint: str, instances: list[Any], attributes: str = "") -> httpx.Response:
    headers = {"content-type": "application/json"}
    if attributes:
        headers["x-amzn-sagemaker-custom-attributes"] = attributes
    url = f"{gateway.url}/endpoints/{endpoint}/invocations"
    return httpx.post(url, content=json.dumps({"instances": instances}), headers=headers, timeout=60)


def batches(gateway: LiveGateway) -> dict[tuple[str, str], float]:
    """How many predictions ran, by mode and pool, as `/metrics` tells."""
    text = httpx.get(f"{gateway.admin_url}/metrics", timeout=30).text
    found: dict[tuple[str, str], float] = {}
    for labels, value in re.findall(r"^penstock_batch_size_sum\{([^}]*)\} (\S+)", text, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[named["mode"], named["pool"]] = float(value)
    return found


def ran(gateway: LiveGateway, *arguments: Any) -> tuple[str, str]:
    """Mode and pool in which one request ran."""
    before = batches(gateway)
    answer = ask(gateway, *arguments)
    assert answer.status_code == 200, answer.text
    (changed,) = [key for key, value in batches(gateway).items() if value != before.get(key, 0)]
    return changed


def test_scores_run_on_the_cpu_pool_and_embeddings_on_the_gpu_pool(gateway: LiveGateway) -> None:
    assert ran(gateway, "pairs", [PAIR]) == ("classification", "cpu")
    assert ran(gateway, "scores", [PAIR]) == ("classification", "cpu")
    assert ran(gateway, "vectors", [ITEM]) == ("embedding", "gpu")


def test_the_request_outweighs_the_endpoint(gateway: LiveGateway) -> None:
    assert ran(gateway, "pairs", [ITEM], "INFERENCE_PREFERRED_MODE=embedding") == ("embedding", "gpu")
    assert ran(gateway, "scores", [ITEM], "a=b; INFERENCE_PREFERRED_MODE=embedding") == ("embedding", "gpu")
    assert ran(gateway, "vectors", [PAIR], "INFERENCE_PREFERRED_MODE=classification") == ("classification", "cpu")


def test_torchserves_own_path_takes_a_requests_mode_too(gateway: LiveGateway) -> None:
    headers = {
        "content-type": "application/json",
        "x-amzn-sagemaker-custom-attributes": "INFERENCE_PREFERRED_MODE=embedding",
    }
    before = batches(gateway)
    answer = httpx.post(f"{gateway.url}/predictions/pairs", json={"instances": [ITEM]}, headers=headers, timeout=60)

    assert answer.status_code == 200, answer.text
    assert [key for key, value in batches(gateway).items() if value != before.get(key, 0)] == [("embedding", "gpu")]
    assert answer.json() == ask(gateway, "pairs", [ITEM]).json()


def test_either_mode_answers_both_kinds_of_requests_alike(gateway: LiveGateway) -> None:
    mixed = [PAIR, ITEM, {"in1": [16, 2]}]
    first, second = (ask(gateway, endpoint, mixed).json() for endpoint in ("scores", "vectors"))

    assert first == second
    assert [list(each) for each in first["predictions"]] == [["scores"], ["embeddings"], ["embeddings"]]
    assert len(first["predictions"][0]["scores"]) == 3
    assert len(first["predictions"][1]["embeddings"]) == 10


def test_a_mode_that_is_not_there_is_named_with_those_that_are(gateway: LiveGateway) -> None:
    answer = ask(gateway, "pairs", [PAIR], "INFERENCE_PREFERRED_MODE=poetry")

    assert answer.status_code == 400
    assert "no mode 'poetry'; it has: classification, embedding, embedding_in1" in answer.text


def test_the_tensor_protocol_reaches_each_graph_by_its_parameter(gateway: LiveGateway) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{gateway.http_port}")

    def infer(mode: str, **rows: list[list[int]]) -> Any:
        inputs = []
        for name, ids in rows.items():
            tensor = triton.InferInput(name, [len(ids), len(ids[0])], "INT64")
            tensor.set_data_from_numpy(np.array(ids))
            inputs.append(tensor)
        answer = client.infer("pairs", inputs, parameters={"mode": mode} if mode else None)
        return answer.as_numpy("embeddings" if "embedding" in mode else "scores")

    predictions = ask(gateway, "pairs", [PAIR, ITEM, {"in1": [16, 2]}]).json()["predictions"]
    scores = infer("", in0=[[6, 17, 3]], in1=[[16, 2]])
    embedding0 = infer("embedding", in0=[[6, 17, 3, -1]])
    embedding1 = infer("embedding_in1", in1=[[16, 2]])

    assert scores[0] == pytest.approx(predictions[0]["scores"], abs=1e-6)
    assert embedding0[0] == pytest.approx(predictions[1]["embeddings"], abs=1e-6)
    assert embedding1[0] == pytest.approx(predictions[2]["embeddings"], abs=1e-6)


def test_the_variable_decides_where_neither_endpoint_nor_request_does(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERENCE_PREFERRED_MODE", "embedding")
    with serving(store, POOLS) as live:
        assert ran(live, "pairs", [ITEM]) == ("embedding", "gpu")
        assert ran(live, "scores", [PAIR]) == ("classification", "cpu")
        assert ran(live, "pairs", [PAIR], "INFERENCE_PREFERRED_MODE=classification") == ("classification", "cpu")


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_answers_as_the_embedded_workers_do(store: Path) -> None:
    found = []
    for pools in (EMBEDDED, TORCHSERVE):
        with serving(store, pools, wait_s=150) as live:
            found.append(ask(live, "pairs", [PAIR, ITEM, {"in1": []}]).json()["predictions"])

    for ours, theirs in zip(*found, strict=True):
        ((our_name, our_values),), ((their_name, their_values),) = ours.items(), theirs.items()
        assert our_name == their_name
        assert our_values == pytest.approx(their_values, abs=1e-5)
