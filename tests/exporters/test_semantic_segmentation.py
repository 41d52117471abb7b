"""A segmenter's bundle: the same masks in every form, for images of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from exporters import semantic_segmentation
from exporters.export import export
from exporters.graphs import ParityError, load_script
from exporters.semantic_segmentation import LEAST_EQUAL_SHARE
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.segmenters import write_checkpoint
from trainers.checkpoints import load, save
from trainers.job import ClientError

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")
ALGORITHMS = ("fcn", "psp", "deeplab")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("segmenters")
    return {
        name: Bundle.open(export(write_checkpoint(directory / name, algorithm=name), directory / f"{name}-bundle"))
        for name in ALGORITHMS
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_bundle_says_what_serving_needs(bundles: dict[str, Bundle], algorithm: str) -> None:
    bundle = bundles[algorithm]
    bundle.verify()
    manifest = bundle.manifest

    assert manifest.settings == {"num_classes": 4}
    assert manifest.graphs["model"].inputs[0].shape == [-1, -1, -1, 3]
    assert [(each.name, each.shape) for each in manifest.graphs["model"].outputs] == [
        ("mask", [-1, -1, -1]),
        ("logits", [-1, 4, -1, -1]),
    ]
    assert manifest.modes["predict"].placement == ["gpu", "cpu"]
    assert len(manifest.parity) == 3
    assert max(max(c.torchscript_max_abs_error, c.onnx_max_abs_error) for c in manifest.parity) <= 1e-4


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_golden_request_is_reproduced(bundles: dict[str, Bundle], algorithm: str, engine: Engine) -> None:
    prediction = golden_prediction(bundles[algorithm])
    assert prediction is not None
    (outcome,) = load_handler(bundles[algorithm], Runtime(engine=engine)).predict([prediction])

    check_golden(bundles[algorithm], outcome)


def patches(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    small = np.random.default_rng(height).integers(0, 256, (1, 9, 9, 3), np.uint8)
    return small.repeat(-(-height // 9), axis=1).repeat(-(-width // 9), axis=2)[:, :height, :width]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_masks_are_equal_at_any_size(bundles: dict[str, Bundle], algorithm: str) -> None:
    script = load_script(bundles[algorithm].path / "model.pt")
    session = ort.InferenceSession(str(bundles[algorithm].path / "model.onnx"), providers=["CPUExecutionProvider"])
    seen = set()
    for height, width in ((1, 1), (8, 8), (97, 131), (64, 200), (233, 55)):
        image = patches(height, width)
        mask, logits = session.run(["mask", "logits"], {"image": image})
        scripted = script(torch.from_numpy(image))
        assert mask.shape == (1, height, width)
        assert (mask == scripted[0].numpy()).mean() >= LEAST_EQUAL_SHARE
        np.testing.assert_allclose(logits, scripted[1].numpy(), atol=1e-3)
        seen |= set(np.unique(mask).tolist())
    assert len(seen) >= 3


def test_what_lies_around_an_image_is_what_the_graph_puts_there(bundles: dict[str, Bundle]) -> None:
    """Padded beforehand to a multiple of 8 with the mean colour, an image gets the same mask inside."""
    session = ort.InferenceSession(str(bundles["fcn"].path / "model.onnx"), providers=["CPUExecutionProvider"])
    image = patches(61, 83)
    wider = np.empty((1, 64, 88, 3), np.uint8)
    wider[:] = (124, 116, 104)
    wider[:, :61, :83] = image
    (ours,), (theirs,) = (session.run(["mask"], {"image": each})[0] for each in (image, wider))

    assert (ours == theirs[:61, :83]).mean() > 0.995  # the mean colour is no whole number


def test_a_graph_that_strays_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic_segmentation, "PARITY_TOLERANCE", 0.0)
    with pytest.raises(ParityError, match=r"probabilities stray by .* % of the mask is equal; nothing is exported"):
        export(write_checkpoint(tmp_path / "model"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    state = load(checkpoint / "model.pt")
    state.pop("head.score.weight")
    save(checkpoint / "model.pt", state)

    with pytest.raises(ClientError, match=r"does not fit the network that model\.json describes"):
        export(checkpoint, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("backbone", ["resnet-50", "resnet-101"])
def test_the_originals_backbones_can_be_exported(tmp_path: Path, algorithm: str, backbone: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", algorithm=algorithm, backbone=backbone, output_stride=8)

    assert Bundle.open(export(checkpoint, tmp_path / "bundle")).manifest.hyperparameters["backbone"] == backbone
