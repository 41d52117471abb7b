"""Publishing is atomic: against kill -9 at any file operation, and against others who publish at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_store.store import Store, VersionExists
from tests.model_store.bundles import write_plain_bundle

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_plain_bundle(tmp_path / "bundle")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def hidden(store: Store) -> list[str]:
    return sorted(p.name for p in store.root.iterdir() if p.name.startswith("."))


def test_a_publish_killed_at_any_file_operation_leaves_no_half_version(store: Store, bundle: Path) -> None:
    """The script verifies every visible version after each kill, and fails when one is not whole."""
    script = "import runpy; runpy.run_module('tests.model_store.publish_and_die', run_name='__main__')"
    command = [sys.executable, "-c", script, str(store.root), str(bundle), "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=_ROOT, check=False)

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    died = [line for line in lines if line[0] != "whole"]
    assert len(died) > 50  # it did die at many points
    assert {0, 1} <= {versions for _, versions, _ in died}  # before the version was there, and after
    assert any(left_over for _, _, left_over in died)
    assert lines[-1] == ["whole", lines[-1][1], 0]  # and swept what the others have left
    assert hidden(store) == []


def test_leftovers_are_invisible_and_the_next_publish_removes_them(store: Store, bundle: Path) -> None:
    for left_over in (".staging-0123456789abcdef", ".staging-1", ".swept-2"):
        write_plain_bundle(store.root / left_over)
    assert (store.names(), store.unreadable()) == ([], [])

    store.publish(bundle, name="m")

    assert hidden(store) == []


def test_a_publish_that_fails_leaves_nothing(store: Store, bundle: Path) -> None:
    def fail(staged: Path) -> None:
        (staged / "half.mar").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.publish(bundle, name="m", archive=fail)

    assert list(store.root.iterdir()) == []


def test_sweeping_spares_a_publish_that_is_running(store: Store, bundle: Path) -> None:
    staged, may_go_on = threading.Event(), threading.Event()

    def pause(directory: Path) -> None:
        staged.set()
        assert may_go_on.wait(20)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(store.publish, bundle, name="slow", archive=pause)
        assert staged.wait(20)
        assert len(hidden(store)) == 1
        store.publish(bundle, name="quick")  # sweeps
        may_go_on.set()
        slow.result(20).verify()

    assert store.names() == ["quick", "slow"]
    assert hidden(store) == []


def test_a_publish_whose_directory_is_swept_fails_whole(store: Store, bundle: Path) -> None:
    """Locks may not reach other machines; then the sweep must still never make half a version."""

    def sweep(directory: Path) -> None:
        directory.rename(store.root / ".swept-by-another-machine")

    with pytest.raises(FileNotFoundError):
        store.publish(bundle, name="m", archive=sweep)

    assert store.versions("m") == []


def at_once(count: int, publish: Callable[[int], str]) -> list[str]:
    """Run them all from the same moment on; the answers sorted."""
    barrier = threading.Barrier(count)

    def start(index: int) -> str:
        barrier.wait(20)
        return publish(index)

    with ThreadPoolExecutor(count) as pool:
        return sorted(pool.map(start, range(count)))


def test_publishes_at_the_same_time_get_different_versions(store: Store, bundle: Path) -> None:
    versions = at_once(12, lambda _: store.publish(bundle, name="m").manifest.version)

    assert versions == sorted(map(str, range(1, 13)))
    for version in versions:
        store.open("m", version).verify()
    assert hidden(store) == []


def test_of_publishes_of_one_version_exactly_one_wins(store: Store, tmp_path: Path) -> None:
    bundles = [write_plain_bundle(tmp_path / f"bundle{index}", tag=f"by {index}") for index in range(8)]

    def publish(index: int) -> str:
        try:
            store.publish(bundles[index], name="m", version="1")
        except VersionExists:
            return "lost"
        return f"by {index}"

    *lost, won = sorted(at_once(8, publish), key=lambda result: result != "lost")

    assert lost == ["lost"] * 7
    assert (store.open("m", "1").path / "labels.txt").read_text().endswith(won)
    store.open("m", "1").verify()


def test_processes_that_publish_at_the_same_time_get_different_versions(store: Store, bundle: Path) -> None:
    text = f"from model_store.store import *; Store(Path({str(store.root)!r})).publish(Path({str(bundle)!r}), name='m')"
    command = [sys.executable, "-c", f"from pathlib import Path; {text}"]
    processes = [subprocess.Popen(command, cwd=_ROOT) for _ in range(4)]

    assert [process.wait(60) for process in processes] == [0] * 4
    assert store.versions("m") == ["1", "2", "3", "4"]
