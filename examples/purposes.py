"""Pairs for a first run: names of Python's functions and what their docstrings say they do.

    python -m examples.purposes DIR

writes `DIR/train/pairs.jsonl`, right pairs alone; `DIR/validation/pairs.jsonl`, one pair in ten and as many wrong ones;
`DIR/words.json`, the words' ids; and `DIR/withheld.json`, the validation pairs in words. All follows from the Python
that runs it: nothing is downloaded.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from formats.token_pairs import TokenPair, write

__all__ = ["ids_of", "main", "write_purposes"]

_FEWEST_WORDS = 4
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo"}
_LEFT_OUT_WORDS = {"a", "an", "and", "are", "as", "be", "by", "for", "from", "if", "in", "is", "it", "of", "on", "or"}
_LEFT_OUT_WORDS |= {"that", "the", "this", "to", "with"}


def main(arguments: list[str]) -> int:
    print(write_purposes(Path(arguments[0])))
    return 0


def ids_of(words: str, ids: Mapping[str, int]) -> list[int]:
    """Words that the vocabulary lacks are left out."""
    return [ids[word] for word in words.split() if word in ids]


def write_purposes(directory: Path) -> dict[str, int]:
    """Write everything and return how many pairs each channel has."""
    found = sorted(set(_pairs(Path(sysconfig.get_path("stdlib")))))
    # by the sentence, so that one that is there twice is never in both parts
    held_out = [zlib.crc32(purpose.encode()) % 10 == 0 for _, purpose in found]
    trained = [pair for pair, held in zip(found, held_out, strict=True) if not held]
    withheld = [pair for pair, held in zip(found, held_out, strict=True) if held]
    counts = Counter(word for pair in trained for text in pair for word in set(text.split()))
    ids = {word: number for number, word in enumerate(sorted(word for word, count in counts.items() if count > 1))}
    turned = withheld[len(withheld) // 2 :] + withheld[: len(withheld) // 2]
    wrong = [(name, purpose) for (name, _), (_, purpose) in zip(withheld, turned, strict=True)]
    parts = {
        "train": _as_ids(trained, 1.0, ids),
        "validation": [*_as_ids(withheld, 1.0, ids), *_as_ids(wrong, 0.0, ids)],
    }
    for part, pairs in parts.items():
        (directory / part).mkdir(parents=True, exist_ok=True)
        with (directory / part / "pairs.jsonl").open("wb") as stream:
            write(stream, pairs)
    (directory / "words.json").write_text(json.dumps(ids))
    (directory / "withheld.json").write_text(json.dumps(withheld))
    return {part: len(pairs) for part, pairs in parts.items()}


def _as_ids(pairs: Iterable[tuple[str, str]], label: float, ids: Mapping[str, int]) -> list[TokenPair]:
    found = (TokenPair(ids_of(name, ids), ids_of(purpose, ids), label) for name, purpose in pairs)
    return [pair for pair in found if pair.in0 and pair.in1]


def _pairs(library: Path) -> Iterator[tuple[str, str]]:
    """Names and first sentences, both as words in lower case."""
    for file in sorted(library.rglob("*.py")):
        if _LEFT_OUT & set(file.relative_to(library).parts):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                sentence = re.split(r"(?<=[.!?])\s|\n\s*\n", ast.get_docstring(node) or "")[0]
                name = " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", node.name)).lower()
                words = [word for word in re.findall(r"[a-z]+", sentence.lower()) if word not in _LEFT_OUT_WORDS]
                if len(words) >= _FEWEST_WORDS and name:
                    yield name, " ".join(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
