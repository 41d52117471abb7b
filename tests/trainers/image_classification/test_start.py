"""Where a network's first weights come from (image classification contract, sections 1 and 7)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainers.checkpoints import load, save
from trainers.hyperparameter_schema import parse
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.model import build
from trainers.image_classification.start import make_network
from trainers.image_classification.train import train
from trainers.job import ClientError, Job

MakeJob = Callable[..., Job]


def pretrained_job(job: MakeJob, file: Path, **changed: object) -> Job:
    options: dict[str, object] = {"image_shape": "3,224,224", "resize": 224, "num_layers": 18}
    channels = {**job().channels, "weights": file.parent}
    return job("out", channels, None, **(options | {"use_pretrained_model": 1} | changed))


def started(job: Job) -> tuple[torch.nn.Module, str]:
    return make_network(job, parse(Hyperparameters, job.hyperparameters))


def published(depth: int = 18) -> dict[str, Tensor]:
    """A state dict as torchvision publishes it: of 1,000 classes."""
    torch.manual_seed(7)
    return build(num_layers=depth, image_shape=(3, 224, 224), num_classes=1000, architecture="resnet_v1b").state_dict()


def _hugging_face(name: str) -> str:
    """As the transformers library names the same tensors."""
    if name.startswith("fc."):
        return name.replace("fc.", "classifier.1.")
    if not name.startswith("layer"):
        place = "convolution" if name.startswith("conv1") else "normalization"
        return f"resnet.embedder.embedder.{place}.{name.split('.', 1)[1]}"
    layer, unit, part, rest = name.split(".", 3)
    head = f"resnet.encoder.stages.{int(layer[5:]) - 1}.layers.{unit}"
    if part == "downsample":
        kind, _, rest = rest.partition(".")
        return f"{head}.shortcut.{'normalization' if int(kind) else 'convolution'}.{rest}"
    kind = "convolution" if part.startswith("conv") else "normalization"
    return f"{head}.layer.{int(part[-1]) - 1}.{kind}.{rest}"


def _write_safetensors(file: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, file.with_suffix(".safetensors"))
    return file.with_suffix(".safetensors")


def _write_state_dict(file: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, file.with_suffix(".pth"))
    return file.with_suffix(".pth")


def _write_wrapped(file: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"epoch": 90, "state_dict": {f"module.{k}": v for k, v in state.items()}}, file.with_suffix(".pt"))
    return file.with_suffix(".pt")


def _write_hugging_face(file: Path, state: dict[str, Tensor]) -> Path:
    return _write_safetensors(file, {_hugging_face(name): value for name, value in state.items()})


@pytest.mark.parametrize("write", [_write_safetensors, _write_state_dict, _write_wrapped, _write_hugging_face])
def test_published_weights_load_by_name_and_the_last_layer_is_new(
    job: MakeJob, tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], Path]
) -> None:
    (tmp_path / "weights").mkdir()
    state = published()
    network, architecture = started(pretrained_job(job, write(tmp_path / "weights" / "r18", state)))
    loaded = network.state_dict()

    assert architecture == "resnet_v1b"
    assert loaded["fc.weight"].shape == (2, 512)
    assert all(torch.equal(value, state[name]) for name, value in loaded.items()
               if not name.startswith("fc.") and "num_batches" not in name)  # fmt: skip


def test_weights_under_the_names_of_mxnets_example_load_too(job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    own = build(num_layers=18, image_shape=(3, 224, 224), num_classes=9).state_dict()
    parts = {"running_mean": "moving_mean", "running_var": "moving_var"}
    renamed = {}
    for name, value in own.items():
        head, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            continue
        if "bn" in head:
            last = parts.get(last) or {"weight": "gamma", "bias": "beta"}[last]
        head = head.replace("bn0.0", "bn0").removeprefix("stages.")
        if head.startswith("stage"):
            stage, unit, rest = head.split(".")
            head = f"{stage}_unit{int(unit) + 1}_{rest}"
        renamed[f"{head}_{last}"] = value
    network, architecture = started(pretrained_job(job, _write_safetensors(tmp_path / "weights" / "m", renamed)))

    assert architecture == "resnet_v2"
    assert torch.equal(network.state_dict()["stages.stage4.1.bn2.running_var"], own["stages.stage4.1.bn2.running_var"])


def test_a_pretrained_run_trains_and_goes_on_incrementally(
    job: MakeJob, tmp_path: Path, channels: dict[str, Path]
) -> None:
    (tmp_path / "weights").mkdir()
    file = _write_state_dict(tmp_path / "weights" / "r18", published())
    first = pretrained_job(job, file, epochs=1, mini_batch_size=4, lr_scheduler="cosine")
    for name in ("train", "validation"):  # a few images are enough at this size
        lst = channels[name] / f"{name}.lst"
        lst.write_text("\n".join(lst.read_text().splitlines()[:4]) + "\n")
    description = json.loads((train(first) / "model.json").read_bytes())
    again = job("again", {**channels, "model": first.model}, None, image_shape="3,224,224", num_layers=18, resize=224)
    network, architecture = started(again)

    assert description["architecture"] == architecture == "resnet_v1b"
    assert torch.equal(network.state_dict()["fc.weight"], load(first.model / "model.pt")["fc.weight"])


def _two_files(file: Path) -> None:
    (file.parent / "other.pth").write_bytes(b"x")


def _damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def _more_than_tensors(file: Path) -> None:
    torch.save({"a": Path("/")}, file)  # a pickle that would run code


def _no_resnet(file: Path) -> None:
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(1)}, file)


def _another_width(file: Path) -> None:
    torch.save(published() | {"layer3.0.conv1.weight": torch.zeros(1, 2, 3, 3)}, file)


def _deeper(file: Path) -> None:
    torch.save(published(34), file)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_two_files, "expected exactly one file that ends in .*found other.pth, r18.pth"),
        (_damage, r"r18\.pth is damaged, or holds more than tensors"),
        (_more_than_tensors, r"r18\.pth is damaged, or holds more than tensors"),
        (_no_resnet, r"holds no ResNet known here.*found blocks\.0\.attn"),
        (_another_width, r"does not fit: 1 of \d+ tensors; first: layer3\.0\.conv1\.weight has shape \(1, 2, 3, 3\)"),
        (_deeper, "holds a ResNet of 34 layers; hyperparameter num_layers is 18"),
    ],
)
def test_weights_that_do_not_fit_are_told(
    job: MakeJob, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    (tmp_path / "weights").mkdir()
    file = _write_state_dict(tmp_path / "weights" / "r18", published())
    spoil(file)

    with pytest.raises(ClientError, match=told):
        started(pretrained_job(job, file))


def test_without_weights_there_is_no_pretrained_start(job: MakeJob) -> None:
    with pytest.raises(ClientError, match="no ImageNet weights are installed; give a channel 'weights'"):
        train(job(image_shape="3,224,224", resize=224, num_layers=18, use_pretrained_model=1))


def archived(model: Path, directory: Path) -> Path:
    """`model.tar.gz` as a finished job's artifact."""
    directory.mkdir()
    with tarfile.open(directory / "model.tar.gz", "w:gz") as tar:
        for file in model.iterdir():
            tar.add(file, file.name)
    return directory


@pytest.mark.parametrize("packed", [True, False])
def test_training_goes_on_from_an_earlier_model(
    job: MakeJob, channels: dict[str, Path], tmp_path: Path, packed: bool
) -> None:
    first = job("first", epochs=4, checkpoint_frequency=1)
    model = train(first)
    given = {**channels, "model": archived(model, tmp_path / "earlier") if packed else model}
    second = job("second", given, None, epochs=1, learning_rate=0)  # a rate of 0 leaves it as it was
    train(second)

    before, after = load(first.model / "model.pt"), load(second.model / "model.pt")
    assert torch.equal(before["fc1.weight"], after["fc1.weight"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_layers": 32}, "num_layers is 32, and was 20 in the earlier job"),
        ({"num_classes": 3}, "num_classes is 3, and was 2"),
        ({"image_shape": "3,14,14"}, "image_shape is 3,14,14, and was 3,12,12"),
    ],
)
def test_what_must_stay_the_same_is_checked(job: MakeJob, changed: dict[str, object], told: str) -> None:
    model = train(job("first", epochs=1))

    with pytest.raises(ClientError, match=told):
        train(job("second", {**job().channels, "model": model}, None, **changed))


def _another_algorithm(model: Path) -> None:
    description = json.loads((model / "model.json").read_bytes())
    (model / "model.json").write_text(json.dumps(description | {"algorithm": "object_detection"}))


def _no_description(model: Path) -> None:
    (model / "model.json").unlink()


def _other_tensors(model: Path) -> None:
    save(model / "model.pt", {"x": torch.zeros(1)})


def _damaged_archive(model: Path) -> None:
    (model / "model.tar.gz").write_bytes(b"\x1f\x8b" + bytes(30))


def _foreign_archive(model: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../model.json"))
    (model / "model.tar.gz").write_bytes(data.getvalue())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_another_algorithm, "holds a model of algorithm 'object_detection'; expected image_classification"),
        (_no_description, r"holds neither model\.tar\.gz nor model\.json"),
        (_other_tensors, r"model\.pt does not fit its description"),
        (_damaged_archive, r"model\.tar\.gz is damaged or not a tar file"),
        (_foreign_archive, r"model\.tar\.gz holds no model\.json and no model\.pt"),
    ],
)
def test_an_earlier_model_that_cannot_be_taken_is_told(job: MakeJob, spoil: Callable[[Path], None], told: str) -> None:
    model = train(job("first", epochs=1))
    spoil(model)

    with pytest.raises(ClientError, match=told):
        train(job("second", {**job().channels, "model": model}, None))
