"""Figures of masks: equal to torchmetrics', blind to what is not labelled."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from formats.masks import IGNORE
from trainers.semantic_segmentation.evaluation import Evaluation, confusion


def masks(seed: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, num_classes, (3, 40, 50), generator=random)
    found = torch.where(
        torch.rand(truth.shape, generator=random) < 0.6,
        truth,
        torch.randint(0, num_classes, truth.shape, generator=random),
    )
    truth[torch.rand(truth.shape, generator=random) < 0.1] = IGNORE
    return found, truth


@pytest.mark.parametrize("num_classes", [2, 11, 254])
@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_torchmetrics(num_classes: int, seed: int) -> None:
    found, truth = masks(seed, num_classes)
    ours = Evaluation(confusion(found, truth, num_classes))
    jaccard = MulticlassJaccardIndex(num_classes, average="macro", ignore_index=IGNORE)
    accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORE)

    assert ours.report()["mIOU_of_present_classes"] == pytest.approx(float(jaccard(found, truth)), abs=1e-6)
    assert ours.pixel_accuracy == pytest.approx(float(accuracy(found, truth)), abs=1e-6)


def test_a_border_that_is_not_labelled_changes_nothing() -> None:
    found, truth = masks(1, 4)
    around = torch.nn.functional.pad
    wider = confusion(around(found, (5, 3, 2, 7), value=2), around(truth, (5, 3, 2, 7), value=IGNORE), 4)

    assert torch.equal(wider, confusion(found, truth, 4))


def test_figures_are_of_the_whole_set_not_means_over_batches() -> None:
    found, truth = masks(2, 3)
    parts = torch.stack([confusion(f, t, 3) for f, t in zip(found, truth, strict=True)]).sum(0)

    assert torch.equal(parts, confusion(found, truth, 3))


def test_a_class_that_never_occurs_counts_as_0_as_in_gluoncv() -> None:
    truth = torch.tensor([[0, 0, 1, 1]])
    evaluation = Evaluation(confusion(truth, truth, 4))

    assert evaluation.mean_iou == 0.5
    report = evaluation.report(["a", "b", "c", "d"])
    assert report["mIOU_of_present_classes"] == 1.0
    assert [each["IOU"] for each in report["classes"]] == [1.0, 1.0, None, None]
    assert report["classes"][1]["name"] == "b"
