"""Object2Vec beside what it is to outrun, in turns, in one process.

    python -m examples.object2vec_speed epochs DATA [--rounds 3] [--threads 1]
    python -m examples.object2vec_speed rows [--rounds 3] [--rows 1000000] [--threads 1]
    python -m examples.object2vec_speed handler [--rounds 200] [--threads 1]

`epochs`: an epoch of MovieLens with the settings of `examples.movielens`, beside a plain PyTorch loop of the same
network with dense gradients (`nn.Embedding`, `torch.optim.Adam`, batches of a permutation; once as torch makes it by
default, once fused). `rows`: 40 batches with a table of many rows, dense beside row_sparse. `handler`: a request beside
its bare graph. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from examples.movielens import RATING, prepare
from exporters.export import export
from formats.envelope import Prediction
from handlers.algorithms import load_handler
from handlers.graph import Runtime, load_graph
from model_store.store import Bundle
from trainers.checkpoints import save
from trainers.distributed import ALONE
from trainers.hyperparameter_schema import parse
from trainers.job import Job
from trainers.object2vec.data import Pairs, Tokens, read_channel
from trainers.object2vec.hyperparameters import Hyperparameters
from trainers.object2vec.model import Network, Sizes
from trainers.object2vec.train import Learner

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="what", required=True)
    for name, rounds in (("epochs", 3), ("rows", 3), ("handler", 200)):
        step = steps.add_parser(name)
        step.add_argument("--rounds", type=int, default=rounds)
        step.add_argument("--threads", type=int, default=1)
        if name == "epochs":
            step.add_argument("data", type=Path)
        if name == "rows":
            step.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as directory:
        if asked.what == "epochs":
            compare_epochs(asked.data, Path(directory), asked.rounds)
        elif asked.what == "rows":
            compare_rows(asked.rows, Path(directory), asked.rounds)
        else:
            compare_handler(Path(directory), asked.rounds, asked.threads)
    return 0


def in_turns(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def job_of(directory: Path, **channels: Path) -> Job:
    return Job(algorithm="object2vec", channels=channels, hyperparameters={}, output=directory, checkpoints=directory)


# ---- epochs ------------------------------------------------------------------------------------------------------


class PlainNetwork(nn.Module):
    """The rating notebook's network as one would write it by hand."""

    def __init__(self, num_users: int, num_films: int, dropout: float) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(num_users, 300), nn.Embedding(num_films, 300)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(1200, 256), nn.Tanh(), nn.Dropout(dropout), nn.Linear(256, 1))

    def forward(self, user_B: Tensor, film_B: Tensor) -> Tensor:
        a_BE, b_BE = self.dropout(self.users(user_B)), self.dropout(self.films(film_B))
        compared = torch.cat([a_BE * b_BE, a_BE, b_BE, (a_BE - b_BE).abs()], dim=1)
        score_B: Tensor = self.mlp(compared).squeeze(1)
        return score_B


def compare_epochs(data: Path, directory: Path, rounds: int) -> None:
    channels, films = prepare(data, directory)
    pairs = read_channel(job_of(directory, **channels), "train")
    user_N, film_N = (torch.from_numpy(side.ids.astype(np.int64)) for side in pairs.sides)
    sizes = int(user_N.max()) + 1, len(films)
    settings = RATING | {"enc0_vocab_size": sizes[0], "enc1_vocab_size": sizes[1]}
    wanted = parse(Hyperparameters, settings)
    learner = Learner(wanted, pairs, None, ALONE, job_of(directory))
    label_N = torch.from_numpy(pairs.labels.copy())
    plain = {
        name: plain_epoch(PlainNetwork(*sizes, wanted.dropout), wanted, (user_N, film_N, label_N), fused=fused)
        for name, fused in (("plain, Adam", None), ("plain, fused Adam", True))
    }
    steps = {"row_sparse": lambda: learner.train_epoch(0, lambda *_: None)} | plain
    medians = in_turns(steps, rounds)
    print(f"{len(pairs)} pairs, batches of {wanted.mini_batch_size}:", _seconds(medians))
    for name in plain:
        print(f"  row_sparse takes {medians['row_sparse'] / medians[name]:.2f} of {name}")


def plain_epoch(
    network: PlainNetwork, wanted: Hyperparameters, data: tuple[Tensor, Tensor, Tensor], *, fused: bool | None
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=wanted.learning_rate, fused=fused)
    user_N, film_N, label_N = data

    def run() -> None:
        network.train()
        for some in torch.split(torch.randperm(len(label_N)), wanted.mini_batch_size):
            loss = nn.functional.mse_loss(network(user_N[some], film_N[some]), label_N[some])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


# ---- rows --------------------------------------------------------------------------------------------------------

_BATCH, _NUM_BATCHES = 512, 40


def compare_rows(num_rows: int, directory: Path, rounds: int) -> None:
    random = np.random.default_rng(0)
    count = _BATCH * _NUM_BATCHES

    def side() -> Tokens:
        return Tokens(random.integers(0, num_rows, count * 10).astype(np.int32), np.arange(0, count * 10 + 1, 10))

    pairs = Pairs((side(), side()), random.integers(0, 2, count).astype(np.float32), [("made", count)])
    losses: dict[str, list[float]] = {"dense": [], "row_sparse": []}
    steps: dict[str, Callable[[], object]] = {}
    for kind, found in losses.items():
        values = {
            "enc0_network": "pooled_embedding", "enc0_max_seq_len": 10, "enc0_vocab_size": num_rows,
            "enc0_token_embedding_dim": 32, "tied_token_embedding_weight": True, "mlp_layers": 1, "mlp_dim": 64,
            "mini_batch_size": _BATCH, "token_embedding_storage_type": kind,
        }  # fmt: skip
        learner = Learner(parse(Hyperparameters, values), pairs, None, ALONE, job_of(directory))

        def epoch(learner: Learner = learner, found: list[float] = found) -> None:
            found.append(learner.train_epoch(len(found), lambda *_: None)["cross_entropy"])

        steps[kind] = epoch
    medians = in_turns(steps, rounds)
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    print(f"{num_rows} rows, {_NUM_BATCHES} batches of {_BATCH} pairs:", _seconds(medians))
    print(f"  row_sparse is {medians['dense'] / medians['row_sparse']:.1f} times as fast; losses differ by {apart:.1e}")


# ---- handler -----------------------------------------------------------------------------------------------------


def compare_handler(directory: Path, rounds: int, threads: int) -> None:
    for network, length in (("pooled_embedding", 1), ("bilstm", 20), ("hcnn", 20)):
        handler_speed(directory / network, network, length, rounds, threads)


def handler_speed(directory: Path, network: str, length: int, rounds: int, threads: int) -> None:
    values = {
        "enc0_network": network, "enc0_max_seq_len": length, "enc0_vocab_size": 10_000, "enc_dim": 512,
        "tied_encoder_weight": True, "mlp_dim": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    made = Network(Sizes.of(parse(Hyperparameters, values)))
    save(directory / "model" / "model.pt", made.state_dict())
    description = {"algorithm": "object2vec", "hyperparameters": values, "epoch": 0, "metrics": {}}
    (directory / "model" / "model.json").write_text(json.dumps(description))
    bundle = Bundle.open(export(directory / "model", directory / "bundle"))
    runtime = Runtime(threads=threads)
    handler = load_handler(bundle, runtime)
    graph = load_graph(bundle.path, bundle.manifest.graphs["pair"], runtime)
    random = np.random.default_rng(0)
    for count in (1, 64):
        ids = {f"in{side}": random.integers(0, 10_000, (count, length)) for side in (0, 1)}
        rows = [{name: value[row].tolist() for name, value in ids.items()} for row in range(count)]
        prediction = Prediction("speed", "1", json.dumps({"instances": rows}).encode(), "application/json")

        def ask(prediction: Prediction = prediction) -> object:
            return handler.predict([prediction])

        def bare(ids: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = ids) -> object:
            return graph.run(ids)

        medians = in_turns({"handler": ask, "graph": bare}, rounds)
        above = medians["handler"] / medians["graph"]
        print(f"{network}, {count} pairs of {length} tokens a side:", _seconds(medians), f"handler / graph {above:.2f}")


def _seconds(medians: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value * 1e3:.3g} ms" for name, value in medians.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
