"""BlazingText beside fastText and gensim: same text, same hyperparameters, same cores, in turns.

    python -m examples.blazingtext_speed --work WORK --peers PEERS/bin/python --pieces 5

PEERS is an environment with `fasttext` and `gensim`; data are read from PENSTOCK_DATA. Each piece is one training by one
system with one seed; its result is a line of WORK/results.jsonl, and pieces that have one are left out, so that long
comparisons can be made in short sessions. `--table` prints what there is.
"""

# ruff: noqa: E501, SIM115  a script of one session

from __future__ import annotations

import argparse
import glob
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

SETS = {"reuters-r8": (25, 0.5), "mr-polarity": (10, 0.2), "trec-questions": (50, 0.5), "made-120k": (5, 0.25)}
VECTORS = {"skipgram": ("penstock", "fasttext", "gensim"), "cbow": ("penstock", "fasttext", "gensim"),
           "batch_skipgram": ("penstock",)}  # fmt: skip
SEEDS = (1, 2, 3)
NUM_MADE = 120_000


def pieces() -> Iterator[dict[str, Any]]:
    """Systems take turns, so that a slow minute of the machine meets all of them."""
    for seed in SEEDS:
        for data, (epochs, rate) in SETS.items():
            for system in ("penstock", "fasttext"):
                yield {
                    "system": system,
                    "data": data,
                    "mode": "supervised",
                    "epochs": epochs,
                    "rate": rate,
                    "seed": seed,
                }
        for mode, systems in VECTORS.items():
            for system in systems:
                yield {
                    "system": system,
                    "data": "english-novels",
                    "mode": mode,
                    "epochs": 5,
                    "rate": 0.05,
                    "seed": seed,
                }


def write_text(data: str, root: Path, target: Path) -> None:
    """`train` and `test`, or `train` alone, as fastText reads them."""
    target.mkdir(parents=True, exist_ok=True)
    if data == "english-novels":
        with (target / "train").open("w") as file:
            for name in sorted(glob.glob(str(root / data / "*.gz"))):
                text = " ".join(gzip.open(name, "rt", encoding="utf-8-sig").read().lower().split())
                sentences = (re.findall("[a-z]+", part) for part in re.split(r"(?<=[.!?])", text))
                file.writelines(" ".join(words) + "\n" for words in sentences if len(words) > 1)
        return
    for part in ("train", "test"):
        rows = made_rows(part) if data == "made-120k" else labelled_rows(data, part, root / data)
        (target / part).write_text("".join(f"__label__{k} {' '.join(text.split())}\n" for k, text in rows))


def labelled_rows(data: str, part: str, root: Path) -> Iterator[tuple[str, str]]:
    def lines(name: str) -> list[str]:
        return [line for line in gzip.open(root / name, "rt", encoding="latin-1").read().split("\n") if line.strip()]

    if data == "mr-polarity":
        yield from zip(lines(f"label_{part}.txt.gz"), lines(f"text_{part}.txt.gz"), strict=True)
        return
    name, separator = (f"{part}.txt.gz", "\t") if data == "reuters-r8" else (f"TREC.{part}.all.gz", " ")
    for line in lines(name):
        label, _, text = line.partition(separator)
        yield label, text


def made_rows(part: str) -> Iterator[tuple[str, str]]:
    """120,000 lines (test: 7,600) of about 40 words of 95,000 by Zipf's law; a third of them depend on the class."""
    import numpy as np  # noqa: PLC0415

    random = np.random.default_rng(0 if part == "train" else 1)
    chances = 1 / np.arange(1, 95_001)
    sums = np.cumsum(chances / chances.sum())
    turned = [np.random.default_rng(10 + k).permutation(95_000) for k in range(4)]
    for _ in range(NUM_MADE if part == "train" else 7_600):
        label = int(random.integers(4))
        words = np.searchsorted(sums, random.random(int(random.integers(20, 61)))).clip(max=94_999)
        topical = random.random(len(words)) < 1 / 3
        words[topical] = turned[label][words[topical]]
        yield str(label), " ".join(f"w{word}" for word in words)


# ---- one training, in a process of its own -----------------------------------------------------------------------


def train_penstock(piece: dict[str, Any], text: Path, output: Path) -> float:
    from trainers.run import train  # noqa: PLC0415

    supervised = piece["mode"] == "supervised"
    channels = {}
    for name in ("train",):
        channels[name] = output / name
        channels[name].mkdir(parents=True)
        (channels[name] / "text").symlink_to(text / name)
    values = {"mode": piece["mode"], "epochs": piece["epochs"], "learning_rate": piece["rate"], "seed": piece["seed"],
              "min_count": 1 if supervised else 5, "evaluation": False}  # fmt: skip
    began = time.perf_counter()
    train("blazingtext", channels, values, output)
    return time.perf_counter() - began


def train_fasttext(piece: dict[str, Any], text: Path, output: Path) -> float:
    import fasttext  # noqa: PLC0415

    output.mkdir(parents=True, exist_ok=True)
    shared = {"dim": 100, "epoch": piece["epochs"], "lr": piece["rate"], "thread": 2, "verbose": 0}
    began = time.perf_counter()
    if piece["mode"] == "supervised":
        model = fasttext.train_supervised(str(text / "train"), wordNgrams=2, minCount=1, seed=piece["seed"], **shared)
    else:
        model = fasttext.train_unsupervised(str(text / "train"), model=piece["mode"], minCount=5, maxn=0, **shared)
    trained = time.perf_counter()
    model.save_model(str(output / "model.bin"))
    saved = time.perf_counter()
    (output / "saved.json").write_text(json.dumps({"training_s": trained - began}))
    return saved - began


def train_gensim(piece: dict[str, Any], text: Path, output: Path) -> float:
    from gensim.models import Word2Vec  # noqa: PLC0415

    output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    model = Word2Vec(corpus_file=str(text / "train"), vector_size=100, window=5, min_count=5, negative=5, sample=1e-4,
                     alpha=piece["rate"], min_alpha=0.0001, epochs=piece["epochs"], workers=2, seed=piece["seed"],
                     sg=int(piece["mode"] == "skipgram"))  # fmt: skip
    trained = time.perf_counter()
    model.wv.save_word2vec_format(str(output / "vectors.txt"))
    saved = time.perf_counter()
    (output / "saved.json").write_text(json.dumps({"training_s": trained - began}))
    return saved - began


def score(piece: dict[str, Any], text: Path, output: Path, root: Path) -> dict[str, float]:
    """By one program for all systems: fastText's own for classifiers, this file's for vectors."""
    if piece["mode"] == "supervised":
        import fasttext  # noqa: PLC0415

        path = output / "model" / "model.bin" if piece["system"] == "penstock" else output / "model.bin"
        return {"accuracy": fasttext.load_model(str(path)).test(str(text / "test"))[1]}
    return score_vectors(*read_vectors(piece, output), root / "word-eval")


def read_vectors(piece: dict[str, Any], output: Path) -> tuple[list[str], Any]:
    import numpy as np  # noqa: PLC0415

    if piece["system"] == "fasttext":
        import fasttext  # noqa: PLC0415

        model = fasttext.load_model(str(output / "model.bin"))
        words = [str(word) for word in model.get_words()]
        return words, np.stack([model.get_word_vector(word) for word in words])
    path = output / "model" / "vectors.txt" if piece["system"] == "penstock" else output / "vectors.txt"
    with path.open(encoding="utf-8") as file:
        next(file)
        rows = [line.rstrip().split(" ") for line in file]
    return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)


def score_vectors(words: list[str], vectors: Any, root: Path) -> dict[str, float]:
    import numpy as np  # noqa: PLC0415
    from scipy.stats import spearmanr  # noqa: PLC0415

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    rows = {word: number for number, word in enumerate(words)}
    figures = {}
    for name in ("EN-WS-353-ALL", "EN-MEN-TR-3k", "EN-RW-STANFORD"):
        lines = (line.lower().split()[:3] for line in (root / f"{name}.txt").read_text().splitlines())
        known = [(float(c), float(unit[rows[a]] @ unit[rows[b]])) for a, b, c in lines if a in rows and b in rows]
        figures[name] = float(spearmanr(*zip(*known, strict=True))[0])
    questions = [line.lower().split() for line in (root / "questions-words.txt").read_text().splitlines()]
    asked = np.array([[rows[w] for w in q] for q in questions if len(q) == 4 and all(w in rows for w in q)])
    right = 0
    for at in range(0, len(asked), 500):
        a, b, c, d = asked[at : at + 500].T
        likeness = (unit[b] - unit[a] + unit[c]) @ unit.T
        for each in (a, b, c):
            likeness[np.arange(len(each)), each] = -9
        right += int((likeness.argmax(axis=1) == d).sum())
    return figures | {"analogies": right / len(asked)}


# ---- in turns ----------------------------------------------------------------------------------------------------


def run_piece(piece: dict[str, Any], work: Path, peers: Path, root: Path) -> dict[str, Any]:
    text, output = work / piece["data"], work / "output"
    if not (text / "train").exists():
        write_text(piece["data"], root, text)
    shutil.rmtree(output, ignore_errors=True)
    python = sys.executable if piece["system"] == "penstock" else str(peers)
    for step, program in (("train", python), ("score", str(peers))):
        command = [program, __file__, "--step", step, "--piece", json.dumps(piece), "--work", str(work)]
        done = subprocess.run(command, check=True, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PENSTOCK_DATA": str(root.parent)})  # fmt: skip
        piece = piece | json.loads(done.stdout.splitlines()[-1])
    return piece


def step_train(piece: dict[str, Any], text: Path, output: Path) -> dict[str, float]:
    wall = {"penstock": train_penstock, "fasttext": train_fasttext, "gensim": train_gensim}[piece["system"]](
        piece, text, output
    )
    if piece["system"] == "penstock":
        timing = json.loads((output / "model" / "model.json").read_text())["metrics"]["reading_and_training_s"]
    else:
        timing = json.loads((output / "saved.json").read_text())["training_s"]
    return {"with_saving_s": round(wall, 3), "training_s": round(timing, 3)}


def print_table(results: list[dict[str, Any]]) -> None:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["data"], result["mode"], result["system"]), []).append(result)
    known = {"system", "data", "mode", "epochs", "rate", "seed"}
    for key in sorted(groups):
        figures = [name for name in groups[key][0] if name not in known]
        cells = [f"{n} {mean(r[n] for r in groups[key]):.4g} ({min(r[n] for r in groups[key]):.4g} to "
                 f"{max(r[n] for r in groups[key]):.4g})" for n in figures]  # fmt: skip
        print(f"| {' | '.join(key)} | {len(groups[key])} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", type=Path, default=Path(sys.executable))
    parser.add_argument("--pieces", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--step", choices=("train", "score"))
    parser.add_argument("--piece", type=json.loads)
    given = parser.parse_args()
    root = Path(os.environ.get("PENSTOCK_DATA", "../shared/data")).resolve() / "blazingtext"
    if given.step:
        text, output = given.work / given.piece["data"], given.work / "output"
        step = (
            step_train(given.piece, text, output) if given.step == "train" else score(given.piece, text, output, root)
        )
        print(json.dumps(step))
        return
    log = given.work / "results.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if given.table:
        print_table(results)
        return
    left = [p for p in pieces() if not any(p.items() <= result.items() for result in results)]
    for piece in left[: given.pieces]:
        result = run_piece(piece, given.work, given.peers, root)
        with log.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
