"""Training runs: what is learnt, said, left behind, resumed and refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.trainers.semantic_segmentation.conftest import as_stream
from tests.trainers.test_distributed import torchrun
from trainers.checkpoints import load, save
from trainers.hyperparameter_schema import parse
from trainers.job import ChannelSettings, ClientError, Job
from trainers.semantic_segmentation.evaluation import Evaluation
from trainers.semantic_segmentation.hyperparameters import Hyperparameters
from trainers.semantic_segmentation.start import make_network
from trainers.semantic_segmentation.train import Learner, learning_rate, train
from trainers.vision.resnet import ResNetV1b

MakeJob = Callable[..., Job]


def column(job: Job, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (job.output / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_says_so_in_the_contracts_words(job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    asked = job(epochs=14, validation_mini_batch_size=1, learning_rate=0.02, output_stride=8)
    with caplog.at_level(logging.INFO):
        model = train(asked)

    losses = column(asked, "train:loss")
    assert losses[-1] < 0.6 * losses[0]
    assert max(column(asked, "validation:mIOU")) > 0.4  # all ground gives 0.29
    text = caplog.text
    assert len(re.findall(r"#quality_metric: host=\S+, epoch=\S+, train loss <loss>=\((\S+)\)", text)) == 14
    scores = re.findall(r"#quality_metric: host=\S+, epoch=\S+, validation mIOU <score>=\((\S+)\)", text)
    assert list(map(float, scores)) == column(asked, "validation:mIOU")
    assert len(re.findall(r"validation pixel_accuracy <score>=\((\S+)\)", text)) == 14
    assert len(re.findall(r"#throughput_metric: host=\S+, epoch=\S+, train throughput=\((\S+)\) records/s", text)) == 14
    report = json.loads((asked.output / "evaluation.json").read_text())
    assert report["mIOU"] == max(column(asked, "validation:mIOU"))
    assert {path.name for path in model.iterdir()} == {"model.pt", "model.json", "hyperparams.json"}


def test_scores_between_validations_are_the_last_measured(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    measure = Learner._measure

    def noted(learner: Learner) -> Evaluation:
        measured.append(learner._epoch)
        return measure(learner)

    monkeypatch.setattr(Learner, "_measure", noted)
    asked = job(epochs=5, validation_frequency=3)
    train(asked)
    accuracy = column(asked, "validation:pixel_accuracy")

    assert measured[:-1] == [0, 2, 4]  # the last is the report's
    assert accuracy[0] == accuracy[1] > 0
    assert accuracy[2] == accuracy[3]


@pytest.mark.parametrize("algorithm", ["psp", "deeplab"])
def test_the_other_heads_train_too(job: MakeJob, algorithm: str) -> None:
    asked = job(algorithm=algorithm, epochs=1, auxiliary_weight=0)
    model = train(asked)

    assert not any(name.startswith("auxiliary.") for name in load(model / "model.pt"))
    assert column(asked, "train:loss")[0] < 2


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "nag", "rmsprop", "adadelta"])
def test_every_optimizer_makes_a_step(job: MakeJob, optimizer: str) -> None:
    asked = job(optimizer=optimizer, learning_rate=0.0005, epochs=1)
    train(asked)

    assert column(asked, "train:loss")[0] < 5


def test_a_stopped_run_goes_on_alike(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = job("whole"), job("broken")
    train(whole)
    saved = 0

    def save_once(path: Path, state: dict[str, object]) -> None:
        nonlocal saved
        if path.name == "last.pt":
            saved += 1
            if saved == 2:
                raise KeyboardInterrupt  # what a kill leaves: the state after the first epoch
        save(path, state)

    monkeypatch.setattr("trainers.checkpoints.save", save_once)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    monkeypatch.undo()
    train(broken)

    assert column(broken, "train:loss") == column(whole, "train:loss")
    ours, theirs = (load(each.output / "model" / "model.pt") for each in (broken, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_incremental_training_begins_where_the_other_ended(
    job: MakeJob, channels: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    first = job("first", epochs=1)
    given = channels | {"model": train(first)}
    theirs = load(first.output / "model" / "model.pt")
    second, plain = make_network(job(given=given), parse(Hyperparameters, first.hyperparameters))

    assert not plain
    assert all(torch.equal(value, theirs[name]) for name, value in second.state_dict().items())
    other = dict(first.hyperparameters) | {"crop_size": 64, "auxiliary_weight": 0}
    with caplog.at_level(logging.WARNING):
        third, _ = make_network(job(given=given), parse(Hyperparameters, other))
    assert torch.equal(third.state_dict()["head.score.weight"], theirs["head.score.weight"])
    assert "crop_size is 64, and was 48 in the earlier job" in caplog.text
    with pytest.raises(ClientError, match="algorithm is psp, and was fcn in the earlier job"):
        make_network(job(given=given), parse(Hyperparameters, dict(first.hyperparameters) | {"algorithm": "psp"}))


def test_published_weights_become_the_backbone(job: MakeJob, channels: dict[str, Path], tmp_path: Path) -> None:
    published = ResNetV1b(num_layers=50, num_classes=1000)
    (tmp_path / "weights").mkdir()
    state = {name: value.clone().contiguous() for name, value in published.state_dict().items()}
    save_file(state, tmp_path / "weights" / "w.safetensors")
    wanted = parse(Hyperparameters, dict(job().hyperparameters) | {"backbone": "resnet-50"})
    network, plain = make_network(job(given=channels | {"weights": tmp_path / "weights"}), wanted)

    assert plain
    ours = network.base.state_dict()
    assert torch.equal(ours["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])
    assert torch.equal(ours["conv1.weight"], state["conv1.weight"])
    asked = dict(job().hyperparameters) | {"use_pretrained_model": "True"}
    with pytest.raises(ClientError, match="no ImageNet weights are installed"):
        make_network(job(), parse(Hyperparameters, asked))


def test_a_pipe_trains_like_files(job: MakeJob, channels: dict[str, Path]) -> None:
    settings = ChannelSettings(pipe=True, content_type="application/x-recordio", attribute_names=("a-ref", "b-ref"))
    streams = {name: as_stream(channels, name) for name in ("train", "validation")}
    asked = job("piped", given=streams, settings=dict.fromkeys(streams, settings), epochs=1)
    train(asked)

    assert column(asked, "validation:pixel_accuracy")[0] > 0


def test_two_processes_give_the_curve_of_one_with_the_same_global_batch(job: MakeJob) -> None:
    """Each norms its own half of a batch, as the original's devices do: that is all the difference. Tolerance: 15 %
    of the first loss, on every epoch."""
    options: dict[str, object] = {"epochs": 3, "mini_batch_size": 8, "learning_rate": 0.005}
    one, two = job("one", **options), job("two", **options)
    train(one)
    status, _, log = torchrun(two, algorithm="semantic_segmentation")

    assert status == 0, log
    ours, theirs = (np.array(column(each, "train:loss")) for each in (one, two))
    assert np.abs(ours - theirs).max() < 0.15 * ours[0]
    assert json.loads((two.output / "evaluation.json").read_bytes())["num_pixels"] == 3 * 46 * 48


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lr_scheduler": "step"}, "lr_scheduler_step: required"),
        ({"algorithm": "unet"}, "algorithm"),
        ({"num_classes": 1}, "num_classes"),
        ({"crop_size": 16}, "crop_size"),
        ({"mini_batch_size": 9}, "bigger or equal to the mini_batch_size. There are 8"),
        ({"mini_batch_size": 1, "algorithm": "psp"}, "mini_batch_size: 1 leaves a process one image"),
        ({"freeze_layer_pattern": "x"}, "freeze_layer_pattern"),
    ],
)
def test_what_cannot_work_is_refused_by_name(job: MakeJob, changed: dict[str, object], told: str) -> None:
    with pytest.raises(ClientError, match=re.escape(told)):
        train(job(**changed))


def test_rates_fall_as_their_schedules_say() -> None:
    values = {"num_classes": 2, "num_training_samples": 1, "epochs": 10, "learning_rate": 0.1}
    steps: list[dict[str, object]] = [
        {},
        {"lr_scheduler": "step", "lr_scheduler_step": "3, 6", "lr_scheduler_factor": "0.5"},
    ]
    poly, step = (parse(Hyperparameters, {**values, **more}) for more in steps)

    assert learning_rate(poly, 0) == 0.1
    assert learning_rate(poly, 5) == pytest.approx(0.1 * 0.5**0.9)
    assert learning_rate(poly, 10) == 0
    assert [learning_rate(step, epoch) for epoch in (2.9, 3, 6)] == [0.1, 0.05, 0.025]
