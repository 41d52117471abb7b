"""MovieLens latest-small: ratings predicted, likes classified, and every film's nearest neighbours.

Needs scikit-learn (extra `demo`) for the neighbours.

    python -m examples.movielens DATA OUTPUT [--task rating|liking] [--seed 0] [--near TITLE]

OUTPUT gets the channels, the run, and `films.parquet`: id, title, and the embedding that film's encoder gives.

DATA holds `ratings.csv.gz` and `movies.csv.gz`. Rows whose number modulo 10 is 9 are the test set, 8 validation.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from exporters.object2vec import load_network
from formats.token_pairs import TokenPair, write
from trainers.hyperparameter_schema import parse
from trainers.object2vec.hyperparameters import Hyperparameters
from trainers.object2vec.model import SideEncoder
from trainers.run import train

__all__ = ["LIKING", "RATING", "neighbours", "prepare", "read_titles", "write_embeddings"]

_POOLED = {
    "enc0_network": "pooled_embedding", "enc1_network": "pooled_embedding", "enc0_max_seq_len": 1,
    "enc1_max_seq_len": 1, "enc0_vocab_size": "auto", "enc1_vocab_size": "auto", "enc0_token_embedding_dim": 300,
    "enc1_token_embedding_dim": 300, "mlp_layers": 1, "token_embedding_storage_type": "row_sparse",
}  # fmt: skip
RATING = _POOLED | {
    "enc_dim": 1024, "mlp_activation": "tanh", "mlp_dim": 256, "output_layer": "mean_squared_error",
    "optimizer": "adam", "learning_rate": 0.001, "mini_batch_size": 64, "epochs": 20, "dropout": 0.5,
    "early_stopping_tolerance": 0.0001, "early_stopping_patience": 3,
}  # fmt: skip
"""The rating notebook's settings, with rows updated sparsely and dropout."""
LIKING = _POOLED | {
    "enc_dim": 2048, "mlp_activation": "relu", "mlp_dim": 1024, "output_layer": "softmax", "num_classes": 2,
    "optimizer": "adam", "learning_rate": 0.001, "mini_batch_size": 2048, "epochs": 20,
    "early_stopping_tolerance": 0.0001, "early_stopping_patience": 3,
}  # fmt: skip
"""The recommendation notebook's settings."""


def prepare(data: Path, output: Path, *, liking: bool = False) -> tuple[dict[str, Path], list[str]]:
    """Write the channels; returns them, and the films' ids in the source by their number here."""
    users: dict[str, int] = {}
    films: dict[str, int] = {}
    rows: dict[str, list[TokenPair]] = {"train": [], "validation": [], "test": []}
    with gzip.open(data / "ratings.csv.gz", "rt") as file:
        for number, row in enumerate(csv.DictReader(file)):
            user = users.setdefault(row["userId"], len(users))
            film = films.setdefault(row["movieId"], len(films))
            rating = float(row["rating"])
            label = float(rating > 3) if liking else rating
            part = {9: "test", 8: "validation"}.get(number % 10, "train")
            rows[part].append(TokenPair([user], [film], label))
    channels = {}
    for part, pairs in rows.items():
        channels[part] = output / part
        channels[part].mkdir(parents=True, exist_ok=True)
        with (channels[part] / "pairs.jsonl").open("wb") as stream:
            write(stream, pairs)
    return channels, list(films)


def read_titles(data: Path) -> dict[str, str]:
    """The films' titles by their ids in the source."""
    with gzip.open(data / "movies.csv.gz", "rt") as file:
        return {row["movieId"]: row["title"] for row in csv.DictReader(file)}


def write_embeddings(model: Path, films: list[str], titles: dict[str, str], file: Path) -> None:
    """Every film's id in the source, title and embedding, (films, 300) float32, as Parquet."""
    wanted = parse(Hyperparameters, json.loads((model / "model.json").read_text())["hyperparameters"])
    encoder = SideEncoder(load_network(model, wanted), 1).eval()
    with torch.inference_mode():
        found = encoder(torch.arange(len(films))[:, None]).numpy()
    columns = {"film": films, "title": [titles[film] for film in films], "embedding": list(found)}
    parquet.write_table(pa.table(columns), file)


def neighbours(file: Path, title: str, count: int = 5) -> list[tuple[str, float]]:
    """The films nearest to one by cosine distance, nearest first."""
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415  an optional extra

    table = parquet.read_table(file)
    vectors, titles = np.stack(table["embedding"].to_numpy()), table["title"].to_pylist()
    index = NearestNeighbors(metric="cosine").fit(vectors)
    distances, places = index.kneighbors(vectors[[titles.index(title)]], count + 1)
    pairs = zip(places[0].tolist(), distances[0].tolist(), strict=True)
    return [(titles[place], distance) for place, distance in pairs if titles[place] != title][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--task", choices=("rating", "liking"), default="rating")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyperparameters to change")
    parser.add_argument("--near", default="Terminator, The (1984)", help="whose neighbours to tell")
    given = parser.parse_args()
    liking = given.task == "liking"
    channels, films = prepare(given.data, given.output / "channels", liking=liking)
    changes = dict(each.split("=", 1) for each in given.set)
    # a film that only the test set knows has an id too
    sizes = {"enc1_vocab_size": len(films)}
    settings = (LIKING if liking else RATING) | sizes | {"seed": given.seed} | changes
    train("object2vec", channels, settings, given.output / "run")
    scores = json.loads((given.output / "run" / "evaluation.json").read_text())
    if not liking:
        scores["test:RMSE"] = math.sqrt(scores["test:mean_squared_error"])
    print(json.dumps(scores))
    write_embeddings(given.output / "run" / "model", films, read_titles(given.data), given.output / "films.parquet")
    for title, distance in neighbours(given.output / "films.parquet", given.near):
        print(f"{distance:.3f}  {title}")


if __name__ == "__main__":
    main()
