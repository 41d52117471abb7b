"""The comparison of threads, spinning and binding: it runs, and binds as the gateway does."""

from __future__ import annotations

import os

import pytest

from gateway.settings import PoolSettings
from loadtests.bench_threads import _CASES, main


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes")
def test_workers_are_bound_as_the_gateway_binds_them() -> None:
    there = sorted(os.sched_getaffinity(0))

    for case in _CASES:
        pool = PoolSettings(device="cpu", threads=case.threads, workers=2, cpus=there)
        expected = [pool.cpus_of(worker) if case.bound else set() for worker in range(2)]
        assert [set(case.cpus(worker)) for worker in range(2)] == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes")
def test_each_case_is_a_row_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "mlp", "--rounds", "1", "--seconds", "0.05"]) == 0

    _, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split("|")[1].strip() for row in rows] == [str(case) for case in _CASES]
    assert all(float(cell) > 0 for row in rows for cell in row.split("|")[2:-1])
