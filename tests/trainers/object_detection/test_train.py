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

from tests.trainers.object_detection.conftest import as_records
from tests.trainers.test_distributed import torchrun
from trainers.checkpoints import load, save
from trainers.hyperparameter_schema import parse
from trainers.job import ChannelSettings, ClientError, Job
from trainers.object_detection.hyperparameters import Hyperparameters
from trainers.object_detection.model import SingleShotDetector
from trainers.object_detection.start import make_network
from trainers.object_detection.train import train
from trainers.object_detection.vgg import Vgg16, load_vgg
from trainers.vision.resnet import ResNetV1b

MakeJob = Callable[..., Job]


def column(job: Job, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (job.output / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_says_so_in_the_originals_words(job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    asked = job(epochs=3, lr_scheduler="one_cycle")
    with caplog.at_level(logging.INFO):
        model = train(asked)

    losses = column(asked, "train:cross_entropy")
    assert losses[2] < 0.7 * losses[0]
    text = caplog.text
    # the regular expressions of the contract, section 4
    assert (
        len(re.findall(r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train cross_entropy <loss>=(\S+)", text)) == 3
    )
    assert len(re.findall(r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train smooth_l1 <loss>=(\S+)", text)) == 3
    scores = re.findall(r"#quality_metric: host=\S+, epoch=\S+, validation mAP <score>=\((\S+)\)", text)
    assert list(map(float, scores)) == column(asked, "validation:mAP")
    assert re.findall(r"#progress_metric: host=\S+, completed (\S+) %", text) == ["33", "66", "100"]
    assert float(re.findall(r"#throughput_metric: host=\S+, train throughput=(\S+) records/second", text)[0]) > 0
    assert "Updating the best model with validation-mAP=" in text
    assert json.loads((model / "hyperparams.json").read_text())["image_shape"] == "300"
    report = json.loads((asked.output / "evaluation.json").read_text())
    assert report["mAP"] == max(column(asked, "validation:mAP"))
    assert len(report["classes"]) == 2
    assert {path.name for path in model.iterdir()} == {"model.pt", "model.json", "hyperparams.json"}


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

    assert column(broken, "train:cross_entropy") == column(whole, "train:cross_entropy")
    ours, theirs = (load(each.output / "model" / "model.pt") for each in (broken, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_incremental_training_begins_where_the_other_ended(job: MakeJob, channels: dict[str, Path]) -> None:
    first = job("first", epochs=1)
    model = train(first)
    second = make_network(job(given=channels | {"model": model}), parse(Hyperparameters, first.hyperparameters))

    theirs = load(model / "model.pt")
    assert all(torch.equal(value, theirs[name]) for name, value in second.state_dict().items())
    with pytest.raises(ClientError, match="num_classes is 5, and was 2 in the earlier job"):
        make_network(
            job(given=channels | {"model": model}),
            parse(Hyperparameters, dict(first.hyperparameters) | {"num_classes": 5}),
        )


def weights_channel(tmp_path: Path, network: torch.nn.Module) -> Path:
    directory = tmp_path / "weights"
    directory.mkdir()
    save_file({k: v.clone().contiguous() for k, v in network.state_dict().items()}, directory / "w.safetensors")
    return directory


def test_published_resnet_weights_become_the_base(job: MakeJob, channels: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(5)
    published = ResNetV1b(num_layers=18, num_classes=1000)
    given = channels | {"weights": weights_channel(tmp_path, published)}
    network = make_network(job(given=given), parse(Hyperparameters, job().hyperparameters))

    base = network.base.network
    assert isinstance(base, ResNetV1b)
    assert torch.equal(base.layer4.state_dict()["1.conv2.weight"], published.layer4.state_dict()["1.conv2.weight"])
    with pytest.raises(ClientError, match="no ImageNet weights are installed"):
        make_network(job(), parse(Hyperparameters, dict(job().hyperparameters) | {"use_pretrained_model": 1}))


def torchvision_vgg() -> dict[str, torch.Tensor]:
    """Random weights of torchvision's VGG-16, by its names, its fully connected layers included."""
    torch.manual_seed(3)
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    layers = [module for module in Vgg16().modules() if isinstance(module, torch.nn.Conv2d)][:13]
    state = {}
    for place, layer in zip(places, layers, strict=True):
        state[f"features.{place}.weight"] = torch.randn_like(layer.weight)
        state[f"features.{place}.bias"] = torch.randn(layer.out_channels)
    for place, width in ((0, 512 * 49), (3, 4096)):
        state[f"classifier.{place}.weight"] = torch.randn(4096, 1).expand(4096, width)
        state[f"classifier.{place}.bias"] = torch.randn(4096)
    return state


def test_a_whole_vgg_is_thinned_to_the_reduced_one() -> None:
    state, network = torchvision_vgg(), Vgg16()
    load_vgg(network, state, Path("vgg16.pth"))

    assert torch.equal(network.conv4_3.weight, state["features.21.weight"])
    assert network.fc6.bias is not None
    assert torch.equal(network.fc6.bias, state["classifier.0.bias"][::4])
    assert torch.equal(network.fc6.weight[:, 0, 0, 0], state["classifier.0.weight"][::4, 0])
    assert torch.equal(network.fc7.weight[:, 5, 0, 0], state["classifier.3.weight"][::4, 20])
    del state["features.28.bias"]
    with pytest.raises(ClientError, match=r"1 of 30 tensors; first: conv5_3.bias, expected \(512,\), found nothing"):
        load_vgg(network, state, Path("vgg16.pth"))


def test_the_originals_own_names_load_too() -> None:
    theirs, ours = Vgg16(), Vgg16()
    named = {f"arg:{k.replace('.', '_')}": v for k, v in theirs.state_dict().items() if not k.startswith("norm4")}
    load_vgg(ours, named, Path("vgg16_reduced.safetensors"))

    assert torch.equal(ours.fc7.weight, theirs.fc7.weight)


@pytest.mark.parametrize(
    ("base", "pattern", "some", "none"),
    [
        ("vgg-16", "^(conv1_|conv2_).*", "base.conv2_2.weight", "base.conv3_1.weight"),
        ("resnet-18", "^(conv0|stage1).*", "base.network.layer1.0.conv1.weight", "base.network.layer2.0.conv1.weight"),
    ],
)
def test_frozen_layers_stay_and_the_others_do_not(job: MakeJob, base: str, pattern: str, some: str, none: str) -> None:
    asked = job(base_network=base, freeze_layer_pattern=pattern)
    network = make_network(asked, parse(Hyperparameters, asked.hyperparameters))
    parameters = dict(network.named_parameters())

    assert not parameters[some].requires_grad
    assert parameters[none].requires_grad
    assert all(parameter.requires_grad for name, parameter in parameters.items() if not name.startswith("base."))
    with pytest.raises(ClientError, match="fits no parameter of the base network"):
        make_network(asked, parse(Hyperparameters, dict(asked.hyperparameters) | {"freeze_layer_pattern": "^xyz"}))


@pytest.mark.parametrize("value", ["", "false", "False"])
def test_consoles_send_words_for_nothing(value: str) -> None:
    given = {"num_classes": 1, "num_training_samples": 1, "freeze_layer_pattern": value, "lr_scheduler_step": ""}

    wanted = parse(Hyperparameters, given | {"_tuning_objective_metric": ""})

    assert wanted.freeze_layer_pattern is None
    assert wanted.lr_scheduler_step == ()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image_shape": "299"}, "image_shape must be an integer from 300 to 4096"),
        ({"base_network": "resnet50"}, "one of vgg-16, resnet-50, resnet-18; did you mean 'resnet-50'"),
        ({"nms_threshold": "0"}, "nms_threshold"),
        ({"freeze_layer_pattern": "("}, "hyperparameter freeze_layer_pattern must be a regular expression"),
        ({"learningrate": 1}, r"Additional hyperparameters are not allowed \('learningrate' was unexpected\)"),
    ],
)
def test_wrong_hyperparameters_are_named(changed: dict[str, object], told: str) -> None:
    with pytest.raises(ClientError, match=told):
        parse(Hyperparameters, {"num_classes": 1, "num_training_samples": 1} | changed)


def test_too_few_images_for_a_batch(job: MakeJob) -> None:
    with pytest.raises(ClientError, match=r"There are 8, and mini_batch_size is 9\."):
        train(job(mini_batch_size=9))


def test_pipe_mode_sees_the_same_records(job: MakeJob, channels: dict[str, Path]) -> None:
    records = {name: path for part in ("train", "validation") for name, path in as_records(channels, part).items()}
    piped = ChannelSettings(content_type="application/x-recordio", pipe=True)
    asked = job(given=records, settings={"train": piped, "validation": piped}, epochs=1)
    train(asked)

    assert column(asked, "train:cross_entropy")[0] > 0
    assert len(json.loads((asked.output / "evaluation.json").read_text())["classes"]) == 2


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "adadelta"])
def test_every_optimizer_moves_every_parameter(job: MakeJob, optimizer: str) -> None:
    asked = job(optimizer=optimizer, epochs=1, learning_rate=0.0001, lr_scheduler_step="1")
    before = make_network(asked, parse(Hyperparameters, asked.hyperparameters)).state_dict()
    after = load(train(asked) / "model.pt")

    still = [name for name, value in after.items() if torch.equal(value, before[name])]
    # nothing here matches the anchors of the coarsest maps
    assert not [name for name in still if name.startswith("base.")]
    assert len(still) < 0.1 * len(after)


def test_two_processes_learn_as_one(job: MakeJob, channels: dict[str, Path]) -> None:
    """Each norms its own half of a batch: the curves are close, not equal."""
    given = {name: path for part in ("train", "validation") for name, path in as_records(channels, part).items()}
    one, two = job("one", given), job("two", given)
    train(one)
    status, _, log = torchrun(two, algorithm="object_detection")

    assert status == 0, log
    losses = column(one, "train:cross_entropy"), column(two, "train:cross_entropy")
    assert np.abs(np.subtract(*losses)).max() < 0.5 * losses[0][0]
    assert len(json.loads((two.output / "evaluation.json").read_bytes())["classes"]) == 2
    assert json.loads((two.output / "evaluation.json").read_bytes())["num_images"] == 3


def test_networks_of_other_sizes_are_other_networks() -> None:
    small, large = (SingleShotDetector(base_network="vgg-16", num_classes=1, image_shape=s) for s in (300, 512))

    assert len(small.extras) + 1 == len(large.extras)
