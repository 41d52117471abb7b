"""What the gateway serves: watches the store, loads versions into pools, and gives the router its tables."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from formats.errors import BackendFailed, CorruptBundle, NotFound, NotReady, PenstockError
from gateway.backends.backend import BatchLost, BatchRefused, answer_of
from gateway.batcher import Batcher, Memory
from gateway.metrics import Metrics, Reading
from gateway.pool import Pool
from gateway.router import Deployment, Endpoint, Residence, Router, Variant, mode_named
from gateway.settings import Settings, VariantSettings
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle, Store

__all__ = ["Catalog", "ServedVersion"]

_log = logging.getLogger("penstock.catalog")

_RETRY_S = 5.0
"""A load that failed for a reason that may pass is tried again after this long."""
_GOLDEN_PATIENCE_S = 30.0


@dataclass(eq=False)
class ServedVersion:
    """One published version and where it lives."""

    bundle: Bundle
    residences: list[Residence]
    deployments: dict[str, Deployment]
    """By mode."""
    error: str = ""
    """Why nothing of it can be served, such as a placement without a pool."""

    @property
    def favourites(self) -> list[Residence]:
        """Where its modes run while all is well: what is to be loaded before anybody asks."""
        found = {id(deployment.residences[0]): deployment.residences[0] for deployment in self.deployments.values()}
        return list(found.values())

    @property
    def batchers(self) -> Iterator[Batcher]:
        return (batcher for residence in self.residences for batcher in residence.batchers.values())

    @property
    def settled(self) -> bool:
        return all(residence.state in ("ready", "failed", "cold") for residence in self.residences)

    @property
    def ready(self) -> bool:
        return any(deployment.ready for deployment in self.deployments.values())


class Catalog:
    """Keeps the router's tables true to the store and the configuration."""

    def __init__(
        self, settings: Settings, pools: Mapping[str, Pool], metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self.router = Router(settings.default_endpoint)
        self.versions: dict[tuple[str, str], ServedVersion] = {}
        self.errors: dict[tuple[str, str], str] = {}
        """Versions in the store that cannot even be opened, with the reason."""
        self.changed = asyncio.Event()
        """Set when the tables or what is ready may have changed; whoever waits clears it."""
        self._settings = settings
        self._pools = pools
        self._metrics = metrics
        self._clock = clock
        self._memory = Memory(settings.max_pending_bytes)
        self._store = Store(settings.store)
        self._published: dict[str, list[str]] = {}
        self._current: dict[str, str] = {}
        """The version that a model's own endpoint answers with."""
        self._pools_healthy: list[bool] = []
        """As they were when the tables were made."""
        self._stale = False
        """The store holds other versions than the tables, or a version is to be loaded once more."""
        self._tasks: set[asyncio.Task[None]] = set()
        metrics.add_readings(self._readings)

    @property
    def settled(self) -> bool:
        """Nothing is being loaded."""
        return all(version.settled for version in self.versions.values())

    @property
    def loaded(self) -> set[tuple[str, str, str]]:
        """Names and versions of what can answer, and the pool of each."""
        return {
            (*key, residence.pool.name)
            for key, version in self.versions.items()
            for residence in version.residences
            if residence.state == "ready"
        }

    async def watch(self) -> None:
        """Look at the store for ever."""
        while True:
            try:
                await self.refresh()
            except OSError as error:  # a mount that comes and goes must not end the watch
                _log.warning("cannot read the store %s: %s", self._settings.store, error)
            await asyncio.sleep(self._settings.store_poll_s)

    async def refresh(self) -> None:
        """Take in what was published, let go of what was removed, and start the loads that this asks for."""
        published = await asyncio.to_thread(self._store.published)
        self._stale = self._stale or published != self._published  # still, if the last time ended in an error
        if self._stale:
            self._published = published
            self._forget_removed()
            for name, versions in published.items():
                for version in versions:
                    if (name, version) not in self.versions and (name, version) not in self.errors:
                        await self._admit(name, version)
            for served in self._wanted():
                for residence in served.favourites:
                    if residence.state == "cold":
                        self._wake(served, residence)
        if self._stale or self._pools_healthy != [pool.healthy for pool in self._pools.values()]:
            self._route()
        self._stale = False

    async def _admit(self, name: str, version: str) -> None:
        try:
            bundle = await asyncio.to_thread(self._store.open, name, version)
        except (CorruptBundle, NotFound) as error:
            self.errors[name, version] = str(error)
            _log.error("not served: %s", error)
            return
        self.versions[name, version] = self._place(bundle)

    def _place(self, bundle: Bundle) -> ServedVersion:
        """Decide which pools may serve each mode, by the configuration's placement or the manifest's."""
        served = ServedVersion(bundle, [], {})
        manifest = bundle.manifest
        by_pool: dict[str, Residence] = {}
        for mode, spec in manifest.modes.items():
            overrides = self._settings.placement
            order = overrides.get(f"{manifest.algorithm}/{mode}") or overrides.get(manifest.algorithm) or spec.placement
            pools = [pool for device in order for pool in self._pools.values() if pool.settings.device == device]
            label = f"{manifest.name} version {manifest.version} mode {mode}"
            if not pools:
                served.error = f"{label}: placement {', '.join(order)} names no configured pool"
                _log.error("not served: %s", served.error)
                continue
            _log.info("%s: runs on pool %s (placement %s)", label, pools[0].name, ", ".join(order))
            residences = [by_pool.setdefault(pool.name, Residence(pool)) for pool in pools]
            for residence in residences:
                residence.batchers[mode] = self._batcher(bundle, mode, residence.pool)
            served.deployments[mode] = Deployment(manifest, mode, residences, partial(self._wake, served))
        served.residences = list(by_pool.values())
        return served

    def _batcher(self, bundle: Bundle, mode: str, pool: Pool) -> Batcher:
        manifest = bundle.manifest
        return Batcher(
            pool,
            clock=self._clock,
            limits=manifest.modes[mode].batching,
            max_queue=self._settings.max_queue,
            observer=self._metrics.batch_observer(manifest.name, manifest.version, mode, pool.name),
            memory=self._memory,
        )

    def _wanted(self) -> Iterator[ServedVersion]:
        """Versions to load without being asked: each model's newest, and those that endpoints name."""
        keys = {(name, versions[-1]) for name, versions in self._published.items()}
        for endpoint in self._settings.endpoints.values():
            keys |= {(v.model, v.version) for v in endpoint.variants if v.version is not None}
        yield from (self.versions[key] for key in sorted(keys) if key in self.versions)

    def _wake(self, version: ServedVersion, residence: Residence) -> None:
        residence.state = "loading"
        task = asyncio.create_task(self._load(version, residence))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, version: ServedVersion, residence: Residence) -> None:
        manifest = version.bundle.manifest
        label = f"{manifest.name} version {manifest.version} on pool {residence.pool.name}"
        try:
            await asyncio.to_thread(version.bundle.verify)
            await residence.pool.backend.load(version.bundle)
            await self._prove(version.bundle, residence.pool)
        except (PenstockError, OSError) as error:
            self._failed(version, residence, error)
            return
        except Exception as error:  # noqa: BLE001  a backend's surprise must not leave the model loading for ever
            _log.error("%s", label, exc_info=error)
            self._failed(version, residence, BackendFailed(f"{type(error).__name__} while loading; see the log"))
            return
        residence.state, residence.reason = "ready", ""
        _log.info("%s: ready", label)
        for batcher in residence.batchers.values():
            batcher.open()
        self._route()

    def _failed(self, version: ServedVersion, residence: Residence, error: Exception) -> None:
        manifest = version.bundle.manifest
        residence.state, residence.reason = "failed", str(error)
        self.changed.set()
        _log.error("%s version %s on pool %s: %s", manifest.name, manifest.version, residence.pool.name, error)
        for batcher in residence.batchers.values():
            batcher.fail(NotReady(f"model '{manifest.name}' is not ready: {error}"))
        if not isinstance(error, CorruptBundle):
            asyncio.get_running_loop().call_later(_RETRY_S, self._forgive, residence)

    async def _prove(self, bundle: Bundle, pool: Pool) -> None:
        """Send the golden request through the pool that will serve the model."""
        golden = golden_prediction(bundle)
        if golden is None:
            return
        give_up = self._clock() + _GOLDEN_PATIENCE_S
        while True:
            try:
                (outcome,) = await answer_of(pool.backend, [golden])
            except (BatchRefused, BatchLost) as error:
                if self._clock() > give_up:
                    raise NotReady(f"the golden request was not answered: {error}") from error
                await asyncio.sleep(0.02)
            else:
                check_golden(bundle, outcome)
                return

    def _forgive(self, residence: Residence) -> None:
        if residence.state == "failed":
            residence.state = "cold"
            self._stale = True

    def _forget_removed(self) -> None:
        present = {(name, version) for name, versions in self._published.items() for version in versions}
        for key in [key for key in self.errors if key not in present]:
            del self.errors[key]
        for key in [key for key in self.versions if key not in present]:
            version = self.versions.pop(key)
            _log.info("%s version %s was removed from the store", *key)
            for batcher in version.batchers:
                batcher.retire(NotFound(f"model '{key[0]}' version {key[1]} was removed"))
            for residence in version.residences:
                task = asyncio.create_task(residence.pool.backend.unload(*key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _route(self) -> None:
        """Give the router new tables."""
        self._choose_current()
        endpoints = {}
        for name in self._published:
            version = self.versions.get((name, self._current.get(name, "")))
            if version is not None and version.deployments:
                endpoints[name] = Endpoint(name, [Variant("AllTraffic", self._default_mode(version), 1.0)])
        for name, configured in self._settings.endpoints.items():
            variants = [variant for v in configured.variants if (variant := self._variant(v)) is not None]
            if variants:
                endpoints[name] = Endpoint(name, variants)
        deployments = {}
        for (name, number), version in self.versions.items():
            for mode, deployment in version.deployments.items():
                deployments[name, number, mode] = deployment
            if version.deployments:
                deployments[name, number, ""] = self._default_mode(version)
        self.router.endpoints, self.router.deployments = endpoints, deployments
        self.router.refused = self.errors
        self._pools_healthy = [pool.healthy for pool in self._pools.values()]
        self.changed.set()

    def _choose_current(self) -> None:
        """A model's own endpoint moves to a newer version only once that is ready, and away from one that is gone."""
        for name, versions in self._published.items():
            served = [v for v in versions if (name, v) in self.versions and self.versions[name, v].deployments]
            ready = [v for v in served if self.versions[name, v].ready]
            current = self._current.get(name)
            if ready and (current not in ready or versions.index(ready[-1]) > versions.index(current)):
                self._current[name] = ready[-1]
            elif served and current not in served:
                self._current[name] = served[-1]

    def _variant(self, wanted: VariantSettings) -> Variant | None:
        version = self.versions.get((wanted.model, wanted.version or self._current.get(wanted.model, "")))
        if version is None:
            return None
        if not wanted.mode:
            return Variant(wanted.name, self._default_mode(version), wanted.weight) if version.deployments else None
        deployment = version.deployments.get(mode_named(wanted.mode, version.bundle.manifest))
        return None if deployment is None else Variant(wanted.name, deployment, wanted.weight)

    def _default_mode(self, version: ServedVersion) -> Deployment:
        """The preferred mode where there is such, else the default one, or the first that has a pool."""
        manifest = version.bundle.manifest
        for mode in (mode_named(self._settings.inference_preferred_mode, manifest), manifest.default_mode):
            if mode in version.deployments:
                return version.deployments[mode]
        return next(iter(version.deployments.values()))

    def _readings(self) -> Iterator[Reading]:
        labels = ("model", "version", "mode", "pool")
        for (name, number), version in self.versions.items():
            for residence in version.residences:
                for mode, batcher in residence.batchers.items():
                    values = (name, number, mode, residence.pool.name)
                    yield "penstock_queue_depth", "Predictions waiting", labels, values, len(batcher)
                    ready = float(residence.state == "ready")
                    yield "penstock_model_ready", "Loaded, and its golden request answered", labels, values, ready
        held = self._memory.held
        yield "penstock_pending_bytes", "Bodies and tensors of predictions not answered yet", (), (), held
        for pool in self._pools.values():
            name_ = ("pool",)
            yield "penstock_pool_in_flight", "Batches running", name_, (pool.name,), pool.in_flight
            yield "penstock_pool_healthy", "Could a batch be answered now", name_, (pool.name,), float(pool.healthy)
            yield "penstock_pool_capacity", "Batches at once", name_, (pool.name,), pool.backend.capacity
