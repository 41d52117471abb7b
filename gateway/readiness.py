"""What the gateway says of its own health, the same in every protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.catalog import Catalog
from gateway.pool import Pool

__all__ = ["Readiness"]


@dataclass
class Readiness:
    """Truthful: ready means that a prediction sent now would be answered."""

    catalog: Catalog
    pools: Mapping[str, Pool]
    draining: bool = False
    started: bool = False
    """The store has been looked at once."""
    _settled: bool = False
    """What was found at start has been loaded or has failed; a version published later must not unready the rest."""

    @property
    def ready(self) -> bool:
        """Nothing is still loading, and at least one endpoint can answer (or none is published yet)."""
        if self.draining or not self.started:
            return False
        self._settled = self._settled or self.catalog.settled
        if not self._settled:
            return False
        endpoints = self.catalog.router.endpoints
        if not endpoints:
            return not self.catalog.errors and all(pool.healthy for pool in self.pools.values())
        # one pool that is ill takes nothing down as long as another holds the models
        return any(variant.deployment.ready for e in endpoints.values() for variant in e.variants.values())
