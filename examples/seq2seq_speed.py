"""How fast Seq2seq translates and trains, each way beside the others in turns.

    python -m examples.seq2seq_speed translate BUNDLE SENTENCES [--rounds 3] [--sentences 1000] [--threads 2]
    python -m examples.seq2seq_speed bucketing DATA [--rounds 5] [--batches 40] [--threads 2]

`translate` takes a bundle (with the checkpoint's `model` directory beside it) and a file of tokenised sentences, one a
line, and asks for all of them with the model's own beam: through a gateway of as many workers as `--threads`, in one
request of JSON lines and in requests of one sentence from 32 clients; by the handler alone, as ONNX and as TorchScript;
by encoder and step graphs with the search in NumPy; and sentence by sentence in eager PyTorch.

`bucketing` takes the directory of channels that `examples.multi30k` writes, and trains so many batches with and without
buckets, and with batches padded to the longest sentence of the data.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from examples.multi30k import RECIPES
from exporters.seq2seq import load_network
from formats import vocabulary
from formats.envelope import Prediction
from formats.vocabulary import BOS, EOS, PAD
from handlers.algorithms import load_handler
from handlers.graph import Array, Engine, Runtime, load_graph
from loadtests.bench.peers import ROOT, free_ports
from model_store.store import Bundle, Store
from trainers.distributed import ALONE
from trainers.hyperparameter_schema import parse
from trainers.job import Job
from trainers.seq2seq import data
from trainers.seq2seq.beam_search import BeamSearch
from trainers.seq2seq.hyperparameters import Hyperparameters
from trainers.seq2seq.train import Learner, max_lengths

__all__ = ["main"]

_LINES = "application/jsonlines"
_NUM_CLIENTS = 32
_STEP_ROWS = 128
_NEVER = -1e30


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(required=True)
    one = ways.add_parser("translate")
    one.add_argument("bundle", type=Path)
    one.add_argument("file", type=Path)
    one.add_argument("--sentences", type=int, default=1000)
    one.set_defaults(rounds=3, run=_translate)
    other = ways.add_parser("bucketing")
    other.add_argument("data", type=Path)
    other.add_argument("--batches", type=int, default=40)
    other.set_defaults(rounds=5, run=_bucketing)
    for each in (one, other):
        each.add_argument("--rounds", type=int)
        each.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(arguments, argparse.Namespace())
    asked.run(asked)
    return 0


# ---- translating -------------------------------------------------------------------------------------------------


def _translate(asked: argparse.Namespace) -> None:
    sentences = asked.file.read_text().splitlines()[: asked.sentences]
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as directory, _gateway(asked.bundle, Path(directory), asked.threads) as url:
        ways: dict[str, Callable[[], list[str]]] = {
            "gateway, one request": lambda: _one_request(url, sentences),
            f"gateway, {_NUM_CLIENTS} clients": lambda: _many_requests(url, sentences),
            "handler, ONNX": _handler(asked.bundle, sentences, "onnx", asked.threads),
            "handler, TorchScript": _handler(asked.bundle, sentences, "torchscript", asked.threads),
            "encoder and step graphs": _stepwise(asked.bundle, sentences, asked.threads),
            "eager, sentence by sentence": _eager(asked.bundle, sentences),
        }
        answers = {name: way() for name, way in ways.items()}  # warms up, too
        told = answers["handler, ONNX"]
        for name, found in answers.items():
            same = sum(a == b for a, b in zip(found, told, strict=True))
            print(f"{name}: {same} of {len(told)} answers are those of the handler", flush=True)
        num_tokens = sum(len(each.split()) + 1 for each in told)
        _measure(ways, asked.rounds, num_tokens, "eager, sentence by sentence")


def _measure(ways: Mapping[str, Callable[[], object]], rounds: int, num_tokens: int, peer: str) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    print(f"\n| way | seconds | tokens/s | times as fast as {peer} |\n|---|---|---|---|")
    for name, found in seconds.items():
        ratio = median(theirs / ours for ours, theirs in zip(found, seconds[peer], strict=True))
        print(f"| {name} | {median(found):.2f} | {num_tokens / median(found):.0f} | {ratio:.1f} |", flush=True)


@contextlib.contextmanager
def _gateway(bundle: Path, directory: Path, workers: int) -> Iterator[str]:
    Store(directory / "store").publish(bundle, name="translator")
    http, grpc, admin = free_ports(3)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")},
        "PENSTOCK_STORE": str(directory / "store"),
        "PENSTOCK_HTTP_PORT": str(http),
        "PENSTOCK_GRPC_PORT": str(grpc),
        "PENSTOCK_ADMIN_PORT": str(admin),
        "PENSTOCK_POOLS__CPU__DEVICE": "cpu",
        "PENSTOCK_POOLS__CPU__WORKERS": str(workers),
    }
    with (directory / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "serve"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{http}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/models/translator/ready", timeout=5):
                break
            time.sleep(0.2)
        yield f"{url}/endpoints/translator/invocations"
    finally:
        process.terminate()
        process.wait(30)


def _one_request(url: str, sentences: list[str]) -> list[str]:
    request = urllib.request.Request(url, _body(sentences), {"content-type": _LINES})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return [json.loads(line)["target"] for line in answer.read().splitlines()]


def _many_requests(url: str, sentences: list[str]) -> list[str]:
    with ThreadPoolExecutor(_NUM_CLIENTS) as clients:
        return [found for (found,) in clients.map(lambda each: _one_request(url, [each]), sentences)]


def _body(sentences: list[str]) -> bytes:
    return b"".join(json.dumps({"source": each}).encode() + b"\n" for each in sentences)


def _handler(bundle: Path, sentences: list[str], engine: Engine, threads: int) -> Callable[[], list[str]]:
    handler = load_handler(Bundle.open(bundle), Runtime(engine=engine, threads=threads))
    prediction = Prediction("translator", "1", _body(sentences), _LINES)

    def way() -> list[str]:
        (outcome,) = handler.predict([prediction])
        return [json.loads(line)["target"] for line in outcome.body.splitlines()]

    return way


def _eager(bundle: Path, sentences: list[str]) -> Callable[[], list[str]]:
    """What one writes first: the network as it was trained, and a sentence at a time."""
    checkpoint = bundle.parent / "model"
    description = json.loads((checkpoint / "model.json").read_text())
    wanted = parse(Hyperparameters, description["hyperparameters"])
    search = BeamSearch(load_network(checkpoint, wanted, *description["num_words"])).eval()
    ids, limits, words = _prepared(bundle, sentences)
    penalty, wants, beam = torch.tensor([[1.0, 0.0]]), torch.tensor([False]), torch.tensor([wanted.beam_size])

    def way() -> list[str]:
        found = []
        with torch.inference_mode():
            for source, limit in zip(ids, limits, strict=True):
                target, _, _ = search(torch.tensor([source]), torch.tensor([limit]), beam, penalty, wants)
                found.append(" ".join(words[token] for token in target[0].tolist() if token != PAD))
        return found

    return way


def _prepared(bundle: Path, sentences: list[str]) -> tuple[list[list[int]], list[int], list[str]]:
    known = vocabulary.read(bundle / "vocab.src.json")
    settings: dict[str, Any] = dict(Bundle.open(bundle).manifest.settings)
    ids = [vocabulary.ids_of(known, each.split()) for each in sentences]
    ratio = (settings["length_ratio_mean"], settings["length_ratio_standard_deviation"])
    limits = max_lengths(np.array([len(each) for each in ids]), *ratio).tolist()
    return ids, limits, vocabulary.tokens_of(vocabulary.read(bundle / "vocab.trg.json"))


def _stepwise(bundle: Path, sentences: list[str], threads: int) -> Callable[[], list[str]]:
    """Beam search in NumPy over the two smaller graphs, batches sorted by length, as in the handler."""
    manifest = Bundle.open(bundle).manifest
    encoder, step = (
        load_graph(bundle, manifest.graphs[name], Runtime(threads=threads)) for name in ("encoder", "decoder_step")
    )
    ids, limits, words = _prepared(bundle, sentences)
    order = np.argsort([len(each) for each in ids], kind="stable")
    beam = int(str(manifest.settings["beam_size"]))

    def search(rows: list[int]) -> list[list[int]]:
        source = np.full((len(rows), max(len(ids[each]) for each in rows)), PAD, np.int64)
        for place, each in enumerate(rows):
            source[place, : len(ids[each])] = ids[each]
        limit = np.array([limits[each] for each in rows])[:, None]
        memory = encoder.run({"source": source})
        row = np.repeat(memory.pop("start")[:, None], beam, axis=1)
        seen = np.zeros((len(rows), beam, source.shape[1]), np.float32)
        token = np.full((len(rows), beam), BOS)
        total = np.where(np.arange(beam) == 0, 0.0, _NEVER) * np.ones((len(rows), 1))
        over, length = np.zeros_like(token, dtype=bool), np.zeros_like(token)
        said = np.zeros((len(rows), beam, 0), np.int64)
        at = np.arange(len(rows))[:, None]
        for place in range(int(limit.max())):
            feed: dict[str, Array] = {"token": token, "place": np.full(len(rows), place), "row": row, "seen": seen}
            answer = step.run(feed | memory)
            chance = answer["log_probability"]
            chance[:, :, [PAD, BOS]] = _NEVER
            best = np.argpartition(-chance, beam - 1, axis=2)[:, :, :beam]
            gain = np.take_along_axis(chance, best, axis=2)
            gain[over] = np.where(np.arange(beam) == 0, 0.0, _NEVER)
            best[over] = PAD
            length = length + ~over
            sums = (total[:, :, None] + gain).reshape(len(rows), -1)
            chosen = np.argsort(-(sums / np.repeat(length, beam, axis=1)), axis=1, kind="stable")[:, :beam]
            parent = chosen // beam
            token, total = best.reshape(len(rows), -1)[at, chosen], sums[at, chosen]
            length, row, seen = length[at, parent], answer["next_row"][at, parent], answer["next_seen"][at, parent]
            said = np.concatenate([said[at, parent], token[:, :, None]], axis=2)
            over = over[at, parent] | (token == EOS) | (length >= limit)
            if over.all():
                break
        return [[word for word in tokens.tolist() if word not in (PAD, EOS)] for tokens in said[:, 0]]

    def way() -> list[str]:
        found = [""] * len(ids)
        for first in range(0, len(order), _STEP_ROWS):
            rows = order[first : first + _STEP_ROWS].tolist()
            for place, target in zip(rows, search(rows), strict=True):
                found[place] = " ".join(words[token] for token in target)
        return found

    return way


# ---- training ----------------------------------------------------------------------------------------------------


def _bucketing(asked: argparse.Namespace) -> None:
    torch.set_num_threads(asked.threads)
    wanted = parse(Hyperparameters, RECIPES["cpu"])
    channels = {name: asked.data / name for name in ("train", "validation", "vocab")}
    job = Job(algorithm="seq2seq", channels=channels, hyperparameters={}, output=Path(), checkpoints=Path())
    known = data.read_vocabularies(job)
    pairs = data.read_channel(job, "train", wanted, known)
    longest = {
        "max_seq_len_source": int(pairs.source.lengths.max()),
        "max_seq_len_target": int(pairs.target.lengths.max()),
        "bucketing_enabled": False,
    }
    print(f"longest: {longest['max_seq_len_source']} source and {longest['max_seq_len_target']} target tokens")
    learners = {
        name: Learner(dataclasses.replace(wanted, **changes), pairs, pairs, known, ALONE)  # type: ignore[arg-type]
        for name, changes in (("buckets", {}), ("padded to the longest of the data", longest))
    }
    rates: dict[str, list[float]] = {name: [] for name in learners}
    for number in range(asked.rounds + 1):
        for name, learner in learners.items():
            learner.network.train()
            began, tokens = time.perf_counter(), 0
            for _ in range(asked.batches):
                bucket, some = learner._batch()  # noqa: SLF001  a run's own loop, without its checkpoints
                learner._step(bucket, some)  # noqa: SLF001
                learner.updates += 1
                tokens += int(pairs.source.lengths[some].sum() + pairs.target.lengths[some].sum())
            if number:  # the first round warms up
                rates[name].append(tokens / (time.perf_counter() - began))
    first, second = rates.values()
    for name, found in rates.items():
        print(f"{name}: {median(found):.0f} source and target tokens/s ({min(found):.0f} to {max(found):.0f})")
    ratios = [ours / theirs for ours, theirs in zip(first, second, strict=True)]
    print(f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
