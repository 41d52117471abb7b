"""Coverage-guided fuzzing of one target, with atheris (not a dependency: install it in a Python of its own).

    python tests/fuzz/fuzz.py recordio /tmp/corpus/recordio -max_total_time=600 -rss_limit_mb=2048

The folder receives the seeds and what the fuzzer adds; further arguments are libFuzzer's. For the bulk readers, raise
the limit: atheris itself keeps about 10 KB per run of what NumPy compares (plain Python on the same inputs does not
grow).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["formats"]):
    from tests.fuzz.targets import SEEDS, TARGETS


def main() -> None:
    logging.disable()  # a warning per input would drown the fuzzer's own lines
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]()):
        (folder / f"seed_{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], str(folder), *sys.argv[3:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
