"""Environment, file, precedence, and what a mistake says."""

import os
from pathlib import Path

import pytest

from gateway.settings import PoolSettings, parse_settings, read_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "penstock.toml"
    path.write_text('http_port = 1111\nmax_queue = 7\n[pools.cpu]\ndevice = "cpu"\nworkers = 3\nthreads = 2\n')
    return path


def test_without_anything_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings()

    assert (settings.http_port, settings.grpc_port, settings.admin_host) == (8080, 8081, "127.0.0.1")
    assert settings.max_body_bytes == 26_214_400


def test_the_environment_goes_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HTTP_PORT", "2222")

    settings = read_settings(file)

    assert (settings.http_port, settings.max_queue) == (2222, 7)


def test_the_command_line_goes_before_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HTTP_PORT", "2222")

    assert read_settings(file, http_port=3333, store=None).http_port == 3333


def test_two_underscores_reach_into_a_pool(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_POOLS__CPU__WORKERS", "5")

    pool = read_settings(file).pools["cpu"]

    assert (pool.workers, pool.threads) == (5, 2)


BOUND = '[pools.cpu]\ndevice = "cpu"\ncpus = [0]\nworkers = 0\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("http_prot = 1", "http_prot"),
        ("http_port = 70000", "http_port"),
        ("max_held_bytes = 1000", "max_held_bytes must be at least max_body_bytes, 26214400, got 1000"),
        ('request_timeout_unit = "us"', "request_timeout_unit"),
        ('[pools.cpu]\ndevice = "tpu"', "pools.cpu.device"),
        ('[pools.cpu]\ndevice = "cpu"\nworkrs = 1', "pools.cpu.workrs"),
        ('[pools.cpu]\ndevice = "cpu"\ncpus = [100000]', r"cpus: \[100000\] are not among"),
        (
            '[pools.cpu]\ndevice = "cpu"\ncpus = [0]\nbackend = "torchserve"\nmanaged = true',
            "cpus binds what backend 'embedded' runs",
        ),
        (BOUND + '[pools.free]\ndevice = "cpu"\nworkers = 1', "pools.cpu.cpus binds .*'free' needs cpus of its own"),
        (BOUND + '[pools.free]\ndevice = "cpu"\nworkers = 0', "pool 'free' needs the same cpus and threads"),
        ('[placement]\ntensor = ["moon"]', "placement.tensor.0"),
        ("[endpoints.x]\nvariants = []", "endpoints.x.variants"),
        ('[endpoints.x]\nvariants = [{model = "m", weight = -1}]', "endpoints.x.variants.0.weight"),
    ],
)
def test_a_mistake_names_its_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(text)

    with pytest.raises(ValueError, match=named):
        read_settings(path)


def test_a_mistake_in_the_environment_names_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_MAX_QUEUE", "many")

    with pytest.raises(ValueError, match="max_queue"):
        read_settings()


def test_several_processes_share_the_cores_unless_workers_are_stated(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setenv("PENSTOCK_POOLS__FREE__DEVICE", "cpu")

    settings = read_settings(file, processes=3)

    assert (settings.pools["cpu"].workers, settings.pools["free"].workers) == (3, 7 // 3)
    assert read_settings(file, processes=9).pools["free"].workers == 1


@pytest.mark.parametrize(
    ("workers", "threads", "expected"),
    [
        (1, 1, [[{0}], [{1}], [{2}], [{3}]]),
        (2, 1, [[{0}, {1}], [{2}, {3}], [{0}, {1}], [{2}, {3}]]),
        (1, 2, [[{0, 1}], [{2, 3}], [{0, 1}], [{2, 3}]]),
        (3, 1, [[{0}, {1}, {2}], [{3}, {0}, {1}], [{2}, {3}, {0}], [{1}, {2}, {3}]]),
        (0, 2, [[{0, 1}], [{2, 3}], [{0, 1}], [{2, 3}]]),
    ],
)
def test_processors_go_round_by_workers_and_processes(
    workers: int, threads: int, expected: list[list[set[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    pool = PoolSettings(device="cpu", workers=workers, threads=threads, cpus=[0, 1, 2, 3])

    processes = [pool.of_process(index) for index in range(4)]

    assert [[each.cpus_of(worker) for worker in range(max(workers, 1))] for each in processes] == expected


def test_settings_told_to_a_process_are_complete(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(file, processes=3)
    monkeypatch.setenv("PENSTOCK_HTTP_PORT", "2222")
    monkeypatch.setenv("PENSTOCK_POOLS__MORE__DEVICE", "cpu")

    assert parse_settings(settings.model_dump_json()).model_dump() == settings.model_dump()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        read_settings(tmp_path / "nothing.toml")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("= 1")

    with pytest.raises(ValueError, match="is not TOML"):
        read_settings(tmp_path / "broken.toml")


def test_the_number_of_workers_may_come_from_the_original_containers_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER_WORKERS", "5")

    assert PoolSettings(device="cpu").workers == 5
    assert PoolSettings(device="cpu", workers=2).workers == 2


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "9" * 30])
def test_a_number_of_workers_that_is_none_names_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MODEL_SERVER_WORKERS", value)

    with pytest.raises(ValueError, match=f"MODEL_SERVER_WORKERS must be a whole number .*{value}"):
        PoolSettings(device="cpu")
