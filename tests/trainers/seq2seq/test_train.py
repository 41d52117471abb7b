"""Runs from channels to a model: what is learned, told, kept, and gone on with."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.seq2seq import load_network
from formats import record, vocabulary
from formats.record import Record, Tensor, tensor_in
from formats.vocabulary import PAD
from tests.translators import SMALL, vocabulary_of
from trainers.checkpoints import load
from trainers.hyperparameter_schema import parse
from trainers.job import ClientError
from trainers.run import train
from trainers.seq2seq.beam_search import BeamSearch
from trainers.seq2seq.evaluation import bleu_scores
from trainers.seq2seq.hyperparameters import Hyperparameters
from trainers.seq2seq.train import max_lengths

WORDS = [str(number) for number in range(16)]
TINY = SMALL | {"weight_init_scale": 2.34, "batch_size": 20, "learning_rate": 0.01}


def write_task(root: Path, *, reverse: bool = False, sizes: tuple[int, int] = (200, 40), longest: int = 6) -> Path:
    """Sequences of random integers, and the same or the reverse of each."""
    random = np.random.default_rng(0)
    for channel, size in zip(("train", "validation"), sizes, strict=True):
        (root / channel).mkdir(parents=True)
        with (root / channel / "pairs.rec").open("wb") as file:
            for _ in range(size):
                source = random.integers(4, 4 + len(WORDS), random.integers(1, longest + 1)).astype(np.int32)
                target = source[::-1].copy() if reverse else source
                record.write(file, [Record({"source": Tensor(source), "target": Tensor(target)})])
    (root / "vocab").mkdir()
    for name in ("vocab.src.json", "vocab.trg.json"):
        vocabulary.write(root / "vocab" / name, vocabulary_of(WORDS))
    return root


def run(root: Path, output: str = "out", **given: Any) -> Path:
    channels = {name: root / name for name in ("train", "validation", "vocab")}
    return train("seq2seq", channels, TINY | given, root / output)


def rows(root: Path, output: str = "out") -> list[dict[str, float]]:
    return [json.loads(line) for line in (root / output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("reverse", [False, True], ids=["copy", "reverse"])
def test_sequences_are_copied_and_reversed(tmp_path: Path, reverse: bool) -> None:
    root = write_task(tmp_path, reverse=reverse, sizes=(6000, 300), longest=8)
    size: dict[str, Any] = {
        "rnn_num_hidden": 64,
        "num_embed_source": 32,
        "num_embed_target": 32,
        "rnn_attention_type": "dot",
    }
    model = run(root, **size, batch_size=64, learning_rate=0.005, max_num_epochs=6, cooldown=0.3)

    wanted = parse(Hyperparameters, json.loads((model / "model.json").read_text())["hyperparameters"])
    network = load_network(model, wanted, len(WORDS) + 4, len(WORDS) + 4)
    random, right = np.random.default_rng(1), 0
    for length in range(1, 9):
        source = torch.from_numpy(random.integers(4, 4 + len(WORDS), (50, length)))
        limits = torch.from_numpy(max_lengths(np.full(50, length), 1.0, 0.0))
        given = (torch.full((50,), 5), torch.tensor([[1.0, 0.0]]).repeat(50, 1), torch.zeros(50, dtype=torch.bool))
        with torch.inference_mode():
            target, _, _ = BeamSearch(network)(source, limits, *given)
        expected = source.flip([1]) if reverse else source
        found = torch.nn.functional.pad(target, [0, max(0, length - target.size(1))])
        right += int((found[:, :length] == expected).all(dim=1).sum())
    assert right >= 0.99 * 400


def test_a_run_says_what_the_original_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = run(write_task(tmp_path), max_num_epochs=12, checkpoint_frequency_num_batches=60, bleu_sample_size=10)
    told = capsys.readouterr().err

    assert re.search(r"Epoch\[\d+\] Batch \[50\]\tSpeed: [\d.]+ samples/sec\tperplexity=[\d.]+", told)
    assert re.search(r"Checkpoint \[1\]\tUpdates=60 Epoch=\d+ Samples=\d+ Time-cost=[\d.]+", told)
    assert re.search(r"Checkpoint \[1\]\tTrain-perplexity=[\d.]+", told)
    assert re.search(r"Checkpoint \[2\]\tValidation-perplexity=[\d.]+", told)
    assert re.search(r"#quality_metric: host=algo-1, epoch=\d+, validation perplexity <loss>=[\d.]+", told)
    assert re.search(r"#quality_metric: host=algo-1, epoch=\d+, validation bleu <score>=[\d.e-]+", told)
    assert re.search(r"BLEU is [\d.]+ in percent, and [\d.]+ by sacreBLEU's 13a on merged text", told)
    assert "minus" not in told
    description = json.loads((model / "model.json").read_text())
    assert set(description["metrics"]) >= {"validation:perplexity", "validation:accuracy", "validation:bleu"}
    assert description["length_ratio"] == {"mean": 1.0, "standard_deviation": 0.0}
    for name in ("vocab.src.json", "vocab.trg.json"):
        assert vocabulary.read(model / name) == vocabulary_of(WORDS)


def test_validation_is_the_mean_of_token_losses_and_improves(tmp_path: Path) -> None:
    model = run(write_task(tmp_path), max_num_epochs=6, checkpoint_frequency_num_batches=30)
    found = rows(tmp_path)

    assert found[-1]["validation:perplexity"] < 0.8 * found[0]["validation:perplexity"]
    assert found[-1]["validation:accuracy"] > found[0]["validation:accuracy"]
    wanted = parse(Hyperparameters, json.loads((model / "model.json").read_text())["hyperparameters"])
    network = load_network(model, wanted, 20, 20)
    losses = []
    with (tmp_path / "validation" / "pairs.rec").open("rb") as file:
        for each in record.read(file):
            source = torch.from_numpy(tensor_in(each.features, "source").values).long()[None]
            label = torch.cat([source, torch.tensor([[3]])], dim=1)
            with torch.inference_mode():
                losses += torch.nn.functional.cross_entropy(network(source, label), label[0], reduction="none").tolist()
    best = min(row["validation:perplexity"] for row in found)
    assert math.exp(np.mean(losses)) == pytest.approx(best, rel=1e-4)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    root = write_task(tmp_path)
    given: dict[str, Any] = {
        "max_num_batches": 60,
        "checkpoint_frequency_num_batches": 20,
        "rnn_decoder_hidden_dropout": 0.2,
    }
    whole = load(run(root, "whole", **given) / "model.pt")
    run(root, "parts", **given)
    # as if the process had been killed in its last stretch: the checkpoint before it is what is left
    state = load(root / "parts" / "checkpoints" / "last.pt")
    first = run(root, "first", **given | {"max_num_batches": 40})
    short = load(root / "first" / "checkpoints" / "last.pt")
    state |= {"history": short["history"], "best_epoch": short["best_epoch"], "finished": False}
    state["learner"] = short["learner"]
    torch.save(state, root / "parts" / "checkpoints" / "last.pt")
    again = load(run(root, "parts", **given) / "model.pt")

    assert first.exists()
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_early_stopping_counts_checkpoints_and_epochs(tmp_path: Path) -> None:
    root = write_task(tmp_path)
    # a rate so small that nothing improves visibly, and a momentum of rounding alone
    given: dict[str, Any] = {
        "learning_rate": 1e-12,
        "checkpoint_frequency_num_batches": 5,
        "optimized_metric": "accuracy",
    }
    run(root, "soon", **given, checkpoint_threshold=2)
    run(root, "late", **given, checkpoint_threshold=2, min_num_epochs=2)

    assert len(rows(root, "soon")) == 3
    assert len(rows(root, "late")) >= 4


def test_the_rate_falls_on_a_plateau(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {"learning_rate": 1e-12, "optimized_metric": "accuracy", "plateau_reduce_lr_threshold": 1}
    run(write_task(tmp_path), **given, checkpoint_frequency_num_batches=2, max_num_batches=6)

    rates = re.findall(r"learning_rate=(\S+)", capsys.readouterr().err)
    assert [float(rate) for rate in rates] == [1e-12, 1e-12, 5e-13]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr_scheduler_type": "fixed_rate_inv_t"}, [1 / (1 + 1 / 4), 1 / (1 + 3 / 4)]),
        ({"lr_scheduler_type": "fixed_rate_inv_sqrt_t"}, [1 / math.sqrt(1 + 3 / 4), 1 / math.sqrt(1 + 9 / 4)]),
        ({"learning_rate_warmup_num_batches": 4}, [0.5, 1.0]),
        ({"cooldown": 1.0}, [0.75, 0.25]),
    ],
)
def test_rates_follow_their_formulas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, Any], expected: list[float]
) -> None:
    run(
        write_task(tmp_path),
        **given,
        learning_rate=0.001,
        fixed_rate_lr_half_life=2,
        checkpoint_frequency_num_batches=2,
        max_num_batches=4,
    )

    rates = re.findall(r"Time-cost=\S+ learning_rate=(\S+)", capsys.readouterr().err)
    assert [float(rate) * 1000 for rate in rates] == pytest.approx(expected, rel=1e-4)


def test_a_small_run_is_evaluated_once_at_its_end(tmp_path: Path) -> None:
    run(write_task(tmp_path), max_num_epochs=1, optimizer_type="sgd", momentum=0.9, label_smoothing=0.1)

    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize("given", [{"optimizer_type": "rmsprop"}, {"encoder_type": "cnn", "decoder_type": "cnn"},
                                   {"bucketing_enabled": "false"}, {"training_metric": "accuracy"},
                                   {"precision_dtype": "bfloat16"}])  # fmt: skip
def test_all_kinds_of_runs_learn(tmp_path: Path, given: dict[str, Any]) -> None:
    run(
        write_task(tmp_path), **{"learning_rate": 0.003, **given}, max_num_epochs=6, checkpoint_frequency_num_batches=30
    )
    found = rows(tmp_path)

    assert found[-1]["validation:perplexity"] < found[0]["validation:perplexity"] < 30


def test_missing_channels_and_a_diverging_run_are_told(tmp_path: Path) -> None:
    root = write_task(tmp_path)
    with pytest.raises(ClientError, match="Missing required channel 'validation'"):
        train("seq2seq", {"train": root / "train", "vocab": root / "vocab"}, TINY, root / "out")
    with pytest.raises(ClientError, match="Training diverged at update"):
        run(root, optimizer_type="sgd", learning_rate=1e30, clip_gradient=-1, max_num_batches=20)


def test_bleu_is_told_on_both_scales() -> None:
    right = [["▁a", "▁sm", "all", "▁dog", "▁runs", "▁home", "."]]
    same, other = bleu_scores(right, right), bleu_scores([["▁a", "▁sm", "all", "▁cat", "▁runs", "▁home"]], right)

    assert list(same) == pytest.approx([1.0, 100.0])
    # 5 of 6 tokens, 3 of 5 pairs, 1 of 4 triples, 0.01 of 3 fours, and 6 tokens for 7
    chances = 5 / 6 * 3 / 5 * 1 / 4 * 0.01 / 3
    assert other.tokens == pytest.approx(chances**0.25 * math.exp(1 - 7 / 6))
    assert 0 < other.text < 50


def test_gradients_are_cut_number_by_number(tmp_path: Path) -> None:
    root = write_task(tmp_path)
    given: dict[str, Any] = {
        "optimizer_type": "sgd",
        "learning_rate": 1.0,
        "max_num_batches": 1,
        "weight_init_scale": 2.34,
    }
    model = run(root, **given, clip_gradient=0.0001)
    torch.manual_seed(0)
    from trainers.seq2seq.model import Network  # noqa: PLC0415

    before = Network(parse(Hyperparameters, TINY | given), 20, 20).state_dict()
    moved = {name: (value - before[name]).abs().max().item() for name, value in load(model / "model.pt").items()}
    assert max(moved.values()) <= 0.0001 * 1.01
    assert max(moved.values()) > 0.00005


def test_lengths_end_where_training_has_seen_them() -> None:
    assert max_lengths(np.array([1, 4, 10]), 1.2, 0.15).tolist() == [3, 7, 16]
    assert PAD == 0
