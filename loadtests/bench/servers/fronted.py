"""A server and what stands before it as one process tree; both end with it.

python -m loadtests.bench.servers.fronted FRONT-COMMAND-AS-JSON COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

__all__ = ["main"]

_POLL_S = 0.2


def main(front: str, *behind: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    processes = [subprocess.Popen(command) for command in (behind, json.loads(front))]
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(_POLL_S)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
