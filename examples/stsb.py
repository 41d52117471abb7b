"""STS benchmark: how alike two sentences are, 0 to 5, by one encoder for both, and how that goes with the truth.

    python -m examples.stsb OUTPUT [--network hcnn|bilstm|pooled_embedding] [--words random|frozen|tuned]
                                   [--watch part|dev] [--seed N] [--set NAME=VALUE ...]

Data are read from PENSTOCK_DATA, or else ../shared/data. Every tenth pair of the training part is held out to choose
the epoch and the recipe by, and `dev` is scored once, at the end; with `--watch dev` the epoch is chosen by `dev`, and
metrics.jsonl of the run is its course. The words' embeddings are random, or those of a BlazingText run on the texts at
hand (made once in OUTPUT/words), left as they are (frozen) or trained on (tuned). A line for each finished run is added
to OUTPUT/results.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from formats.token_pairs import TokenPair, write
from trainers.run import train

__all__ = ["SETTINGS", "main", "read_vectors_vocabulary", "words_of", "write_channels"]

ROOT = Path(os.environ.get("PENSTOCK_DATA", "../shared/data"))
_DIM = 100
_WORDS = {"mode": "skipgram", "vector_dim": _DIM, "epochs": 5, "min_count": 5, "window_size": 5, "negative_samples": 5}
SETTINGS: dict[str, object] = {
    "enc0_max_seq_len": 60, "enc0_vocab_size": "auto", "enc0_token_embedding_dim": _DIM, "enc_dim": 512,
    "tied_encoder_weight": True, "comparator_list": "hadamard, abs_diff", "mlp_layers": 1, "mlp_dim": 128,
    "mlp_activation": "tanh", "output_layer": "mean_squared_error", "optimizer": "adam", "learning_rate": 0.001,
    "mini_batch_size": 32, "bucket_width": 5, "epochs": 12, "dropout": 0.2, "early_stopping_patience": 3,
    "early_stopping_tolerance": 0.001,
}  # fmt: skip
_OF_NETWORK: dict[str, dict[str, object]] = {"hcnn": {"enc0_layers": 2}, "bilstm": {}, "pooled_embedding": {}}


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--network", choices=tuple(_OF_NETWORK), default="bilstm")
    parser.add_argument("--words", choices=("random", "frozen", "tuned"), default="tuned")
    parser.add_argument("--watch", choices=("part", "dev"), default="part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changed")
    asked = parser.parse_args(arguments)
    channels = asked.output / f"{asked.words}-{asked.watch}"
    settings = SETTINGS | _OF_NETWORK[asked.network] | {"enc0_network": asked.network, "seed": asked.seed}
    if asked.words != "random":
        vectors = train_words(asked.output / "words")
        settings |= {
            "enc0_pretrained_embedding_file": "vectors.txt",
            "enc0_vocab_file": "words.json",
            "enc0_freeze_pretrained_embedding": asked.words == "frozen",
        }
        known = read_vectors_vocabulary(vectors)
    else:
        vectors, known = None, []
    size = write_channels(channels, known, watch_dev=asked.watch == "dev")
    if vectors:
        shutil.copyfile(vectors, channels / "auxiliary" / "vectors.txt")
    settings |= {"enc0_vocab_size": size} | dict(each.split("=", 1) for each in asked.changed)
    name = "-".join([asked.network, asked.words, asked.watch, str(asked.seed), *asked.changed])
    shutil.rmtree(asked.output / name, ignore_errors=True)
    names = ("train", "validation", "test", "auxiliary")[: 4 if vectors else 3]
    train("object2vec", {each: channels / each for each in names}, settings, asked.output / name)
    scores = json.loads((asked.output / name / "evaluation.json").read_text())
    with (asked.output / "results.jsonl").open("a") as file:
        file.write(json.dumps({"run": name} | scores) + "\n")
    print(json.dumps({"run": name} | scores))
    return 0


# ---- channels ----------------------------------------------------------------------------------------------------


def read_rows(part: str) -> list[tuple[str, str, float]]:
    with gzip.open(ROOT / "object2vec" / "stsb-en" / f"stsb-en-{part}.csv.gz", "rt", encoding="utf-8") as file:
        return [(first, second, float(score)) for first, second, score in csv.reader(file)]


def write_channels(directory: Path, known: list[str], *, watch_dev: bool) -> int:
    """Write `train`, `validation`, `test` and the words' ids; returns how many there are.

    The vocabulary is of the pairs that are trained on, and of `known` words; others are left out of sentences.
    """
    rows = read_rows("train")
    parts = {"train": rows, "validation": read_rows("dev"), "test": read_rows("dev")}
    if not watch_dev:
        parts["train"] = [row for number, row in enumerate(rows) if number % 10 != 9]
        parts["validation"] = rows[9::10]
    ids: dict[str, int] = {}
    for first, second, _ in parts["train"]:
        for word in (*words_of(first), *words_of(second)):
            ids.setdefault(word, len(ids))
    for word in known:
        ids.setdefault(word, len(ids))
    for part, pairs in parts.items():
        (directory / part).mkdir(parents=True, exist_ok=True)
        with (directory / part / "pairs.jsonl").open("wb") as stream:
            write(stream, [TokenPair(_ids(first, ids), _ids(second, ids), score) for first, second, score in pairs])
    (directory / "auxiliary").mkdir(exist_ok=True)
    (directory / "auxiliary" / "words.json").write_text(json.dumps(ids))
    return len(ids)


def _ids(text: str, ids: dict[str, int]) -> list[int]:
    return [ids[word] for word in words_of(text) if word in ids]


# ---- words -------------------------------------------------------------------------------------------------------


def train_words(directory: Path) -> Path:
    """The vectors of a BlazingText run, made where there are none yet."""
    vectors = directory / "run" / "model" / "vectors.txt"
    if not vectors.exists():
        (directory / "train").mkdir(parents=True, exist_ok=True)
        with (directory / "train" / "text").open("w") as file:
            file.writelines(" ".join(words_of(line)) + "\n" for line in texts())
        train("blazingtext", {"train": directory / "train"}, dict(_WORDS), directory / "run")
    return vectors


def texts() -> Iterator[str]:
    """Sentences of STS-B's training part, headlines, captions, reviews, questions and novels; no pair of `dev`."""
    for first, second, _ in read_rows("train"):
        yield from (first, second)
    news = ROOT / "blazingtext" / "ag-news-half" / "test_rows_0001_3800.csv.gz"
    with gzip.open(news, "rt", encoding="utf-8") as file:
        for row in csv.reader(file):
            yield from row[1:]
    plain = ["seq2seq/multi30k-en-de/train.en.gz", "blazingtext/mr-polarity/text_train.txt.gz",
             "blazingtext/reuters-r8/train.txt.gz", "blazingtext/trec-questions/TREC.train.all.gz"]  # fmt: skip
    for name in plain:
        with gzip.open(ROOT / name, "rt", encoding="latin-1") as file:
            yield from file
    for path in sorted((ROOT / "blazingtext" / "english-novels").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8-sig") as file:
            yield from re.split(r"(?<=[.!?])\s", " ".join(file.read().split()))


def read_vectors_vocabulary(vectors: Path) -> list[str]:
    with vectors.open(encoding="utf-8") as file:
        next(file)
        return [line.split(" ", 1)[0] for line in file]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
