"""Publishes again and again, each time killed at a later file operation; started by test_publish.py as a script.

Prints one JSON line per publish: the operation that it died at, or `"whole"` for the one that lived.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from model_store.store import Bundle, Store


def publish_until(operation: int, store: Store, bundle: Path) -> None:
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.")):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)  # called before each operation
    store.publish(bundle, name="m")


def main() -> None:
    store, bundle = Store(Path(sys.argv[1])), Path(sys.argv[2])
    first, step = int(sys.argv[3]), int(sys.argv[4])
    for operation in range(first, 2000, step):
        child = os.fork()
        if child == 0:
            publish_until(operation, store, bundle)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        for version in store.versions("m"):
            Bundle.open(store.root / "m" / version).verify()
        left_over = sum(p.name.startswith(".") for p in store.root.iterdir()) if store.root.exists() else 0
        whole = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        print(json.dumps(["whole" if whole else operation, len(store.versions("m")), left_over]))
        if whole:
            return


if __name__ == "__main__":
    main()
