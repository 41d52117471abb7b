"""Texts served live: one answer per text, whoever asks beside it, alike by every backend."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from exporters.archive import write_archive
from exporters.export import export
from loadtests.run import main as load
from model_store.store import Store
from tests.gateway.conftest import TORCHSERVE
from tests.gateway.live import EMBEDDED, LiveGateway, serving

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures" / "fasttext"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fastText's own models, a classifier and word vectors."""
    directory = tmp_path_factory.mktemp("texts")
    for file, name in (("softmax.bin", "topics"), ("vectors.bin", "words")):
        Store(directory / "store").publish(export(FIXTURES / file, directory / name), name=name, archive=write_archive)
    return directory / "store"


def ask(gateway: LiveGateway, endpoint: str, body: object, content_type: str = "application/json") -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{gateway.url}/endpoints/{endpoint}/invocations"
    return httpx.post(url, content=data, headers={"content-type": content_type}, timeout=60)


def answers(gateway: LiveGateway) -> list[Any]:
    """Each text alone, all at once; then word vectors, then lines."""
    with ThreadPoolExecutor(8) as pool:
        bodies = [{"instances": [text], "configuration": {"k": 3}} for text in EXPECTED["texts"]]
        found = list(pool.map(lambda body: ask(gateway, "topics", body), bodies))
    words = ask(gateway, "words", {"instances": list(EXPECTED["models"]["vectors.bin"]["vectors"])})
    lines = ask(gateway, "topics", b'{"source": "one"}\n{"source": "two", "k": 2}\n', "application/jsonlines")
    assert all(each.status_code == 200 for each in (*found, words, lines)), words.text
    return [*(each.json()[0] for each in found), *words.json(), *map(json.loads, lines.text.splitlines())]


def check(found: list[Any]) -> None:
    models = EXPECTED["models"]
    for given, expected in zip(found, models["softmax.bin"]["predictions"], strict=False):
        assert given["label"] == [label for label, _ in expected]
        assert given["prob"] == pytest.approx([prob for _, prob in expected], abs=1e-5)
    vectors = {each["word"]: each["vector"] for each in found if "word" in each}
    assert set(vectors) == set(models["vectors.bin"]["vectors"])
    for word, vector in models["vectors.bin"]["vectors"].items():
        assert vectors[word] == pytest.approx(vector, abs=1e-6)
    assert [len(each["label"]) for each in found[-2:]] == [1, 2]


def test_answers_are_those_of_fasttext_and_bad_neighbours_harm_none(store: Path) -> None:
    with serving(store, EMBEDDED) as gateway, ThreadPoolExecutor(4) as pool:
        bad = [
            pool.submit(ask, gateway, "topics", body)
            for body in ({"instances": [3]}, {"instances": "x"}, {"instances": ["a"], "configuration": {"k": 0}})
        ]
        check(answers(gateway))
        assert [each.result().status_code for each in bad] == [424] * 3  # the model's own 400, as hosted models say it
        assert "'instances', item 0 is 3; expected a text" in bad[0].result().json()["Message"]


def test_10_000_texts_in_one_request_are_answered_in_order(store: Path) -> None:
    texts = [EXPECTED["texts"][number % len(EXPECTED["texts"])] for number in range(10_000)]
    with serving(store, EMBEDDED) as gateway:
        found = ask(gateway, "topics", {"instances": texts}).json()

    period = len(EXPECTED["texts"])
    assert len(found) == 10_000
    assert all(found[number]["label"] == found[number % period]["label"] for number in range(10_000))


def test_users_of_every_protocol_get_right_answers(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(store, EMBEDDED) as gateway:
        for endpoint in ("topics", "words"):
            told = ["--url", gateway.url, "--grpc", gateway.grpc_target, "--users", "4", "--duration", "3"]
            status = load(["--endpoint", endpoint, *told])
            assert status == 0, capsys.readouterr().err


@pytest.mark.torchserve
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java")
def test_torchserve_gives_fasttexts_answers_too(store: Path) -> None:
    with serving(store, TORCHSERVE, wait_s=150) as gateway:
        check(answers(gateway))
