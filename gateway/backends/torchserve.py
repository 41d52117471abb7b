"""TorchServe as a backend: a server that this gateway starts and watches, or servers that somebody else runs.

TorchServe is treated as an untrusted engine: protocol contract, section 3, lists its measured traps; here and in the
modules beside this one each is shielded, and `docs/backends/torchserve.md` says by what.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson

from formats.envelope import Outcome, Prediction
from formats.errors import BackendUnavailable, NotReady, PenstockError, error_from_code
from gateway.backends.backend import BatchLost, BatchRefused, Land, land_later
from gateway.backends.torchserve_calls import Caller, target_of
from gateway.backends.torchserve_process import TorchServeProcess
from gateway.settings import PoolSettings
from model_store.golden import check_golden, golden_prediction
from model_store.manifest import MANIFEST, MANIFEST_CHECKSUM
from model_store.store import Bundle

__all__ = ["TorchServeBackend"]

_log = logging.getLogger("penstock.torchserve")

_POLL_S = 1.0
_READY_POLL_S = 0.1
_UNRESPONSIVE_S = 30.0
"""A server whose management API has been silent for this long is replaced."""
_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_STABLE_S = 60.0
_CALL_MARGIN_S = 5.0
"""TorchServe ends a hung worker at `run_timeout_s`; the call waits this much longer for its word."""
_RETRY_WINDOW_S = 7 * 24 * 3600
"""TorchServe gives a dead worker up for ever after this; `_revive` would notice, but need not."""
_GRACE_S = 5
"""Seconds on top of `startup_timeout_s` that TorchServe gives a worker, so that the gateway's verdict comes first."""

_NO_ANSWER = (OSError, http.client.HTTPException)
"""What a management call raises when the server is down or hangs."""
_SIGNATURE = "MAR-INF/MANIFEST.json"
_CONFIG = "model-config.yaml"


class TorchServeBackend:
    """See `gateway.backends.backend.Backend`."""

    def __init__(self, name: str, settings: PoolSettings, run_dir: Path, count: Callable[[str], None]) -> None:
        if settings.managed == bool(settings.targets):
            raise ValueError(f"pool {name}: backend torchserve takes either targets or managed = true")
        self._server: _Managed | _Targets = (
            _Managed(name, settings, run_dir, count) if settings.managed else _Targets(name, settings)
        )
        # As many as there are workers, whatever the models: they share the same cores, and TorchServe's queue is
        # first come, first served, blind to deadlines.
        self.capacity = settings.workers * max(1, len(settings.targets))

    async def start(self) -> None:
        await self._server.start()

    async def load(self, bundle: Bundle) -> None:
        await self._server.load(bundle)

    async def unload(self, name: str, version: str) -> None:
        await self._server.unload(name, version)

    def run(self, batch: Sequence[Prediction], land: Land) -> None:
        land_later(self._server.run(batch), land)

    async def healthy(self) -> bool:
        return await self._server.healthy()

    async def close(self) -> None:
        await self._server.close()


class _Targets:
    """Servers that somebody else runs; a model is known there by its own name and version."""

    def __init__(self, name: str, settings: PoolSettings) -> None:
        self._name = name
        self._settings = settings
        self._target = target_of(settings.targets)
        self._timeout_s = settings.run_timeout_s + _CALL_MARGIN_S
        self._caller: Caller | None = None
        self._models: set[tuple[str, str]] = set()

    async def start(self) -> None:
        self._caller = Caller(self._target, self._timeout_s)
        try:
            async with asyncio.timeout(self._settings.startup_timeout_s):
                await self._caller.connect()
        except TimeoutError as error:
            where = ", ".join(self._settings.targets)
            text = f"no TorchServe answers at {where} within {self._settings.startup_timeout_s:g} s"
            raise BackendUnavailable(f"pool {self._name}: {text}") from error

    async def load(self, bundle: Bundle) -> None:
        """Ask every server that the targets resolve to for the golden answer."""
        name, version = bundle.manifest.name, bundle.manifest.version
        for address in await _addresses(self._settings.targets):
            caller = Caller(f"dns:///{address}", self._timeout_s)
            try:
                async with asyncio.timeout(self._settings.startup_timeout_s):
                    await _check(caller, name, version, bundle)
            except (BatchRefused, BatchLost, TimeoutError) as error:
                reason = str(error) or f"no answer within {self._settings.startup_timeout_s:g} s"
                text = f"model '{name}' version {version} does not answer on {address}: {reason}"
                raise NotReady(f"pool {self._name}: {text}") from error
            finally:
                await caller.close()
        self._models.add((name, version))

    async def unload(self, name: str, version: str) -> None:
        self._models.discard((name, version))

    async def run(self, batch: Sequence[Prediction]) -> list[Outcome]:
        model, version = batch[0].model, batch[0].version
        if self._caller is None or (model, version) not in self._models:
            raise BatchRefused(f"pool {self._name}: model '{model}' version {version} is not loaded")
        return await self._caller.predict(model, version, batch)

    async def healthy(self) -> bool:
        return self._caller is not None and await self._caller.reachable()

    async def close(self) -> None:
        if self._caller is not None:
            await self._caller.close()
            self._caller = None


@dataclass(eq=False)
class _Model:
    """One registered model version on the managed server."""

    registered: str
    """Its name on the server: each version is a model of its own there, so that no default-version rule applies."""
    bundle: Bundle
    pids: frozenset[int] = frozenset()
    """Live workers that have loaded it, when last looked at."""
    last_ready: float = field(default_factory=time.monotonic)


class _Managed:
    """A server that this gateway starts, watches, revives and stops."""

    def __init__(self, name: str, settings: PoolSettings, run_dir: Path, count: Callable[[str], None]) -> None:
        self._name = name
        self._settings = settings
        self._count = count
        self._process = TorchServeProcess(name, settings, run_dir)
        self._caller: Caller | None = None
        """None while there is no server to call."""
        self._models: dict[tuple[str, str], _Model] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._boot()
        self._watcher = asyncio.create_task(self._watch(), name=f"{self._name}-torchserve")

    async def load(self, bundle: Bundle) -> None:
        key = (bundle.manifest.name, bundle.manifest.version)
        if key in self._models:  # versions are immutable
            return
        await asyncio.to_thread(bundle.verify)
        model = _Model(self._registered_name(bundle), bundle)
        try:
            await self._admit(model)
        except BaseException:
            with contextlib.suppress(*_NO_ANSWER):
                await self._unregister(model)
            raise
        self._models[key] = model

    async def _admit(self, model: _Model) -> None:
        try:
            await self._unregister(model)  # what an earlier attempt may have left
            await self._register(model)
            await self._ready(model)
            await _check(self._call(), model.registered, "", model.bundle)
        except (*_NO_ANSWER, BatchLost, BatchRefused) as error:
            name = model.bundle.manifest.name
            text = f"pool {self._name}: TorchServe went away while it loaded model '{name}': {error}"
            raise BackendUnavailable(text) from error

    def _call(self) -> Caller:
        if self._caller is None:
            raise BatchRefused(f"pool {self._name}: TorchServe is being restarted")
        return self._caller

    async def unload(self, name: str, version: str) -> None:
        model = self._models.pop((name, version), None)
        if model is not None:
            with contextlib.suppress(*_NO_ANSWER):  # a server that is down has it no more
                await self._unregister(model)

    async def run(self, batch: Sequence[Prediction]) -> list[Outcome]:
        model = self._models.get((batch[0].model, batch[0].version))
        if model is None:
            raise BatchRefused(f"pool {self._name}: '{batch[0].model}' version {batch[0].version} is not loaded")
        return await self._call().predict(model.registered, "", batch)

    async def healthy(self) -> bool:
        return self._caller is not None and self._process.running

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._hang_up()
        await self._process.close()

    async def _boot(self) -> None:
        await self._process.start()
        timeout_s = self._settings.run_timeout_s + _CALL_MARGIN_S
        caller = Caller(f"ipv4:{self._process.address}", timeout_s, self._process.rest_address)
        try:
            async with asyncio.timeout(self._settings.startup_timeout_s):
                await caller.connect()
        except TimeoutError as error:
            await caller.close()
            await self._process.end()
            raise BackendUnavailable(f"pool {self._name}: TorchServe's gRPC port does not answer") from error
        self._caller = caller
        self._count("server_started")

    async def _hang_up(self) -> None:
        if self._caller is not None:
            caller, self._caller = self._caller, None
            await caller.close()

    async def _watch(self) -> None:
        """Keep the server and the workers of its models alive, for ever."""
        backoff, started = 0.0, time.monotonic()
        while True:
            await self._until_it_ends()
            lived = time.monotonic() - started
            backoff = _FIRST_BACKOFF_S if lived > _STABLE_S else min(max(backoff * 2, _FIRST_BACKOFF_S), _MAX_BACKOFF_S)
            await self._restart(lived, backoff)
            started = time.monotonic()

    async def _until_it_ends(self) -> None:
        """Look after the models as long as the server runs and answers."""
        answered = time.monotonic()
        while self._process.running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._process.wait()
                return
            try:
                for model in list(self._models.values()):
                    try:
                        await self._look_after(model)
                    except PenstockError as error:  # one model's trouble is not the others'
                        _log.error("%s", error)
                answered = time.monotonic()
            except _NO_ANSWER as error:
                if time.monotonic() - answered > _UNRESPONSIVE_S:
                    _log.error("pool %s: TorchServe has been silent for %g s: %s", self._name, _UNRESPONSIVE_S, error)
                    return
            except Exception:  # noqa: BLE001  whatever it is, the watch goes on
                _log.exception("pool %s: looking after TorchServe failed", self._name)

    async def _restart(self, lived: float, backoff: float) -> None:
        self._count("server_died")
        text = "pool %s: TorchServe ended after %.0f s; starting another in %.1f s"
        _log.error(text, self._name, lived, backoff)
        await self._hang_up()
        await self._process.end(gently=False)  # a JVM that hangs, or busy workers of one that was killed
        await asyncio.sleep(backoff)
        try:
            await self._boot()
        except BackendUnavailable as error:
            _log.error("%s", error)
        for model in self._models.values():
            model.pids, model.last_ready = frozenset(), time.monotonic()

    async def _look_after(self, model: _Model) -> None:
        """Compare what the server says of one model with what should be, and mend it."""
        workers = await self._workers(model)
        if workers is None:
            await self._register(model)  # a fresh server, or one that has forgotten it
            return
        gone = {pid for pid in model.pids if pid not in workers}
        for pid in gone:
            self._count("worker_died")
            _log.error("pool %s: worker %d of model '%s' died", self._name, pid, model.registered)
        model.pids = frozenset(workers)
        now = time.monotonic()
        if workers:
            model.last_ready = now
        elif now - model.last_ready > self._settings.startup_timeout_s:
            model.last_ready = now
            await self._revive(model)

    async def _revive(self, model: _Model) -> None:
        """TorchServe waits longer after each failed start, and in the end for ever; scaled down and up it tries now."""
        self._count("worker_revived")
        text = "pool %s: no worker of model '%s' for %g s; starting them anew"
        _log.error(text, self._name, model.registered, self._settings.startup_timeout_s)
        for workers in (0, self._settings.workers):
            query = f"min_worker={workers}&max_worker={workers}"
            await self._process.call("PUT", f"/models/{model.registered}?{query}")

    async def _register(self, model: _Model) -> None:
        await asyncio.to_thread(self._stock, model)
        query = f"url={model.registered}&model_name={model.registered}&initial_workers={self._settings.workers}"
        reply = await self._process.call("POST", f"/models?{query}", self._settings.startup_timeout_s)
        if reply.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.CONFLICT):
            self._raise_reported(model)
            name = model.bundle.manifest.name
            raise NotReady(f"pool {self._name}: TorchServe refused model '{name}': {reply.status}: {reply.text()}")

    async def _ready(self, model: _Model) -> None:
        """Wait until every worker has loaded the model and reproduced its golden answer."""
        name = model.bundle.manifest.name
        deadline = time.monotonic() + self._settings.startup_timeout_s
        while True:
            workers = await self._workers(model)
            if workers is not None and len(workers) >= self._settings.workers:
                model.pids, model.last_ready = frozenset(workers), time.monotonic()
                return
            self._raise_reported(model)
            if time.monotonic() > deadline:
                text = f"model '{name}' did not load within {self._settings.startup_timeout_s:g} s"
                raise NotReady(f"pool {self._name}: {text}; see workers.log of the pool")
            await asyncio.sleep(_READY_POLL_S)

    def _raise_reported(self, model: _Model) -> None:
        """Raise what a worker said when it could not load the model; TorchServe only says that it died."""
        with contextlib.suppress(FileNotFoundError):
            failure = orjson.loads((self._process.reports / f"{model.registered}.json").read_bytes())
            raise error_from_code(failure["code"], failure["message"])

    async def _workers(self, model: _Model) -> set[int] | None:
        """Process ids that are alive and have the model loaded; None when the server does not know it."""
        reply = await self._process.call("GET", f"/models/{model.registered}")
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        (description,) = orjson.loads(reply.body)
        workers: list[dict[str, Any]] = description["workers"]
        return {each["pid"] for each in workers if each["status"] == "READY" and _alive(each["pid"])}

    async def _unregister(self, model: _Model) -> None:
        try:
            await self._process.call("DELETE", f"/models/{model.registered}")
        finally:
            await asyncio.to_thread(shutil.rmtree, self._process.store / model.registered, ignore_errors=True)
            (self._process.reports / f"{model.registered}.json").unlink(missing_ok=True)

    def _registered_name(self, bundle: Bundle) -> str:
        """`<name>--<version>`; names may hold dashes themselves, so a clash gets a suffix of its own."""
        key = (bundle.manifest.name, bundle.manifest.version)
        name = "--".join(key)
        taken = {model.registered for other, model in self._models.items() if other != key}
        return name if name not in taken else f"{name}--{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}"

    def _stock(self, model: _Model) -> None:
        """Put a model into the server's store: the published files themselves and a signature written here.

        A directory, not the bundle's archive: nothing has to be unpacked, copied or trusted in size, and no code comes
        out of it. The signature names a handler of this installation.
        """
        directory = self._process.store / model.registered
        shutil.rmtree(directory, ignore_errors=True)
        (directory / _SIGNATURE).parent.mkdir(parents=True)
        for name in (MANIFEST, MANIFEST_CHECKSUM, *model.bundle.manifest.files):
            _link(model.bundle.path / name, directory / name)
        signature = {
            "modelName": model.registered,
            "modelVersion": "1",
            "handler": "handlers.torchserve:handle",
            "configFile": _CONFIG,
        }
        (directory / _SIGNATURE).write_bytes(orjson.dumps({"runtime": "python", "model": signature}))
        (directory / _CONFIG).write_text(self._model_config())
        (self._process.reports / f"{model.registered}.json").unlink(missing_ok=True)

    def _model_config(self) -> str:
        # here and not at registration: what this file says outweighs those parameters, whatever is documented
        values = {
            "minWorkers": self._settings.workers,
            "maxWorkers": self._settings.workers,
            "batchSize": 1,  # the gateway packs batches, and TorchServe's own fail as a whole
            "maxBatchDelay": 1,
            "responseTimeout": math.ceil(self._settings.run_timeout_s),
            "startupTimeout": math.ceil(self._settings.startup_timeout_s) + _GRACE_S,
            "maxRetryTimeoutInSec": _RETRY_WINDOW_S,
        }
        return "".join(f"{key}: {value}\n" for key, value in values.items())


async def _check(caller: Caller, model: str, version: str, bundle: Bundle) -> None:
    """Ask for the golden answer, or, where the bundle has none, whether a worker answers at all.

    Raises:
        NotReady: another answer came.
        BatchRefused, BatchLost: none came.
    """
    golden = golden_prediction(bundle)
    outcomes = await caller.predict(model, version, [] if golden is None else [golden])
    for outcome in outcomes:
        check_golden(bundle, outcome)


async def _addresses(targets: Sequence[str]) -> list[str]:
    """Every `ip:port` that the targets stand for now."""
    loop = asyncio.get_running_loop()
    addresses: list[str] = []
    for target in targets:
        host, _, port = target.rpartition(":")
        try:
            found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"target '{target}' is not host:port, or cannot be resolved: {error}") from error
        for family, _, _, _, where in found:
            ip, number = where[:2]
            assert isinstance(ip, str)
            assert isinstance(number, int)
            text = f"[{ip}]:{number}" if family == socket.AF_INET6 else f"{ip}:{number}"
            addresses += [text] if text not in addresses else []
    return addresses


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or links to others' files are forbidden
        shutil.copyfile(source, target)
