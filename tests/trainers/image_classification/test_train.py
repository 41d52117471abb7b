"""Runs from start to end, in this process and as processes of their own that are killed."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.checkpoints import load, save
from trainers.hyperparameter_schema import parse
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.model import build
from trainers.image_classification.train import Scores, learning_rate, train
from trainers.job import ClientError, Job
from trainers.optimizers import make_optimizer
from trainers.run import train as train_by_name

MakeJob = Callable[..., Job]


def metrics_of(job: Job) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time_s"} for row in rows]


def wanted(**changed: object) -> Hyperparameters:
    return parse(Hyperparameters, {"num_classes": 2, "num_training_samples": 8} | changed)


def test_training_learns_dark_from_light_and_describes_the_model(job: MakeJob) -> None:
    asked = job(epochs=4)
    directory = train(asked)
    description = json.loads((directory / "model.json").read_bytes())

    assert directory == asked.output / "model"
    assert description["labels"] == ["dark", "light"]
    assert description["metrics"]["validation:accuracy"] == 1.0
    assert set(load(directory / "model.pt")) == set(
        build(num_layers=20, image_shape=(3, 12, 12), num_classes=2).state_dict()
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "adam", "learning_rate": 0.01},
        {"optimizer": "rmsprop", "learning_rate": 0.001},
        {"optimizer": "nag"},
        {"augmentation_type": "crop_color_transform", "precision_dtype": "float16"},
        {"image_shape": "1,12,12", "top_k": 2},
        {"num_layers": 18},
    ],
    ids=str,
)
def test_every_kind_of_run_ends_with_finite_metrics(job: MakeJob, changed: dict[str, object]) -> None:
    asked = job(epochs=1, **changed)
    train(asked)
    (row,) = metrics_of(asked)

    assert 0 <= row["validation:accuracy"] <= 1
    assert 0 < row["train:loss"] < 100


def test_multi_label_runs_with_and_without_weights(job: MakeJob) -> None:
    for name in ("train", "validation"):
        file = job().channels[name] / f"{name}.lst"
        rows = [line.split("\t") for line in file.read_text().splitlines()]
        file.write_text("".join(f"{i}\t{int(i) % 4 // 3}\t{c}\t0\t{p}\n" for i, c, p in rows))
    weighted = job("weighted", multi_label=1, num_classes=3, use_weighted_loss=1)
    train(job("plain", multi_label=1, num_classes=3))
    train(weighted)

    assert metrics_of(weighted) != metrics_of(job("plain"))


def test_one_seed_gives_one_run_and_another_seed_another(job: MakeJob) -> None:
    runs = [job("a", seed=1), job("b", seed=1), job("c", seed=2)]
    for each in runs:
        train(each)
    first, again, other = (metrics_of(each) for each in runs)

    assert first == again
    assert first != other


def test_the_log_has_the_lines_that_scrapers_read(job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    asked = job(top_k=2, mini_batch_size=1, epochs=1)
    train_by_name("image_classification", asked.channels, asked.hyperparameters, asked.output)
    lines = capsys.readouterr().err.splitlines()
    bodies = [re.sub(r"^\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d (INFO|WARNING) \d+\] ", "", line) for line in lines]
    number = r"\d+\.\d+"

    assert all(line != body for line, body in zip(lines, bodies, strict=True))
    assert bodies[0] == "Docker entrypoint called with argument(s): train"
    for form in [
        r"Final configuration: \{.*\}",
        "---- Parameters ----",
        "num_layers: 20",
        "checkpoint_frequency not set, will store the best model",
        rf"Epoch\[0\] Batch \[20\]\tSpeed: {number} samples/sec\taccuracy={number}",
        rf"Epoch\[0\] Train-accuracy={number}",
        rf"Epoch\[0\] Train-top_k_accuracy_2={number}",
        rf"Epoch\[0\] Time cost={number}",
        rf"Epoch\[0\] Validation-accuracy={number}",
        rf"Epoch\[0\] Validation-top_k_accuracy_2={number}",
        rf"Storing the best model with validation accuracy: {number}",
        r'Saved checkpoint to ".*/image-classification-0001\.pt"',
    ]:
        assert any(re.fullmatch(form, body) for body in bodies), form


def test_a_users_mistake_is_logged_as_a_customer_error(job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ClientError):
        train_by_name("image_classification", {}, {"num_classes": 1, "num_training_samples": 1}, job().output)

    assert "ERROR" in (line := capsys.readouterr().err.splitlines()[-1])
    assert line.endswith("Customer Error: Missing required channel 'train'; channels given: none.")


def test_checkpoint_frequency_keeps_every_nth_model(job: MakeJob) -> None:
    kept = train(job(epochs=3, checkpoint_frequency=2)).glob("*.pt")

    assert {file.name for file in kept} == {"image-classification-0002.pt", "model.pt"}


def test_the_best_epoch_is_what_is_described(job: MakeJob) -> None:
    asked = job(epochs=4, learning_rate=0.3)
    description = json.loads((train(asked) / "model.json").read_bytes())
    accuracies = [row["validation:accuracy"] for row in metrics_of(asked)]

    assert description["metrics"]["validation:accuracy"] == max(accuracies)
    assert description["epoch"] == accuracies.index(max(accuracies))


def test_early_stopping_ends_the_run(job: MakeJob) -> None:
    asked = job(
        epochs=9, learning_rate=0, early_stopping="True", early_stopping_min_epochs=2, early_stopping_patience=1,
        early_stopping_tolerance=0.5,
    )  # fmt: skip
    train(asked)

    assert len(metrics_of(asked)) < 9


def test_a_finished_run_started_again_gives_the_same_model(job: MakeJob) -> None:
    first = (train(job()) / "model.pt").stat().st_size
    before = metrics_of(job())

    assert (train(job()) / "model.pt").stat().st_size == first
    assert metrics_of(job()) == before


def test_a_run_of_other_hyperparameters_is_not_resumed(job: MakeJob) -> None:
    train(job())

    with pytest.raises(ClientError, match="holds a run with other hyperparameters or other data"):
        train(job(learning_rate=0.01))


def test_a_disagreeing_sample_count_is_a_warning(job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "penstock.train"):
        train(job(num_training_samples=99, epochs=1))

    assert "num_training_samples is 99, but the train channel lists 24 images" in caplog.text


def test_divergence_is_told(job: MakeJob) -> None:
    """One class has no gradient, and without eps Adam then divides 0 by 0."""
    asked = job(num_classes=1, optimizer="adam", eps=0)
    for name in ("train", "validation"):
        file = asked.channels[name] / f"{name}.lst"
        file.write_text(file.read_text().replace("\t1.000000\t", "\t0.000000\t"))

    with pytest.raises(ClientError, match="Training diverged in epoch 0: the loss is nan; try a smaller"):
        train(asked)


PROGRAM = """
import json, sys
from pathlib import Path
from trainers.run import train
channels, values, output = json.loads(sys.argv[1])
print(train("image_classification", {k: Path(v) for k, v in channels.items()}, values, Path(output)))
"""


def run(job: Job, send: signal.Signals | None = None, at: str = "") -> tuple[int, str]:
    """The job as a process of its own, sent a signal once its log holds `at`; gives exit status and log."""
    told = json.dumps([{k: str(v) for k, v in job.channels.items()}, dict(job.hyperparameters), str(job.output)])
    command = [sys.executable, "-c", PROGRAM, told]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if send is not None and at in line:
                process.send_signal(send)
                send = None
    return process.returncode, log


def weights_of(job: Job) -> dict[str, Any]:
    return load(job.output / "model" / "model.pt")


def test_a_killed_run_ends_as_if_it_had_not_been_killed(job: MakeJob) -> None:
    options: dict[str, object] = {"epochs": 5, "augmentation_type": "crop", "lr_scheduler_step": "2,4"}
    whole, broken = job("whole", **options), job("broken", **options)
    run(whole)
    first, _ = run(broken, signal.SIGKILL, "Epoch[0] Train-accuracy")
    second, _ = run(broken, signal.SIGKILL, "Epoch[2] Train-accuracy")
    third, log = run(broken)

    assert (first, second, third) == (-signal.SIGKILL, -signal.SIGKILL, 0)
    assert "Resumed from" in log
    assert metrics_of(broken) == metrics_of(whole)
    assert all(torch.equal(value, weights_of(whole)[name]) for name, value in weights_of(broken).items())


def test_sigterm_leaves_the_best_model_and_the_run_can_go_on(job: MakeJob) -> None:
    asked = job(epochs=50)
    status, log = run(asked, signal.SIGTERM, "Epoch[1] Train-accuracy")
    epochs_before = len(metrics_of(asked))

    assert status == 0
    assert "Stopped by SIGTERM" in log
    assert 1 <= epochs_before < 50
    assert (asked.output / "model" / "model.json").exists()


def test_a_damaged_checkpoint_is_named_and_never_run(job: MakeJob, tmp_path: Path) -> None:
    asked = job()
    asked.checkpoints.mkdir(parents=True)
    torch.save({"identity": Path("/")}, asked.checkpoints / "last.pt")  # a pickle of more than plain values

    with pytest.raises(ClientError, match=r"last\.pt is damaged or not a checkpoint"):
        train(asked)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", {"x": 1})
    with pytest.raises(AttributeError):
        save(tmp_path / "a.pt", {"x": lambda: 0})

    assert load(tmp_path / "a.pt") == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_the_rate_falls_when_the_listed_epochs_are_done() -> None:
    asked = wanted(learning_rate=1, lr_scheduler_step="2, 3", lr_scheduler_factor=0.1)

    assert [learning_rate(asked, epoch) for epoch in range(5)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "nesterov": False}),
        ("nag", torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 0.01, "weight_decay": 0}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.6, "eps": 0.01, "momentum": 0, "weight_decay": 0}),
    ],
)
def test_each_optimizer_takes_its_own_parameters(
    name: str, kind: type[torch.optim.Optimizer], options: dict[str, object]
) -> None:
    asked = wanted(optimizer=name, momentum=0.7, beta_1=0.8, beta_2=0.99, eps=0.01, gamma=0.6, weight_decay=0.3)
    optimizer = make_optimizer(asked, torch.nn.Linear(2, 2))

    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in options} == options


def test_biases_are_not_decayed() -> None:
    layer = torch.nn.Linear(2, 2)
    weights, biases = make_optimizer(wanted(weight_decay=0.3), layer).param_groups

    assert (weights["weight_decay"], biases["weight_decay"]) == (0.3, 0.0)
    assert biases["params"] == [layer.bias]


def test_scores_count_top_1_top_k_and_labels() -> None:
    single, several = Scores(wanted(num_classes=3, top_k=2)), Scores(wanted(num_classes=3, multi_label=1))
    score_BK = torch.tensor([[3.0, 2, 1], [3, 2, 1]])
    single.add(score_BK, torch.tensor([1, 0]))
    several.add(torch.tensor([[1.0, -1, 1]]), torch.tensor([[1.0, 0, 0]]))

    assert single.metrics() == {"accuracy": 0.5, "top_k_accuracy_2": 1.0}
    assert several.accuracy() == pytest.approx(2 / 3)
