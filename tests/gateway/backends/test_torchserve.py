"""The backend against a real TorchServe: each test provokes one of the traps of the protocol contract, section 3."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import orjson
import psutil
import pytest

from formats.envelope import Outcome, Prediction, Tensor
from formats.errors import BackendUnavailable, CorruptBundle, NotReady
from gateway.backends.backend import BatchLost, BatchRefused, answer_of, find_backend
from gateway.backends.torchserve import TorchServeBackend, _Managed
from gateway.backends.torchserve_calls import Caller
from gateway.backends.torchserve_process import TorchServeProcess, _java_version
from gateway.settings import PoolSettings
from model_store.store import Bundle, seal
from tests.bundles import golden_image, image_png, publish_tiny, tiny_answer

pytestmark = [
    pytest.mark.torchserve,
    pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs Java 11 or newer"),
]

PNG = image_png(golden_image(4, 4))
ANSWER = tiny_answer(golden_image(4, 4)).tolist()
RUN_TIMEOUT_S = 3.0

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own: backends outlive the test that started them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def __call__(self, work: Coroutine[Any, Any, T], timeout_s: float = 60) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Live:
    """A managed backend and what it counted."""

    backend: TorchServeBackend
    events: Counter[str]
    loop: Loop
    run_dir: Path

    def run(self, *batch: Prediction) -> list[Outcome]:
        return self.loop(_awaited(self.backend, list(batch)))

    def start(self, *batch: Prediction) -> asyncio.Future[list[Outcome]]:
        """Send a batch and do not wait; returns when it is on its way."""
        future = asyncio.run_coroutine_threadsafe(_awaited(self.backend, list(batch)), self.loop._loop)
        time.sleep(0.3)
        return future  # type: ignore[return-value]

    @property
    def process(self) -> TorchServeProcess:
        server = self.backend._server
        assert isinstance(server, _Managed)
        return server._process

    @property
    def group(self) -> list[psutil.Process]:
        leader = psutil.Process(self.process.pid)
        return [leader, *leader.children(recursive=True)]

    def workers(self, name: str = "tiny", version: str = "1") -> set[int]:
        server = self.backend._server
        assert isinstance(server, _Managed)
        return set(server._models[name, version].pids)

    def answers_again(self) -> bool:
        with contextlib.suppress(BatchRefused, BatchLost):
            return self.run(ask())[0].ok
        return False


async def _awaited(backend: TorchServeBackend, batch: list[Prediction]) -> list[Outcome]:
    return await answer_of(backend, batch)


def ask(body: bytes = PNG, *, name: str = "tiny", version: str = "1", content_type: str = "image/png") -> Prediction:
    return Prediction(name, version, body, content_type)


def settings(**changes: Any) -> PoolSettings:
    defaults: dict[str, Any] = {
        "device": "cpu",
        "backend": "torchserve",
        "managed": True,
        "workers": 1,
        "run_timeout_s": RUN_TIMEOUT_S,
        "startup_timeout_s": 60.0,
    }
    return PoolSettings(**{**defaults, **changes})


def eventually(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.1)


@contextlib.contextmanager
def managed(loop: Loop, run_dir: Path, **changes: Any) -> Iterator[Live]:
    events: Counter[str] = Counter()
    backend = TorchServeBackend("cpu", settings(**changes), run_dir, lambda event: events.update([event]))
    loop(backend.start())
    try:
        yield Live(backend, events, loop, run_dir)
    finally:
        loop(backend.close())


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    root = tmp_path_factory.mktemp("published") / "store"
    return [publish_tiny(root), publish_tiny(root, num_classes=4)]


@pytest.fixture(scope="module")
def live(loop: Loop, bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with managed(loop, tmp_path_factory.mktemp("managed")) as live:
        loop(live.backend.load(bundles[0]))
        yield live


def test_one_call_answers_a_batch_and_a_bad_item_fails_alone(live: Live) -> None:
    outcomes = live.run(ask(), ask(b"no image"), ask(), ask(content_type="text/csv"))

    assert [o.error_code for o in outcomes] == ["", "InvalidBody", "", "UnsupportedContentType"]
    assert [orjson.loads(o.body) for o in (outcomes[0], outcomes[2])] == [pytest.approx(ANSWER, abs=1e-6)] * 2
    assert outcomes[0].version == "1"


def test_versions_live_side_by_side_and_leave_alone(live: Live, bundles: list[Bundle]) -> None:
    live.loop(live.backend.load(bundles[1]))
    first, second = live.run(ask())[0], live.run(ask(version="2"))[0]
    live.loop(live.backend.unload("tiny", "2"))

    assert [len(orjson.loads(each.body)) for each in (first, second)] == [3, 4]
    with pytest.raises(BatchRefused, match="version 2 is not loaded"):
        live.run(ask(version="2"))
    assert live.run(ask())[0].ok
    assert not (live.process.store / "tiny--2").exists()


def test_bodies_far_above_torchserves_own_limit_pass_both_ways(live: Live) -> None:
    """Its default is 6.5 MB: a longer request is reset, a longer answer kills the worker."""
    rows = 700_000
    pixels = np.broadcast_to(golden_image(4, 4), (rows, 4, 4, 3)).tobytes()
    (outcome,) = live.run(Prediction("tiny", "1", tensors=(Tensor("image", "UINT8", (rows, 4, 4, 3), pixels),)))

    assert outcome.tensors is not None
    assert (len(pixels), len(outcome.tensors[0].data)) == (rows * 48, rows * 12)


def test_a_corrupt_bundle_is_refused_before_torchserve_sees_it(live: Live, bundles: list[Bundle]) -> None:
    copy = live.run_dir / "copy"
    shutil.copytree(bundles[1].path, copy)
    (copy / "model.onnx").chmod(0o644)
    (copy / "model.onnx").write_bytes(b"altered")

    with pytest.raises(CorruptBundle, match=r"model\.onnx"):
        live.loop(live.backend.load(Bundle.open(copy)))


def test_a_model_that_strays_from_its_golden_answer_is_refused_with_the_reason(
    live: Live, bundles: list[Bundle]
) -> None:
    """TorchServe itself would try for ever, and say nothing but `Worker died.`"""
    copy = live.run_dir / "stray"
    shutil.copytree(bundles[0].path, copy)
    (copy / "golden.json").unlink()
    (copy / "golden.json").write_bytes(b"[0.5, 0.25, 0.25]")
    (copy / "manifest.json").chmod(0o644)
    (copy / "manifest.sha256").chmod(0o644)
    stray = Bundle(copy, seal(copy, bundles[0].manifest.model_copy(update={"name": "stray"})))

    with pytest.raises(NotReady, match=r"answer strays by 0\.4"):
        live.loop(live.backend.load(stray))
    assert live.run(ask())[0].ok
    assert live.loop(live.process.call("GET", "/models/stray--1")).status == 404


def test_a_full_queue_refuses_at_once_and_the_rest_is_answered(live: Live) -> None:
    """TorchServe says INTERNAL for it, which others take for a failure of the model."""
    (worker,) = live.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        sent = [live.start(ask()) for _ in range(6)]
        refused = [future for future in sent if future.done() and isinstance(future.exception(), BatchRefused)]
    finally:
        os.kill(worker, signal.SIGCONT)

    assert len(refused) >= 2
    assert all(future.result(10)[0].ok for future in sent if future not in refused)  # type: ignore[call-arg]


def test_a_worker_that_dies_loses_its_batch_and_is_replaced(live: Live) -> None:
    (worker,) = live.workers()
    died = live.events["worker_died"]
    os.kill(worker, signal.SIGSTOP)
    running = live.start(ask())
    os.kill(worker, signal.SIGKILL)

    with pytest.raises(BatchLost, match="Worker died"):
        running.result(10)  # type: ignore[call-arg]
    eventually(live.answers_again)
    eventually(lambda: live.events["worker_died"] == died + 1 and worker not in live.workers())


def test_a_worker_that_hangs_is_replaced_after_the_run_timeout(live: Live) -> None:
    """By default TorchServe would wait 120 s."""
    eventually(lambda: len(live.workers()) == 1)
    (worker,) = live.workers()
    os.kill(worker, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(BatchLost, match="Worker died"):
        live.run(ask())

    assert RUN_TIMEOUT_S - 1 < time.monotonic() - begun < RUN_TIMEOUT_S + 4
    eventually(live.answers_again)
    eventually(lambda: not psutil.pid_exists(worker))


def test_a_server_that_dies_is_started_again_with_its_models(live: Live) -> None:
    before = live.group
    (java,) = [process for process in before if process.name() == "java"]
    (worker,) = [process for process in before if "model_service_worker" in " ".join(process.cmdline())]
    worker.suspend()  # a busy worker outlives its JVM
    running = live.start(ask())
    java.kill()

    with pytest.raises(BatchLost):
        running.result(10)  # type: ignore[call-arg]
    eventually(live.answers_again, 60)
    assert live.events["server_died"] == 1
    assert live.loop(live.backend.healthy())
    assert not [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_workers_that_torchserve_has_given_up_are_revived(loop: Loop, bundles: list[Bundle], tmp_path: Path) -> None:
    """After failed starts it waits longer each time (1, 1, 2, 3, 5, 8, 13 s ...), and after its window for ever."""
    with managed(loop, tmp_path, startup_timeout_s=6.0) as live:
        loop(live.backend.load(bundles[0]))
        model = live.process.store / "tiny--1" / "model.onnx"
        model.rename(model.with_suffix(".away"))
        (worker,) = live.workers()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: live.events["worker_revived"] == 1)
        assert not live.workers()
        model.with_suffix(".away").rename(model)

        eventually(live.answers_again)


def test_two_servers_share_a_machine_and_stop_without_a_trace(
    live: Live, loop: Loop, bundles: list[Bundle], tmp_path: Path
) -> None:
    """Beside each other by default, the second would take the first one's sockets without any error."""
    with managed(loop, tmp_path) as second:
        loop(second.backend.load(bundles[0]))
        processes = second.group
        assert second.run(ask())[0].ok
        assert live.run(ask())[0].ok
        assert not second.workers() & live.workers()

    gone = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert gone == []
    assert {path.name for path in (tmp_path / "torchserve").iterdir()} == {"logs"}
    assert live.run(ask())[0].ok


def test_a_directory_in_use_is_refused(live: Live, loop: Loop) -> None:
    other = TorchServeBackend("cpu", settings(), live.run_dir, lambda _: None)
    with pytest.raises(BackendUnavailable, match="in use by another gateway"):
        loop(other.start())
    loop(other.close())

    assert live.run(ask())[0].ok


def test_the_metrics_of_the_server_can_be_scraped(live: Live) -> None:
    live.run(ask())

    assert "ts_inference_requests_total" in httpx.get(live.process.metrics_url, trust_env=False).text


def test_a_gateway_that_is_killed_takes_its_server_along(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from gateway.backends.torchserve_process import TorchServeProcess
from gateway.settings import PoolSettings

async def main():
    process = TorchServeProcess("cpu", PoolSettings(device="cpu", workers=1), Path(sys.argv[1]))
    await process.start()
    print(process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        leader = psutil.Process(int(gateway.stdout.readline()))
        group = [leader, *leader.children(recursive=True)]
        gateway.kill()

    assert len(group) == 2
    _, alive = psutil.wait_procs(group, timeout=15)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


# Servers that somebody else runs


HANDLER = """
import os
from formats.envelope import Outcome
from formats.packed import pack_outcomes, unpack_predictions

def handle(data, context):
    if data is None:
        return None
    batch = unpack_predictions(bytes(data[0]["packed"]), "rogue", "1")
    bodies = [prediction.body for prediction in batch]
    if b"raise" in bodies:
        raise ValueError("a handler that does not catch")
    if b"memory" in bodies:
        raise MemoryError
    if b"exit" in bodies:
        os._exit(1)
    if b"short" in bodies:
        return []
    if b"garbage" in bodies:
        return [b"garbage"]
    return [pack_outcomes([Outcome(body) for body in bodies])]
"""


@pytest.fixture(scope="module")
def plain(loop: Loop, bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServeProcess]:
    """A TorchServe as an operator runs it: the published archive under the model's name, and somebody's own handler."""
    process = TorchServeProcess("plain", settings(), tmp_path_factory.mktemp("plain"))
    loop(process.start())
    shutil.copy(bundles[0].path / "tiny.mar", process.store)
    rogue = process.store / "rogue"
    (rogue / "MAR-INF").mkdir(parents=True)
    (rogue / "rogue_handler.py").write_text(HANDLER)
    model = {"modelName": "rogue", "modelVersion": "1", "handler": "rogue_handler.py"}
    (rogue / "MAR-INF" / "MANIFEST.json").write_bytes(orjson.dumps({"runtime": "python", "model": model}))
    for url in ("tiny.mar", "rogue"):
        reply = loop(process.call("POST", f"/models?url={url}&initial_workers=1&synchronous=true", 60))
        assert reply.status == 200, reply.text()
    yield process
    loop(process.close())


@pytest.fixture(scope="module")
def caller(loop: Loop, plain: TorchServeProcess) -> Iterator[Caller]:
    async def make() -> Caller:
        return Caller(f"ipv4:{plain.address}", 30)

    caller = loop(make())
    yield caller
    loop(caller.close())


@pytest.mark.parametrize(
    ("bodies", "codes"),
    [
        (["a", "raise", "b"], ["", "BackendFailed", ""]),
        (["a", "memory", "b"], ["", "Overloaded", ""]),
        (["a", "short"], ["", "BackendFailed"]),
        (["a", "garbage"], ["BackendFailed", "BackendFailed"]),
    ],
)
def test_neighbours_are_saved_from_a_handler_that_fails_its_batch(
    loop: Loop, caller: Caller, bodies: list[str], codes: list[str]
) -> None:
    batch = [Prediction("rogue", "1", body.encode()) for body in bodies]

    assert [outcome.error_code for outcome in loop(caller.predict("rogue", "", batch))] == codes


def test_a_handler_that_ends_its_process_loses_the_batch(loop: Loop, caller: Caller) -> None:
    with pytest.raises(BatchLost, match="Worker died"):
        loop(caller.predict("rogue", "", [Prediction("rogue", "1", b"exit")]))


@pytest.mark.parametrize(("model", "version"), [("unknown", ""), ("tiny", "9")])
def test_a_model_that_the_server_does_not_have_is_refused(loop: Loop, caller: Caller, model: str, version: str) -> None:
    with pytest.raises(BatchRefused):
        loop(caller.predict(model, version, []))


def test_the_published_archive_serves_torchserves_own_clients(plain: TorchServeProcess) -> None:
    assert plain._ports is not None
    url = f"http://127.0.0.1:{plain._ports.inference}/predictions/tiny"
    with httpx.Client(trust_env=False) as client:
        bare = client.post(url, content=PNG)
        form = client.post(url, files={"data": ("a.png", PNG, "image/png")})
        lines = client.post(url, content=PNG, headers={"Accept": "application/jsonlines"})
        statuses = [
            client.post(url, content=b"no image").status_code,
            client.post(url, content=PNG, headers={"Content-Type": "text/csv"}).status_code,
            client.post(url, content=PNG, headers={"Accept": "text/csv"}).status_code,
        ]

    assert bare.json() == form.json() == pytest.approx(ANSWER, abs=1e-6)
    assert bare.headers["content-type"] == "application/json"
    assert lines.json() == {"prediction": pytest.approx(ANSWER, abs=1e-6)}
    assert statuses == [400, 415, 406]


def test_targets_serve_a_model_that_is_there_and_no_other(
    loop: Loop, plain: TorchServeProcess, bundles: list[Bundle], tmp_path: Path
) -> None:
    chosen = settings(managed=False, targets=[plain.address])
    backend = find_backend("torchserve")("cpu", chosen, tmp_path, lambda _: None)
    loop(backend.start())
    loop(backend.load(bundles[0]))
    (outcome,) = loop(_awaited(backend, [ask()]))  # type: ignore[arg-type]

    assert orjson.loads(outcome.body) == pytest.approx(ANSWER, abs=1e-6)
    with pytest.raises(NotReady, match=r"version 2 does not answer on 127\.0\.0\.1"):
        loop(backend.load(bundles[1]))
    assert loop(backend.healthy())
    loop(backend.close())


def test_a_target_where_nobody_listens_is_named(loop: Loop, tmp_path: Path) -> None:
    chosen = settings(managed=False, targets=["127.0.0.1:1"], startup_timeout_s=1.0)
    backend = TorchServeBackend("gpu", chosen, tmp_path, lambda _: None)

    with pytest.raises(BackendUnavailable, match=r"pool gpu: no TorchServe answers at 127\.0\.0\.1:1"):
        loop(backend.start())
    loop(backend.close())


# What is told before anything starts


@pytest.mark.parametrize("changes", [{"managed": True, "targets": ["a:1"]}, {"managed": False, "targets": []}])
def test_a_pool_is_managed_or_has_targets(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either targets or managed"):
        TorchServeBackend("cpu", settings(**changes), tmp_path, lambda _: None)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "11" 2018-09-25', 11),
        ("command not found", 0),
    ],
)
def test_java_tells_its_version_in_two_ways(said: str, version: int) -> None:
    assert _java_version(said) == version


def test_an_old_or_missing_java_is_said_so(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = TorchServeProcess("cpu", settings(), tmp_path)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="needs Java 11 or newer; JAVA_HOME"):
        loop(process.start())
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'java version \"1.8.0_392\"' >&2\n")
    java.chmod(0o755)

    with pytest.raises(BackendUnavailable, match=r"needs Java 11 or newer; .* is 8"):
        loop(process.start())
