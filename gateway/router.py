"""From a name to the model version that answers, and on to the first healthy pool of its placement list."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from formats.envelope import Outcome, Prediction
from formats.errors import InvalidRequest, NotFound, NotReady
from gateway.batcher import Batcher, Deliver
from gateway.pool import Pool
from model_store.manifest import Manifest, Mode

__all__ = ["Deployment", "Endpoint", "Residence", "Router", "Variant", "mode_named"]

State = Literal["cold", "loading", "ready", "failed"]


@dataclass(eq=False)
class Residence:
    """One model version in one pool: loaded there, or why not."""

    pool: Pool
    state: State = "cold"
    reason: str = ""
    batchers: dict[str, Batcher] = field(default_factory=dict)
    """By mode."""


@dataclass(eq=False)
class Deployment:
    """One model version in one mode, wherever it may run."""

    manifest: Manifest
    mode: str
    residences: Sequence[Residence]
    """In order of preference."""
    wake: Callable[[Residence], None]
    """Starts loading a cold residence."""

    @property
    def spec(self) -> Mode:
        return self.manifest.modes[self.mode]

    @property
    def ready(self) -> bool:
        return any(residence.state == "ready" and residence.pool.healthy for residence in self.residences)

    def submit(self, prediction: Prediction, deliver: Deliver) -> None:
        """Queue a prediction where it will run; `deliver` is called exactly once."""
        residence = self.choose()
        if residence.state == "failed":
            text = f"model '{self.manifest.name}' version {self.manifest.version} is not ready: {residence.reason}"
            deliver(Outcome.of_error(NotReady(text)), None)
            return
        if residence.state == "cold":
            self.wake(residence)
        residence.batchers[self.mode].submit(prediction, deliver)

    def choose(self) -> Residence:
        """The first residence in a healthy pool that has not failed; the favourite one when there is none."""
        for residence in self.residences:
            if residence.pool.healthy and residence.state != "failed":
                return residence
        return self.residences[0]


@dataclass(frozen=True)
class Variant:
    name: str
    deployment: Deployment
    weight: float


class Endpoint:
    """A name that clients call, and the variants that share its traffic."""

    def __init__(self, name: str, variants: Sequence[Variant]) -> None:
        self.name = name
        self.variants = {variant.name: variant for variant in variants}
        self._ordered = list(variants)
        self._cumulative = list(accumulate(variant.weight for variant in variants))
        self._only = variants[0] if len(variants) == 1 else None

    def pick(self, wanted: str = "") -> Variant:
        """The variant that a client names, else one by weight.

        Raises:
            InvalidRequest: the endpoint has no variant of that name.
        """
        if wanted:
            if wanted not in self.variants:
                known = ", ".join(self.variants)
                raise InvalidRequest(f"Variant {wanted} not found for endpoint {self.name}; it has: {known}")
            return self.variants[wanted]
        if self._only is not None:
            return self._only
        if not self._cumulative[-1]:
            raise InvalidRequest(f"endpoint {self.name}: every variant has weight 0; name one")
        return random.choices(self._ordered, cum_weights=self._cumulative)[0]


def mode_named(mode: str, manifest: Manifest) -> str:
    """A model's own name of a mode: `classification` means regression too (Object2Vec contract, section 6.4)."""
    return "regression" if mode == "classification" and "regression" in manifest.modes else mode


class Router:
    """The tables that every protocol looks names up in; the catalog replaces them whole."""

    def __init__(self, default_endpoint: str = "") -> None:
        self._default = default_endpoint
        self.endpoints: Mapping[str, Endpoint] = {}
        self.deployments: Mapping[tuple[str, str, str], Deployment] = {}
        """By model, version and mode."""
        self.refused: Mapping[tuple[str, str], str] = {}
        """Published versions that cannot be opened, with the reason."""

    def endpoint(self, name: str) -> Endpoint:
        """Raises `NotFound` when nothing has that name, `NotReady` when all there is of it is damaged."""
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            for refused in (key for key in self.refused if key[0] == name):
                raise self._not_ready(refused)
            raise NotFound(f"Endpoint {name} not found")
        return endpoint

    def default_endpoint(self) -> Endpoint:
        """What `POST /invocations` means: the configured endpoint, else the only one.

        Raises:
            NotFound: nothing is served.
            InvalidRequest: there are several and none is configured.
        """
        if self._default:
            return self.endpoint(self._default)
        if len(self.endpoints) == 1:
            return next(iter(self.endpoints.values()))
        if not self.endpoints:
            raise NotFound("no model is published")
        names = ", ".join(sorted(self.endpoints)[:10])
        raise InvalidRequest(f"several endpoints are served ({names}); set default_endpoint or name one in the path")

    def deployment(self, name: str, version: str = "", mode: str = "") -> Deployment:
        """What the model protocols address: an endpoint's pick, or one version of a model.

        Raises:
            NotFound: no such model, version or mode.
            NotReady: that version is damaged.
        """
        if not version:
            deployment = self.endpoint(name).pick().deployment
            if not mode or mode == deployment.mode:
                return deployment
            name, version = deployment.manifest.name, deployment.manifest.version
        found = self.deployments.get((name, version, mode))
        if found is None:
            if (name, version) in self.refused:
                raise self._not_ready((name, version))
            known = sorted({v for n, v, _ in self.deployments if n == name})
            if not known:
                raise NotFound(f"Model not found: {name}")
            if version not in known:
                raise NotFound(f"Model version: {version} does not exist for model: {name}; it has: {', '.join(known)}")
            raise NotFound(f"model '{name}' has no mode '{mode}'")
        return found

    def in_mode(self, deployment: Deployment, mode: str) -> Deployment:
        """The same model version in the mode that a request asks for; as it is when it asks for none.

        Raises:
            InvalidRequest: the model has no such mode.
        """
        if not mode:
            return deployment
        manifest = deployment.manifest
        found = self.deployments.get((manifest.name, manifest.version, mode_named(mode, manifest)))
        if found is None:
            text = f"model '{manifest.name}' has no mode '{mode[:40]}'; it has: {', '.join(manifest.modes)}"
            raise InvalidRequest(text)
        return found

    def _not_ready(self, key: tuple[str, str]) -> NotReady:
        return NotReady(f"model '{key[0]}' version {key[1]} is not ready: {self.refused[key]}")
