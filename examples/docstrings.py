"""Labelled text for a first run: sentences of the docstrings in Python's own library, by the package that they are of.

    python -m examples.docstrings DIR

writes `DIR/train/text` and `DIR/validation/text`, fastText's form, one sentence in five for validation. All follows
from the Python that runs it: nothing is downloaded.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PACKAGES", "main", "write_text"]

PACKAGES = ("asyncio", "email", "http", "logging", "multiprocessing", "unittest", "xml")
_FEWEST_WORDS = 5
_PARTS = {True: "validation", False: "train"}


def main(arguments: list[str]) -> int:
    print(write_text(Path(arguments[0])))
    return 0


def write_text(directory: Path) -> dict[str, int]:
    """Write both parts and return how many sentences each has."""
    lines: dict[str, list[str]] = {name: [] for name in _PARTS.values()}
    for package in PACKAGES:
        # by its own content, so that a sentence that is there twice is never in both parts
        for sentence in sorted(set(_sentences(Path(sysconfig.get_path("stdlib")) / package))):
            part = _PARTS[zlib.crc32(sentence.encode()) % 5 == 0]
            lines[part].append(f"__label__{package} {sentence}\n")
    for part, found in lines.items():
        (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / part / "text").write_text("".join(found))
    return {part: len(found) for part, found in lines.items()}


def _sentences(package: Path) -> Iterator[str]:
    """Words in lower case, of every docstring of a package."""
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for sentence in re.split(r"(?<=[.!?])\s|\n\s*\n", ast.get_docstring(node) or ""):
                words = re.findall(r"[a-z]+", sentence.lower())
                if len(words) >= _FEWEST_WORDS:
                    yield " ".join(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
