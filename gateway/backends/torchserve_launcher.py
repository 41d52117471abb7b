"""TorchServe's launcher, bound to the life of the gateway: `python -m gateway.backends.torchserve_launcher ARGUMENTS`.

The launcher and the JVM do not end with whoever started them. Here the end of standard input, which the gateway holds,
is the order to stop, so a gateway that is killed leaves nothing behind. Imports nothing but the standard library.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading

__all__ = ["main"]


def main() -> None:
    """Run TorchServe in the foreground until it ends, or until standard input does."""
    # A handler, not SIG_IGN: the JVM would inherit that and never stop.
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("ts.model_server", run_name="__main__")


def _end_with_parent() -> None:
    # not sys.stdin: its lock, held by a waiting thread, aborts the interpreter at exit
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)  # whoever waited for answers is gone


if __name__ == "__main__":
    main()
