"""Who takes part, in which cases, and how each is set up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.bench import foreign
from loadtests.bench.cases import CASES, CONNECTIONS, MANY, Case, Wire
from loadtests.bench.peers import CORES, NotStarted, RawLimit, Server, free_ports
from loadtests.bench.published import NUM_IDLE, publish_idle
from loadtests.bench.requests import build
from loadtests.bench.torchserve import batching, behind_nginx, behind_proxy, check_java, torchserve

__all__ = ["PEERS", "Contestant", "contestants"]

_ALL: frozenset[Wire] = frozenset({"json", "oip", "binary", "grpc", "image"})
_HTTP = _ALL - {"grpc"}


@dataclass(frozen=True)
class Contestant:
    key: str
    """What `--peers` knows it by."""
    name: str
    make: Callable[[str, Path, Case], Server | RawLimit]
    """From the name, the directory of the models and the case; raises NotStarted where it cannot take part."""
    explanation: str
    wires: frozenset[Wire]
    models: frozenset[str] = field(default_factory=lambda: frozenset(case.model for case in CASES.values()))
    cases: frozenset[str] = frozenset()
    """Only these, if any are named."""
    unasked: frozenset[str] = frozenset(CASES)
    """Cases in which it takes part without being named: the whole table has to end in bounded time."""
    connections: tuple[int, ...] = CONNECTIONS
    warms_slowly: bool = False
    """A JVM compiles what it has run thousands of times."""

    def takes_part(self, case: Case) -> bool:
        return case.wire in self.wires and case.model in self.models and (not self.cases or case.name in self.cases)


def contestants(case: Case, keys: list[str]) -> list[Contestant]:
    """Those of the case, or those of them that are named; in the order of the line-up."""
    return [
        each
        for each in PEERS.values()
        if each.takes_part(case) and (each.key in keys if keys else case.name in each.unasked)
    ]


def _penstock(settings: Mapping[str, str], cores: tuple[int, ...] = ()) -> Callable[[str, Path, Case], Server]:
    """Args: settings: of the gateway, less PENSTOCK_; cores: those that it keeps to, and its clients to the others."""

    def make(name: str, directory: Path, case: Case) -> Server:
        if cores and len(cores) >= CORES:
            raise NotStarted(f"{CORES} cores leave none for the clients")
        store = publish_idle(directory, case.model) if "idle" in name else directory / "store"
        http_port, grpc_port, admin_port = free_ports(3)
        environment = {
            "PENSTOCK_STORE": str(store),
            "PENSTOCK_HOST": "127.0.0.1",
            "PENSTOCK_HTTP_PORT": str(http_port),
            "PENSTOCK_GRPC_PORT": str(grpc_port),
            "PENSTOCK_ADMIN_PORT": str(admin_port),
            "PENSTOCK_POOLS__CPU__DEVICE": "cpu",
            **{f"PENSTOCK_{key}": value for key, value in settings.items()},
        }
        port = grpc_port if case.wire == "grpc" else http_port
        home = directory / "".join(letter if letter.isalnum() else "-" for letter in name.lower())
        command = [sys.executable, "-m", "penstock", "serve"]
        return Server(name, command, port, build(directory, case, "penstock"), home, environment, cores=cores)

    return make


def _before_torchserve(name: str, directory: Path, case: Case) -> Server:
    check_java()
    pool = {"POOLS__CPU__BACKEND": "torchserve", "POOLS__CPU__MANAGED": "true", "POOLS__CPU__WORKERS": str(CORES)}
    return _penstock(pool)(name, directory, case)


def _bare(module: str, num_processes: int) -> Callable[[str, Path, Case], Server]:
    def make(name: str, directory: Path, case: Case) -> Server:
        (port,) = free_ports(1)
        wire = () if case.wire == "grpc" else (case.wire,)
        arguments = (str(port), str(directory), case.model, *wire, str(num_processes))
        command = [sys.executable, "-m", f"loadtests.bench.servers.{module}", *arguments]
        request = build(directory, case, "bare")
        return Server(name, command, port, request, directory / f"{module}-{num_processes}")

    return make


def _raw(_: str, directory: Path, case: Case) -> RawLimit:
    return RawLimit(directory / f"{case.model}.onnx", directory / f"{case.model}.x.npy", CORES)


_IN_PROCESS = "models in the gateway's processes (`workers = 0`)"
_TENSORS = frozenset({"mlp", "mean", "resnet18"})
_INSIDE = {"POOLS__CPU__WORKERS": "0"}
_SEVERAL = {**_INSIDE, "PROCESSES": str(CORES), "POOLS__CPU__CPUS": json.dumps(list(range(CORES)))}
_TINY = frozenset({"mlp-json", "mlp-oip", "mlp-grpc"})
_TINY_FEW = _TINY - {"mlp-oip"}
_TINY_JSON = frozenset({"mlp-json"})
_FEW = (1, 8, 32)
_EVERY = (
    Contestant(
        "penstock", "Penstock", _penstock(_SEVERAL),
        f"{CORES} processes on one port, each bound to a core, {_IN_PROCESS}.",
        _ALL, connections=(*CONNECTIONS, MANY),
    ),
    Contestant(
        "penstock-one", "Penstock, one process", _penstock(_INSIDE), f"{_IN_PROCESS}.",
        _ALL, unasked=_TINY, connections=(*CONNECTIONS, MANY),
    ),
    Contestant(
        "penstock-workers", "Penstock, worker processes", _penstock({"POOLS__CPU__WORKERS": str(CORES)}),
        f"one gateway process, {CORES} worker processes.", _ALL, unasked=_TINY_FEW, connections=(*CONNECTIONS, MANY),
    ),
    Contestant(
        "penstock-idle", "Penstock, idle models", _penstock(_SEVERAL),
        f"as Penstock, with {NUM_IDLE:,} models more in the store that nobody asks.",
        _HTTP, cases=_TINY_JSON, connections=_FEW,
    ),
    Contestant(
        "penstock-core", "Penstock, one process on one core", _penstock(_INSIDE, cores=(0,)),
        "kept to the first core, while its clients keep to the others.",
        _ALL, cases=_TINY_FEW, connections=(32,),
    ),
    Contestant(
        "penstock-core-2", "Penstock, two processes on one core",
        _penstock({**_INSIDE, "PROCESSES": "2"}, cores=(0,)),
        "the same with two processes: what they cost each other.",
        _ALL, cases=_TINY_FEW, connections=(32,),
    ),
    Contestant(
        "penstock-torchserve", "Penstock before TorchServe", _before_torchserve,
        "one gateway process and a TorchServe that it starts itself behind it.", _ALL, unasked=_TINY_FEW,
        warms_slowly=True,
    ),
    Contestant(
        "torchserve", "TorchServe", torchserve,
        "asked directly, with default settings: one worker per core. Its handler runs the same graph on ONNX Runtime, "
        "one thread per worker.", _ALL - {"oip"}, unasked=_TINY | {"jpeg"}, warms_slowly=True,
    ),
    Contestant(
        "torchserve-batching", "TorchServe, batching", batching,
        "the same with its own batching, 32 rows or 5 ms.", _ALL - {"oip"}, unasked=_TINY, warms_slowly=True,
    ),
    Contestant(
        "nginx-torchserve", "nginx before TorchServe", behind_nginx,
        f"{CORES} workers that keep their connections to a TorchServe of their own, with default settings.",
        _HTTP, cases=_TINY_JSON, warms_slowly=True,
    ),
    Contestant(
        "proxy-torchserve", "FastAPI and httpx before TorchServe", behind_proxy,
        "one process of uvicorn that passes bodies on to a TorchServe of its own.",
        _HTTP, cases=_TINY_JSON, warms_slowly=True,
    ),
    Contestant(
        "fastapi", "FastAPI", _bare("fastapi_app", 1),
        "uvicorn with uvloop and httptools, orjson, ONNX Runtime's default threads.", _HTTP, unasked=_TINY,
        connections=_FEW,
    ),
    Contestant(
        "fastapi-2", "FastAPI, two processes", _bare("fastapi_app", 2), "the same, with one thread each.", _HTTP,
    ),
    Contestant(
        "grpc", "grpc.aio", _bare("grpc_server", 1), "`grpc.aio` with compiled messages around ONNX Runtime.",
        frozenset({"grpc"}), unasked=_TINY,
    ),
    Contestant(
        "grpc-2", "grpc.aio, two processes", _bare("grpc_server", 2), "the same on one port.", frozenset({"grpc"}),
    ),
    Contestant(
        "litserve", "LitServe", foreign.litserve, f"{CORES} workers, JSON.",
        frozenset({"json"}), _TENSORS, unasked=_TINY | {"tensor-json"},
    ),
    Contestant(
        "bentoml", "BentoML", foreign.bentoml, f"{CORES} workers, JSON.",
        frozenset({"json"}), cases=_TINY_JSON,
    ),
    Contestant(
        "rayserve", "Ray Serve", foreign.rayserve,
        f"its proxy and {CORES} replicas, JSON; held still while others are measured.",
        frozenset({"json"}), cases=_TINY_JSON,
    ),
    Contestant(
        "mlserver", "MLServer", foreign.mlserver, "one process, a custom runtime, Open Inference Protocol.",
        frozenset({"json", "oip", "grpc"}), _TENSORS, unasked=_TINY,
    ),
    Contestant(
        "triton", "Triton", foreign.triton,
        f"its C++ front, {CORES} instances of a Python backend that runs ONNX Runtime, dynamic batching, Open "
        f"Inference Protocol.", _ALL - {"image"}, _TENSORS,
    ),
    Contestant(
        "floor", "floor", _bare("floor", 1),
        "httptools on a bare protocol of uvloop around ONNX Runtime: no framework, no routes, no limits.", _HTTP,
        unasked=_TINY, connections=_FEW,
    ),
    Contestant("floor-2", "floor, two processes", _bare("floor", 2), "the same on one port.", _HTTP),
    Contestant(
        "raw", RawLimit.name, _raw,
        f"batches of one in a loop, one process for one connection and {CORES} for more; nothing receives or sends. A "
        f"server that batches can pass it.", _ALL, _TENSORS, connections=(1, 8),
    ),
)  # fmt: skip
PEERS = {each.key: each for each in _EVERY}
