"""A translator served live: the same answers alone, in a crowd, by every protocol and on every backend."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from exporters.archive import write_archive
from exporters.export import export
from formats import record
from formats.record import Record, Tensor, tensor_in
from loadtests.run import main as load
from model_store.store import Store
from tests.gateway.conftest import TORCHSERVE
from tests.gateway.live import EMBEDDED, LiveGateway, serving
from tests.translators import WORDS, write_checkpoint

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")
TEXTS = [" ".join(WORDS[first : first + length]) for first in range(5) for length in (1, 3, 5)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("translator")
    bundle = export(write_checkpoint(directory / "model", seed=5), directory / "bundle")
    Store(directory / "store").publish(bundle, name="translator", archive=write_archive)
    return directory / "store"


def ask(gateway: LiveGateway, content: bytes, kind: str = "application/json") -> httpx.Response:
    url = f"{gateway.url}/endpoints/translator/invocations"
    return httpx.post(url, content=content, headers={"content-type": kind}, timeout=60)


def answers(gateway: LiveGateway) -> list[dict[str, Any]]:
    """To one request for each text, all at once."""

    def one(text: str) -> dict[str, Any]:
        instance = {"data": text, "configuration": {"attention_matrix": "true"}}
        answer = ask(gateway, json.dumps({"instances": [instance]}).encode())
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["predictions"][0]
        return found

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, TEXTS))


def test_answers_are_the_same_alone_in_a_crowd_and_in_every_form(store: Path) -> None:
    with serving(store, EMBEDDED) as gateway:
        together = [each["target"] for each in answers(gateway)]
        alone = [ask(gateway, json.dumps({"instances": [{"data": text}]}).encode()).json() for text in TEXTS]
        lines = b"".join(json.dumps({"source": text}).encode() + b"\n" for text in TEXTS)
        batch = ask(gateway, lines, "application/jsonlines")
        ids = [np.array([4 + WORDS.index(word) for word in text.split()], np.int32) for text in TEXTS]
        body = record.encode_body(Record({"source": Tensor(each)}) for each in ids)
        told = record.decode_body(ask(gateway, body, "application/x-recordio-protobuf").content)
        bad = ask(gateway, b'{"instances": [{"source": "cat"}]}')
        foreign = ask(gateway, b"cat", "text/csv")

    assert [each["predictions"][0]["target"] for each in alone] == together
    assert [json.loads(line)["target"] for line in batch.text.splitlines()] == together
    spoken = [tensor_in(each.features, "target").values.tolist() for each in told]
    assert [len(each) for each in spoken] == [len(each.split()) for each in together]
    assert bad.status_code == 424
    assert "'source' is the key of JSON Lines" in bad.json()["Message"]
    assert foreign.status_code == 424
    assert foreign.json()["OriginalStatusCode"] == 415


def test_users_of_every_protocol_get_right_answers(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(store, EMBEDDED) as gateway:
        told = ["--url", gateway.url, "--grpc", gateway.grpc_target, "--users", "4", "--duration", "3"]
        status = load(["--endpoint", "translator", *told])

    assert status == 0, capsys.readouterr().err


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_translates_as_the_embedded_workers_do(store: Path) -> None:
    found = []
    for pool in (EMBEDDED, TORCHSERVE):
        with serving(store, pool, wait_s=150) as gateway:
            found.append(answers(gateway))

    for ours, theirs in zip(*found, strict=True):
        assert ours["target"] == theirs["target"]
        np.testing.assert_allclose(np.array(ours["matrix"]), np.array(theirs["matrix"]), atol=1e-4)
