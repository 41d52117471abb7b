"""What the users of an algorithm send and how they judge the answers, whatever the protocol."""

from __future__ import annotations

import importlib
import importlib.util
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["Array", "Body", "Neighbours", "Unusable", "Workload", "fetch_metadata", "load_workload"]

Array = np.ndarray[Any, np.dtype[Any]]

_CLOSE = 1e-4
"""A batch may round otherwise than a single request: the project's tolerance between two forms of one model."""


class Unusable(Exception):
    """There is nothing to load-test; the text says what is missing."""


@dataclass(frozen=True)
class Body:
    """One request body of the REST protocols."""

    content_type: str
    data: bytes


class Workload(Protocol):
    """One algorithm's requests; `loadtests.<algorithm>.build` makes it."""

    accept: str
    """The media type to be answered in, over the protocols that carry bodies."""
    bodies: Sequence[Body]
    tensors: Sequence[Mapping[str, Array]]
    """The same requests as inputs of the graph, by name and in the same order."""

    def check_body(self, answer: bytes) -> Array:
        """The numbers of a JSON answer. Raises `ValueError` that says what is wrong with its form."""

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        """The same for the graph's outputs."""


class Neighbours:
    """Notices answers that belong to another request, which form alone does not show.

    A model may be published anew and an endpoint may mix models, so a request can have more than one right answer; but
    an answer that another request is known to get, and this one is not, went astray.
    """

    def __init__(self) -> None:
        self._known: dict[int, list[Array]] = {}

    def check(self, index: int, values: Array) -> None:
        """Raises `ValueError` when the answer to request `index` is another's."""
        own = self._known.setdefault(index, [])
        if any(_same(values, each) for each in own):
            return
        if own:
            for other, answers in self._known.items():
                if other != index and any(_same(values, each) for each in answers):
                    raise ValueError(f"request {index} got the answer of request {other}")
        own.append(values)


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=_CLOSE))


def load_workload(metadata: Mapping[str, Any], images: Path | None) -> Workload:
    """The workload for a model as its metadata describes it.

    Raises:
        Unusable: no load test exists for the algorithm, or its data cannot be read.
    """
    algorithm = str(metadata.get("properties", {}).get("algorithm", ""))
    module = f"loadtests.{algorithm}"
    if not algorithm.isidentifier() or importlib.util.find_spec(module) is None:
        raise Unusable(f"no load test for algorithm '{algorithm}' of model '{metadata.get('name')}'")
    found = importlib.import_module(module)
    if not hasattr(found, "build"):
        raise Unusable(f"no load test for algorithm '{algorithm}' of model '{metadata.get('name')}'")
    workload: Workload = found.build(metadata, images)
    return workload


def fetch_metadata(url: str, endpoint: str) -> dict[str, Any]:
    """What the gateway says about a model or an endpoint (Open Inference Protocol, model metadata).

    Raises:
        Unusable: nobody answers there, or there is no such model.
    """
    address = f"{url.rstrip('/')}/v2/models/{urllib.parse.quote(endpoint, safe='')}"
    if not address.startswith(("http://", "https://")):
        raise Unusable(f"--url {url}: expected http://HOST:PORT or https://HOST:PORT")
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  the scheme was checked
            metadata = json.load(answer)
    except urllib.error.HTTPError as error:
        raise Unusable(f"{address} answers {error.code}: {error.read(500).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise Unusable(f"no gateway at {url}: {getattr(error, 'reason', error)}") from error
    if not isinstance(metadata, dict):
        raise Unusable(f"{address} answers {type(metadata).__name__}; expected an object")
    return metadata
