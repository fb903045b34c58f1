"""Laws of evaluation, against a loop over single images."""

import math

import pytest
import torch
from torch import Tensor, nn

from rotateconv.lab.train.evaluate import evaluate

CLASSES = ("a", "b", "c")


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 3))


def split(count: int, batch: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = torch.randn(count, 3, 2, 2), torch.randint(3, (count,))
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def one_by_one(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float, list[list[int]]]:
    model.eval()
    losses, confusion = [], [[0] * 3 for _ in range(3)]
    for images, labels in batches:
        for image, label in zip(images, labels.tolist(), strict=True):
            scores = model(image[None])[0].double().tolist()
            losses.append(math.log(sum(map(math.exp, scores))) - scores[label])
            confusion[label][scores.index(max(scores))] += 1
    right = sum(confusion[i][i] for i in range(3))
    return sum(losses) / len(losses), 100 * right / len(losses), confusion


@pytest.mark.parametrize("batch", [1, 7, 50, 64])
def test_evaluation_is_the_loop_over_single_images(batch: int) -> None:
    model, batches = build(), split(50, batch)
    loss, accuracy, confusion = one_by_one(model, batches)
    found = evaluate(model, batches, CLASSES)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.accuracy == accuracy
    assert found.confusion.tolist() == confusion
    assert found.count == 50
    for i, name in enumerate(CLASSES):
        assert found.class_accuracy[name] == pytest.approx(100 * confusion[i][i] / sum(confusion[i]))


def test_every_training_flag_comes_back() -> None:
    model = build().train()
    model[1].eval()  # a frozen norm in a training model
    before = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    evaluate(model, split(8, 4), CLASSES)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, statistics)


def test_flags_come_back_after_an_error() -> None:
    model = build().train()
    with pytest.raises(ValueError, match=r"expected 2 outputs, one a class, not \(3,\)"):
        evaluate(model, split(8, 4), ("a", "b"))
    assert all(module.training for module in model.modules())


def test_no_gradient_is_kept() -> None:
    seen = []

    class Probe(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.is_grad_enabled())
            return images.flatten(1)[:, :3]

    evaluate(Probe(), split(8, 4), CLASSES)
    assert seen == [False, False]


def test_a_class_without_images_has_no_accuracy() -> None:
    scores = torch.eye(3)[[0, 0]]
    found = evaluate(nn.Identity(), [(scores, torch.tensor([0, 2]))], CLASSES)
    assert found.class_accuracy == {"a": 100.0, "b": None, "c": 0.0}
    assert found.confusion[2].tolist() == [1, 0, 0]


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one image to evaluate, not 0"):
        evaluate(nn.Identity(), [], CLASSES)
