"""The fuzz targets on their seeds, on changed seeds, and on arbitrary bytes; the long runs are `fuzz.py`'s."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def _load(name: str) -> ModuleType:
    # tests are no package, and the fuzzer loads the same file
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


targets = _load("targets")
SEEDS = {name: seeds() for name, seeds in targets.SEEDS.items()}


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes changed, cut short, or spliced with another."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "splice", "remove"])):
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "splice":
                other = draw(st.sampled_from(seeds))
                data[at:at] = other[: draw(st.integers(0, len(other)))]
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
    return bytes(data)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_seeds_are_read(name: str) -> None:
    for seed in SEEDS[name]:
        targets.TARGETS[name](seed)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_damaged_seeds_give_an_answer_or_a_clean_error(name: str) -> None:
    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damaged(SEEDS[name]))
    def check(data: bytes) -> None:
        targets.TARGETS[name](data)

    check()


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_arbitrary_bytes_give_an_answer_or_a_clean_error(name: str) -> None:
    @settings(max_examples=50, deadline=None)
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        targets.TARGETS[name](data)

    check()
