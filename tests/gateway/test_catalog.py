"""What is published, replaced, removed or damaged while the gateway runs, and where it is placed."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import orjson
import pytest

from formats.envelope import Outcome, Prediction
from formats.errors import BackendFailed
from gateway.backends.backend import Land
from gateway.catalog import Catalog
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.readiness import Readiness
from gateway.settings import EndpointSettings, PoolSettings, Settings, VariantSettings
from model_store.manifest import MANIFEST, read_manifest
from model_store.store import Bundle, Store, seal
from tests.bundles import publish_tiny, write_tiny_classifier
from tests.gateway.live import LiveGateway, eventually, serving
from tests.gateway.test_pool import ToldBackend

ONE_WORKER = '[pools.cpu]\ndevice = "cpu"\nworkers = 1\n'
POLL = "store_poll_s = 0.1\n"


# a live gateway


def classes(gateway: LiveGateway, png: bytes, path: str = "/predictions/tiny") -> int:
    answer = httpx.post(f"{gateway.url}{path}", content=png, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    return len(answer.json())


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway over a store that changes while it runs."""
    store = tmp_path_factory.mktemp("moving") / "store"
    publish_tiny(store, num_classes=3)
    with serving(store, ONE_WORKER, top=POLL) as gateway:
        yield gateway


def test_a_new_version_takes_over_without_a_gap(moving: LiveGateway, png: bytes) -> None:
    """The old version answers until the new one is ready; neither `/ping` nor a prediction ever fails."""
    stop, seen, pings = threading.Event(), [], set()

    def watch() -> None:
        while not stop.is_set():
            seen.append(classes(moving, png))
            pings.add(httpx.get(f"{moving.url}/ping").status_code)

    watcher = threading.Thread(target=watch)
    watcher.start()
    publish_tiny(moving.store, num_classes=4)
    eventually(lambda: 4 in seen)
    stop.set()
    watcher.join()

    assert seen == sorted(seen)
    assert set(seen) == {3, 4}
    assert pings == {200}
    assert classes(moving, png, "/predictions/tiny/1") == 3


def test_a_new_model_appears_without_a_restart(moving: LiveGateway, png: bytes) -> None:
    publish_tiny(moving.store, "other", num_classes=5)

    eventually(lambda: ("other", "1") in moving.models() and moving.models()["other", "1"]["ready"])
    assert classes(moving, png, "/predictions/other") == 5


def test_a_removed_model_is_not_found(moving: LiveGateway, png: bytes) -> None:
    publish_tiny(moving.store, "passing")
    eventually(lambda: moving.models().get(("passing", "1"), {}).get("ready"))

    shutil.rmtree(moving.store / "passing")

    eventually(lambda: ("passing", "1") not in moving.models())
    assert httpx.post(f"{moving.url}/predictions/passing", content=png).status_code == 404


def test_a_removed_version_gives_way_to_the_one_before(moving: LiveGateway, png: bytes) -> None:
    for num_classes in (3, 6):
        publish_tiny(moving.store, "back", num_classes=num_classes)
    eventually(lambda: moving.models().get(("back", "2"), {}).get("ready"))
    assert classes(moving, png, "/predictions/back") == 6

    shutil.rmtree(moving.store / "back" / "2")

    eventually(lambda: ("back", "2") not in moving.models())
    assert classes(moving, png, "/predictions/back") == 3


def test_a_new_version_that_fails_its_golden_request_does_not_take_over(moving: LiveGateway, png: bytes) -> None:
    publish_tiny(moving.store, "careful", num_classes=3)
    eventually(lambda: moving.models().get(("careful", "1"), {}).get("ready"))

    publish_wrong_golden(moving.store, "careful")

    eventually(lambda: moving.models().get(("careful", "2"), {}).get("pools", [{}])[0].get("state") == "failed")
    assert "golden request: answer strays by" in moving.models()["careful", "2"]["pools"][0]["reason"]
    assert classes(moving, png, "/predictions/careful") == 3
    refused = httpx.post(f"{moving.url}/predictions/careful/2", content=png, headers={"content-type": "image/png"})
    assert refused.status_code == 503
    assert "golden" in refused.json()["message"]


def publish_wrong_golden(store: Path, name: str) -> None:
    source = write_tiny_classifier(store.parent / f"wrong-{name}")
    manifest = read_manifest(source)
    (source / "golden.json").write_bytes(orjson.dumps([0.1, 0.1, 0.8]))
    for file in (MANIFEST, "manifest.sha256"):
        (source / file).unlink()
    seal(source, manifest)
    Store(store).publish(source, name=name)


DAMAGED = ["manifest.json", "manifest.sha256", "model.onnx", "model.pt", "golden.png", "golden.json", "archive.mar"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """Eight models: one is whole, in each of the others another file has one flipped bit."""
    store = tmp_path_factory.mktemp("damaged") / "store"
    publish_tiny(store, "whole")
    for number, file in enumerate(DAMAGED):
        name = f"broken{number}"
        bundle = publish_tiny(store, name)
        path = bundle.path / (f"{name}.mar" if file == "archive.mar" else file)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    with serving(store, ONE_WORKER) as gateway:
        yield gateway


@pytest.mark.parametrize("number", range(len(DAMAGED)), ids=DAMAGED)
def test_a_flipped_bit_in_any_file_refuses_that_model_and_names_the_file(
    damaged: LiveGateway, png: bytes, number: int
) -> None:
    name = f"broken{number}"
    file = f"{name}.mar" if DAMAGED[number] == "archive.mar" else DAMAGED[number]

    eventually(lambda: file in str(damaged.models()[name, "1"]))
    assert not damaged.models()[name, "1"]["ready"]
    for url, status in {
        f"/v2/models/{name}/infer": 503,
        f"/predictions/{name}": 503,
        f"/endpoints/{name}/invocations": 429,
    }.items():
        body = orjson.dumps({"inputs": [image_tensor()]}) if "v2" in url else png
        answer = httpx.post(damaged.url + url, content=body, headers={"content-type": "image/png"})
        assert answer.status_code == status, answer.text
        assert file in answer.text


def image_tensor() -> dict[str, object]:
    return {"name": "image", "datatype": "UINT8", "shape": [1, 4, 4, 3], "data": [0] * 48}


def test_the_models_beside_the_damaged_ones_serve(damaged: LiveGateway, png: bytes) -> None:
    assert classes(damaged, png, "/predictions/whole") == 3
    assert httpx.get(f"{damaged.url}/ping").status_code == 200


# placement, with backends that do as the test says


class StubbornBackend(ToldBackend):
    """Answers the golden request; loading fails where a test says so."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__(lambda _: None)
        self.refuses = refuses
        self._golden: dict[str, bytes] = {}
        self.loaded: list[str] = []
        self.unloaded: list[str] = []

    async def load(self, bundle: Bundle) -> None:
        if self.refuses:
            raise BackendFailed(self.refuses)
        self.loaded.append(bundle.manifest.name)
        self._golden[bundle.manifest.version] = (bundle.path / "golden.json").read_bytes()

    def run(self, batch: Sequence[Prediction], land: Land) -> None:
        land([Outcome(body=self._golden[batch[0].version]) for _ in batch])

    async def unload(self, name: str, version: str) -> None:
        self.unloaded.append(f"{name}:{version}")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """`tiny`, whose manifest says cpu and then gpu."""
    publish_tiny(tmp_path / "store")
    return tmp_path / "store"


class House:
    """A catalog over pools with told backends."""

    def __init__(self, store: Path, *, devices: tuple[str, ...] = ("cpu", "gpu"), **settings: object) -> None:
        self.backends = {device: StubbornBackend() for device in devices}
        self.pools = {
            device: Pool(device, PoolSettings(device=device), backend, time.monotonic)  # type: ignore[arg-type]
            for device, backend in self.backends.items()
        }
        for pool in self.pools.values():
            pool.healthy = True
        values = {"store": store, "pools": {}, **settings}
        self.catalog = Catalog(Settings.model_validate(values), self.pools, Metrics(), time.monotonic)
        self.readiness = Readiness(self.catalog, self.pools, started=True)

    async def settle(self) -> None:
        await self.catalog.refresh()
        for _ in range(200):
            await asyncio.sleep(0.005)
            if self.catalog.settled:
                return

    def loaded(self) -> dict[str, list[str]]:
        return {device: backend.loaded for device, backend in self.backends.items()}


def placed(store: Path, **arguments: object) -> House:
    async def settle() -> House:
        house = House(store, **arguments)  # type: ignore[arg-type]
        await house.settle()
        return house

    return asyncio.run(settle())


def test_the_manifest_places_a_model(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    assert placed(store).loaded() == {"cpu": ["tiny"], "gpu": []}
    assert "tiny version 1 mode predict: runs on pool cpu (placement cpu, gpu)" in caplog.text


@pytest.mark.parametrize("key", ["image_classification", "image_classification/predict"])
def test_the_configuration_overrides_the_manifest(store: Path, key: str) -> None:
    # a mode that is not overridden keeps its own pool, and is loaded there too
    others = [] if key == "image_classification" else ["tiny"]

    assert placed(store, placement={key: ["gpu", "cpu"]}).loaded() == {"cpu": others, "gpu": ["tiny"]}


def test_without_a_gpu_pool_the_next_in_the_list_is_taken_and_said(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    placement = {"image_classification": ["gpu", "cpu"]}

    assert placed(store, devices=("cpu",), placement=placement).loaded() == {"cpu": ["tiny"]}
    assert "runs on pool cpu (placement gpu, cpu)" in caplog.text


def test_a_placement_without_a_pool_is_an_error_that_says_so(store: Path) -> None:
    house = placed(store, devices=("cpu",), placement={"image_classification": ["gpu"]})

    assert "placement gpu names no configured pool" in house.catalog.versions["tiny", "1"].error


def test_a_model_that_fails_on_its_first_pool_is_served_by_the_second(store: Path) -> None:
    async def fail_over() -> tuple[House, list[str]]:
        house = House(store)
        house.backends["cpu"].refuses = "no memory"
        await house.settle()
        said: list[str] = []
        deployment = house.catalog.router.deployment("tiny")
        deployment.submit(Prediction("tiny", "1"), lambda outcome, _: said.append(outcome.error_code or "ok"))
        await asyncio.sleep(0.3)
        return house, said

    house, said = asyncio.run(fail_over())

    assert house.loaded() == {"cpu": [], "gpu": ["tiny"]}
    assert said == ["ok"]


def test_a_pool_that_falls_ill_hands_over_to_the_next(store: Path) -> None:
    async def hand_over() -> tuple[House, list[str]]:
        house = House(store)
        await house.settle()
        house.pools["cpu"].healthy = False
        said: list[str] = []
        deployment = house.catalog.router.deployment("tiny")
        deployment.submit(Prediction("tiny", "1"), lambda outcome, _: said.append(outcome.error_code or "ok"))
        await asyncio.sleep(0.3)
        return house, said

    house, said = asyncio.run(hand_over())

    assert said == ["ok"]
    assert house.loaded() == {"cpu": ["tiny"], "gpu": ["tiny"]}
    assert house.readiness.ready


def test_a_removed_version_is_unloaded(store: Path) -> None:
    async def remove() -> House:
        house = House(store)
        await house.settle()
        shutil.rmtree(store / "tiny")
        await house.settle()
        await asyncio.sleep(0.05)
        return house

    assert asyncio.run(remove()).backends["cpu"].unloaded == ["tiny:1"]


def test_an_endpoint_names_versions_and_modes(store: Path) -> None:
    publish_tiny(store, num_classes=4)
    variants = [
        VariantSettings(name="old", model="tiny", version="1"),
        VariantSettings(name="new", model="tiny"),
        VariantSettings(name="ghost", model="nothing"),
        VariantSettings(name="odd", model="tiny", mode="none"),
    ]

    house = placed(store, endpoints={"shop": EndpointSettings(variants=variants)})

    found = {n: v.deployment.manifest.version for n, v in house.catalog.router.endpoints["shop"].variants.items()}
    assert found == {"old": "1", "new": "2"}
    assert house.backends["cpu"].loaded == ["tiny", "tiny"]


def test_a_load_that_failed_for_a_reason_that_may_pass_is_tried_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.catalog._RETRY_S", 0.05)

    async def recover() -> House:
        house = House(store, devices=("cpu",))
        house.backends["cpu"].refuses = "no memory"
        await house.settle()
        assert house.catalog.versions["tiny", "1"].residences[0].state == "failed"
        house.backends["cpu"].refuses = ""
        await asyncio.sleep(0.1)
        await house.settle()
        return house

    assert asyncio.run(recover()).catalog.versions["tiny", "1"].ready


def test_an_empty_store_is_ready_for_what_may_come(tmp_path: Path) -> None:
    house = placed(tmp_path / "nothing")

    assert house.readiness.ready
    assert house.catalog.router.endpoints == {}
