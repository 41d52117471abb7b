"""Spelling to pronunciation on CMUdict: letters in, phones out, words counted.

    python -m examples.cmudict FOLDER OUTPUT [--seed N] [--set NAME=VALUE ...]

FOLDER holds `cmudict.dev.dict.gz`. Stress digits are removed. A word's part follows from the first byte of its md5:
0x0d to 0x19 is the test set, 0x1a to 0x1c chooses the model, the rest trains, with a word's first pronunciation. A word
is right when the answer is any of its pronunciations. OUTPUT is as of `examples.multi30k`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from examples.sentence_channels import write_channels
from examples.translation import run_recipe, translate

__all__ = ["RECIPE", "error_rates", "main", "read_words"]

RECIPE: dict[str, object] = {
    "rnn_num_hidden": 384,
    "num_embed_source": 64,
    "num_embed_target": 64,
    "num_layers_encoder": 2,
    "rnn_attention_type": "bilinear",
    "embed_dropout_source": 0.15,
    "embed_dropout_target": 0.15,
    "rnn_decoder_hidden_dropout": 0.4,
    "label_smoothing": 0.1,
    "batch_size": 64,
    "bucket_width": 4,
    "learning_rate": 0.001,
    "learning_rate_warmup_num_batches": 400,
    "cooldown": 0.6,
    "max_num_epochs": 16,
    "max_seq_len_source": 30,
    "max_seq_len_target": 30,
    "checkpoint_frequency_num_batches": 1752,
    "optimized_metric": "accuracy",
    "precision_dtype": "bfloat16",
}
_TEST, _VALIDATION = range(0x0D, 0x1A), range(0x1A, 0x1D)
_ENTRY = re.compile(r"^(\S+?)(?:\(\d+\))? (.*?)(?: #.*)?$")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values")
    asked = parser.parse_args(arguments)
    parts = read_words(asked.folder / "cmudict.dev.dict.gz")
    data = asked.output / "data"
    train, validation = (_write_text(parts, part, data / "texts") for part in ("train", "validation"))
    channels = write_channels(data, train, validation)
    values = RECIPE | {"seed": asked.seed} | dict(each.split("=", 1) for each in asked.values)

    def score(bundle: Path) -> dict[str, Any]:
        words = parts["test"]
        answers = translate(bundle, [" ".join(word) for word in words])
        return error_rates(dict(zip(words, answers, strict=True)), words)

    result = run_recipe(asked.output, "-".join(["cpu", str(asked.seed), *asked.values]), channels, values, score)
    print(json.dumps(result) if result else "stopped; the same command goes on")
    return 0 if result else 1


def read_words(file: Path) -> dict[str, dict[str, list[str]]]:
    """The pronunciations of each word, by part."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}, "test": {}}
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        for line in stream:
            entry = _ENTRY.match(line.strip())
            if entry is None:
                continue
            word, phones = entry[1], re.sub(r"\d", "", entry[2])
            first = hashlib.md5(word.encode(), usedforsecurity=False).digest()[0]
            part = "test" if first in _TEST else "validation" if first in _VALIDATION else "train"
            known = parts[part].setdefault(word, [])
            if phones not in known:
                known.append(phones)
    return parts


def error_rates(answers: dict[str, str], words: dict[str, list[str]]) -> dict[str, float]:
    """Shares in percent: of words that are wrong, and of phones, by edits to the nearest pronunciation."""
    wrong = edits = phones = 0
    for word, answer in answers.items():
        best = min(words[word], key=lambda known: _edits(answer.split(), known.split()))
        wrong += answer not in words[word]
        edits += _edits(answer.split(), best.split())
        phones += len(best.split())
    return {
        "test_wer": round(100 * wrong / len(answers), 2),
        "test_per": round(100 * edits / phones, 2),
        "num_words": len(answers),
    }


def _edits(first: list[str], second: list[str]) -> int:
    """Insertions, deletions and replacements from one to the other (Levenshtein 1966)."""
    row = np.arange(len(second) + 1)
    for number, phone in enumerate(first, 1):
        replaced = row[:-1] + np.array([phone != other for other in second], dtype=int)
        following = np.concatenate([[number], np.minimum(replaced, row[1:] + 1)])
        # an insertion costs one more than the place before
        places = np.arange(len(following))
        row = np.minimum.accumulate(following - places) + places
    return int(row[-1])


def _write_text(parts: dict[str, dict[str, list[str]]], part: str, directory: Path) -> tuple[Path, Path]:
    """The words of a part, letters apart, and each one's first pronunciation."""
    directory.mkdir(parents=True, exist_ok=True)
    source, target = directory / f"{part}.src", directory / f"{part}.trg"
    source.write_text("".join(" ".join(word) + "\n" for word in parts[part]))
    target.write_text("".join(known[0] + "\n" for known in parts[part].values()))
    return source, target


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
