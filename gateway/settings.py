"""Every knob of serving, each followed by its meaning; read once at start and passed down.

Precedence: command line, `PENSTOCK_*` environment, the TOML file, the defaults below. Nested fields take two
underscores in the environment: `PENSTOCK_POOLS__CPU__WORKERS=4`.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from model_store.store import DEFAULT_ROOT

__all__ = [
    "EndpointSettings",
    "PoolSettings",
    "Settings",
    "VariantSettings",
    "parse_settings",
    "read_settings",
    "share_of",
]

_MAX_WORKERS = 1000

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


def _default_workers() -> int:
    """One per core, or as many as `MODEL_SERVER_WORKERS` says, which clients of the original containers set.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    wanted = os.environ.get("MODEL_SERVER_WORKERS", "")
    if not wanted:
        return os.cpu_count() or 1
    if not wanted.isascii() or not wanted.isdecimal() or not 0 < int(wanted) < _MAX_WORKERS:
        raise ValueError(
            f"environment variable MODEL_SERVER_WORKERS must be a whole number of at least 1, got {wanted!r}"
        )
    return int(wanted)


class PoolSettings(BaseModel):
    """A device class, a backend, and its limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "gpu"]
    """What the pool's models run on; placement lists name it."""
    backend: str = "embedded"
    """Entry point name: `embedded`, `torchserve`, or one that a plug-in registers."""
    workers: Annotated[int, Field(ge=0)] = Field(default_factory=_default_workers)
    """Worker processes, per model version on TorchServe; by default `MODEL_SERVER_WORKERS`, else one per core. 0
    (backend `embedded`): models run in the gateway process itself, for the lowest latency; one that crashes takes the
    gateway with it."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads inside one operator of one worker; workers times threads should not pass the cores."""
    cpus: list[Annotated[int, Field(ge=0)]] = []
    """Processors by number that workers are bound to, `threads` of them each, by turns (backend `embedded`, Linux): all
    workers of all gateway processes are counted through. With `workers = 0` the gateway processes themselves are
    bound. Empty: the system moves them as it likes."""
    on_cpu: bool = False
    """Compute on the CPU though `device` is `gpu`: to try out placements on a machine without one."""
    engine: Literal["onnx", "torchscript"] = "onnx"
    """Which exported form the workers run."""
    targets: list[str] = []
    """`host:port` of TorchServe gRPC servers that somebody else runs (backend `torchserve`)."""
    managed: bool = False
    """Start, watch and stop a TorchServe on this machine (backend `torchserve`); excludes `targets`."""
    startup_timeout_s: Seconds = 120.0
    """How long one worker, or a managed server, may take to load before it counts as failed."""
    run_timeout_s: Seconds = 60.0
    """A worker that computes longer than this on one batch is considered hung and is replaced."""

    @property
    def runtime(self) -> dict[str, str | int]:
        """How graphs run in one worker: fields of `handlers.graph.Runtime`."""
        device = "cpu" if self.on_cpu else self.device
        return {"engine": self.engine, "device": device, "threads": self.threads}

    def cpus_of(self, worker: int) -> set[int]:
        """What the worker of a number is bound to; `cpus` is not empty."""
        first = worker * self.threads
        return {self.cpus[(first + place) % len(self.cpus)] for place in range(self.threads)}

    def of_process(self, index: int) -> PoolSettings:
        """The settings for one of several gateway processes: its turn of the processors comes after the others'."""
        if not self.cpus:
            return self
        turn = index * max(self.workers, 1) * self.threads % len(self.cpus)
        return self.model_copy(update={"cpus": self.cpus[turn:] + self.cpus[:turn]})

    @model_validator(mode="after")
    def _workers_where_needed(self) -> PoolSettings:
        if self.backend == "torchserve" and not self.workers:
            raise ValueError("workers = 0 is for backend 'embedded'; TorchServe needs at least 1")
        return self

    @model_validator(mode="after")
    def _cpus_that_are_there(self) -> PoolSettings:
        if not self.cpus:
            return self
        if self.backend != "embedded":
            raise ValueError("cpus binds what backend 'embedded' runs; this pool has another")
        if not hasattr(os, "sched_getaffinity"):
            raise ValueError("cpus: this system does not bind processes to processors")
        there = os.sched_getaffinity(0)
        missing = sorted(set(self.cpus) - there)
        if missing:
            raise ValueError(f"cpus: {missing} are not among this process's: {sorted(there)}")
        return self


class VariantSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "AllTraffic"
    """What `X-Amzn-SageMaker-Target-Variant` selects and the answer names."""
    model: str
    version: str | None = None
    """Default: the newest published."""
    mode: str = ""
    """Default: the model's own default mode."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Share of the traffic, over the sum of the endpoint's weights."""


class EndpointSettings(BaseModel):
    """A name that clients call; every published model is one by itself, with all traffic to its newest version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: Annotated[list[VariantSettings], Field(min_length=1, max_length=10)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="PENSTOCK_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    store: Path = DEFAULT_ROOT
    """Root of the published models."""
    host: str = "0.0.0.0"  # noqa: S104  the front door is meant to be public; management is not
    """Address of the HTTP and gRPC prediction ports."""
    http_port: Port = 8080
    """SageMaker, TorchServe and Open Inference Protocol over HTTP; 0 takes a free port."""
    grpc_port: Port = 8081
    """Open Inference Protocol and TorchServe over gRPC."""
    admin_host: str = "127.0.0.1"
    """Address of the management port: loopback, because it has no authentication."""
    admin_port: Port = 8082
    """Management, metrics and API documentation."""
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    """Gateway processes on the same HTTP and gRPC ports; 1 needs no supervisor. Each has pools of its own: `workers`
    counts per process, and its default is then divided by them."""
    grpc_server: Literal["http2", "grpcio"] = "http2"
    """Who speaks HTTP/2 on the gRPC port: Penstock itself, or grpcio's server, which costs several times as much."""
    grpc_reflection: bool = False
    """Let gRPC clients list the services; reveals the API, so off on public ports."""
    default_endpoint: str = ""
    """Which endpoint `POST /invocations` means; default: the only one there is."""
    inference_preferred_mode: Annotated[
        str, Field(validation_alias=AliasChoices("inference_preferred_mode", "penstock_inference_preferred_mode"))
    ] = ""
    """Which mode of models that have it answers where neither request nor endpoint names one, such as `embedding`;
    `classification` means regression too. Also read from `INFERENCE_PREFERRED_MODE`, SageMaker's name of it."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 25 * 1024 * 1024
    """Largest request body (SageMaker's real-time limit)."""
    max_header_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024
    """Largest request line and headers together."""
    header_timeout_s: Seconds = 10.0
    """From the first byte of a request to the end of its headers."""
    body_timeout_s: Seconds = 30.0
    """Longest pause between two reads of a body."""
    upload_timeout_s: Seconds = 60.0
    """From the end of a request's headers to the end of its body, however steadily it drips in."""
    idle_timeout_s: Seconds = 75.0
    """How long a connection may wait for its next request."""
    max_connections: Annotated[int, Field(ge=1)] = 10_000
    """HTTP connections that one gateway process keeps; further ones are answered 503 and closed."""
    max_held_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024 * 1024
    """HTTP request bodies, arriving or waiting for their answers, that one gateway process holds before it answers
    503."""
    request_timeout_s: Seconds = 60.0
    """Deadline of a prediction whose client set none, and the latest that a client may set (SageMaker's real-time
    limit)."""
    request_timeout_unit: Literal["s", "ms"] = "s"
    """What the headers `X-Request-Timeout` and `Request-Timeout`, by which HTTP clients set a deadline, count in."""
    max_queue: Annotated[int, Field(ge=1)] = 2048
    """Predictions that may wait per model version and mode before new ones are refused."""
    max_pending_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024 * 1024
    """Bodies and tensors of all predictions that are not answered yet, before new ones are refused. One alone always
    may come: `max_body_bytes` limits that."""
    drain_timeout_s: Seconds = 25.0
    """After SIGTERM: how long accepted requests may take to finish (platforms kill after 30 s)."""
    drain_linger_s: Annotated[float, Field(ge=0)] = 0.5
    """After SIGTERM: how long idle connections stay open, so that a request already on its way is answered."""
    store_poll_s: Seconds = 2.0
    """How often the store is looked at for newly published versions."""
    server_timing: bool = True
    """Tell clients where the time went (`Server-Timing`)."""
    busy_poll_us: Annotated[int, Field(ge=0, le=1000)] = 200
    """Requests that follow answers within so many microseconds, on the mean, are looked for instead of slept for; see
    `gateway.busy_poll`. 0 always sleeps."""
    run_dir: Path | None = None
    """Where sockets, logs and temporary files of workers go; default: a private temporary directory."""
    log_format: Literal["text", "json"] = "text"
    pools: dict[str, PoolSettings] = {}
    """Default: `cpu` with embedded workers, and `gpu` likewise where the machine has one."""
    placement: dict[str, list[Literal["cpu", "gpu"]]] = {}
    """Overrides of the manifests' placement lists, by algorithm or `algorithm/mode`."""
    endpoints: dict[str, EndpointSettings] = {}
    """Endpoints beyond the published models' own names."""

    @model_validator(mode="after")
    def _room_for_a_body(self) -> Self:
        if self.max_held_bytes < self.max_body_bytes:
            text = f"max_held_bytes must be at least max_body_bytes, {self.max_body_bytes}, got {self.max_held_bytes}"
            raise ValueError(text)
        return self

    @model_validator(mode="after")
    def _share_cores(self) -> Self:
        for name, pool in self.pools.items():
            if self.processes > 1 and "workers" not in pool.model_fields_set:
                workers = share_of(pool.workers, self.processes)
                self.pools[name] = pool.model_copy(update={"workers": workers})
        return self

    @model_validator(mode="after")
    def _cpus_of_a_bound_process(self) -> Self:
        """What a process starts is bound as it is: it must be bound alike, or by itself."""
        bound = {name: pool for name, pool in self.pools.items() if pool.cpus and not pool.workers}
        for name, first in bound.items():
            for other, pool in self.pools.items():
                if not pool.cpus or (other in bound and (pool.cpus, pool.threads) != (first.cpus, first.threads)):
                    same = "the same cpus and threads" if not pool.workers else "cpus of its own"
                    raise ValueError(f"pools.{name}.cpus binds the gateway process: pool '{other}' needs {same}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


class _Told(Settings):
    """Complete as they are: neither environment nor file is asked again."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def share_of(count: int, processes: int) -> int:
    """What each of several processes gets of a machine's cores or devices, at least 1."""
    return max(1, count // processes)


def parse_settings(text: str) -> Settings:
    """Read back what `Settings.model_dump_json` wrote, and nothing else."""
    return _Told(**json.loads(text))


def read_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the environment and, when given, one TOML file.

    Raises:
        ValueError: a field has the wrong type or range, or is unknown; the text names it.
        FileNotFoundError: there is no such file.
    """
    if config is not None and not config.is_file():
        raise FileNotFoundError(f"no configuration file {config}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return FromFile(**{name: value for name, value in overrides.items() if value is not None})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{config} is not TOML: {error}") from error
