"""What is suspicious of a teacher and of labels, on made-up outputs of which the truth is known."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from ndkd.commands.diagnose_embeddings import embeddings
from ndkd.commands.diagnose_sample import Sample, class_means
from ndkd.commands.diagnose_teacher import (
    label_conflicts,
    reordered_accuracy,
    teacher_figures,
    teacher_warnings,
    told_apart,
)

CLASSES = 10


@pytest.fixture
def outputs():
    """Logits (N, C) and targets of a teacher that is right on a share of images, by a margin of noise."""

    def make(n=400, accuracy=1.0, margin=8.0, spread=1.0, seed=0):
        random = torch.Generator().manual_seed(seed)
        target = torch.randint(CLASSES, (n,), generator=random)
        wrong = torch.arange(n) >= round(accuracy * n)
        said = torch.where(wrong, (target + 1) % CLASSES, target)
        heights = margin + spread * torch.randn(n, generator=random)
        return F.one_hot(said, CLASSES) * heights.clamp_min(2.5)[:, None], target

    return make


def warned(training, validation=None, reported=None):
    figures = [images and teacher_figures(*images) for images in (training, validation)]
    return " ".join(teacher_warnings(*figures, reported, reordered_accuracy(*training)))


def test_figures_are_what_they_are_called(outputs):
    logits, target = outputs(accuracy=0.75, spread=0.0)
    found = teacher_figures(logits, target)
    sure = logits[0].softmax(0).max().item()
    assert found.accuracy == pytest.approx(0.75)
    assert found.confidence == pytest.approx(sure)
    assert found.ece == pytest.approx(sure - 0.75, abs=1e-4)
    assert found.entropy == pytest.approx(torch.special.entr(logits[0].softmax(0)).sum().item(), rel=1e-4)
    assert found.cross_entropy.mean().item() == pytest.approx(F.cross_entropy(logits, target).item())
    assert found.chance == pytest.approx(target.bincount().max().item() / len(target))
    low, high = found.interval()
    assert low < 0.75 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 400) ** 0.5, rel=0.02)


def test_a_good_teacher_is_not_suspicious(outputs):
    # surer of what it was trained on, though right on all of both
    assert warned(outputs(margin=9.0), outputs(margin=7.0, seed=1), 0.99) == ""
    assert warned(outputs(), outputs(accuracy=0.93, margin=2.6, spread=0.1, seed=1), 0.94) == ""


def test_a_teacher_that_has_seen_the_validation_images(outputs):
    found = warned(outputs(), outputs(seed=1))
    assert "may have been trained on the validation images: 100.0% of the training and 100.0% of" in found
    assert "AUC 0." in found


@pytest.mark.parametrize("change", [{"n": 20}, {"accuracy": 0.98}, {"margin": 7.0}])
def test_but_not_on_thin_evidence(outputs, change):
    """Few images, some of them wrong, or a teacher that is less sure of them."""
    assert "trained on the validation images" not in warned(outputs(), outputs(seed=1, **change))


def test_the_area_is_half_for_images_alike(outputs):
    area, error = told_apart(*(teacher_figures(*outputs(n=2000, seed=seed)) for seed in (0, 1)))
    assert abs(area - 0.5) < 3 * error
    area, _ = told_apart(teacher_figures(*outputs(margin=12.0)), teacher_figures(*outputs(margin=6.0, seed=1)))
    assert area > 0.95


@pytest.mark.parametrize("validates", [True, False])
def test_a_teacher_no_better_than_chance(outputs, validates):
    guesses = torch.randn(400, CLASSES, generator=torch.Generator().manual_seed(1)), outputs()[1]
    assert "no better than chance" in warned(guesses, guesses if validates else None)


def test_a_teacher_of_another_order_of_classes(outputs):
    logits, target = outputs()
    found = warned((logits.roll(3, dims=1), target), (logits.roll(3, dims=1), target))
    assert "another order than the data's: with the best other order 100.0%" in found
    assert reordered_accuracy(logits[:50], target[:50]) is None  # five of a class would fit any order


def test_a_weak_and_an_overfitted_teacher(outputs):
    assert "is weak: 40.0% of the training images" in warned(outputs(accuracy=0.4), outputs(accuracy=0.4, seed=1))
    assert "learnt them by heart" in warned(outputs(), outputs(accuracy=0.6, seed=1))


def test_an_overconfident_teacher(outputs):
    found = warned(outputs(accuracy=0.9), outputs(accuracy=0.8, seed=1))
    assert "is overconfident: on validation images it is 99." in found
    assert "80.0% are right" in found


def test_a_teacher_that_was_better_in_its_own_run(outputs):
    images = outputs(accuracy=0.9), outputs(accuracy=0.8, seed=1)
    assert "own run reports 95.0% on its validation images, here it has 80.0%" in warned(*images, 0.95)
    assert "own run" not in warned(*images, 0.82)


# ---- labels and embeddings -----------------------------------------------------------------------------------------


def seen(logits, target, teacher=None, student=None, digests=None):
    teacher = torch.randn(len(target), 4) if teacher is None else teacher
    student = teacher if student is None else student
    digests = digests or [bytes([k // 256, k % 256]) for k in range(len(target))]
    names = [f"image {k}" for k in range(len(target))]
    return Sample(target, logits, teacher, student, student, digests, names, True)


def test_conflicts_are_counted_and_the_surest_come_first():
    target = torch.tensor([0, 1, 2, 1, 1])
    heights = torch.tensor([9.0, 8.0, 9.0, 7.0, 1.0])
    said = torch.tensor([0, 2, 2, 2, 0])  # the last one without being sure
    logits = F.one_hot(said, 3) * heights[:, None]
    found = label_conflicts(seen(logits, target), None, ["cat", "dog", "hen"])
    assert (found.images, found.count, found.pairs) == (5, 2, [("dog", "hen", 2)])
    assert [row[:3] for row in found.worst] == [("image 1", "dog", "hen"), ("image 3", "dog", "hen")]
    assert found.worst[0][3] > found.worst[1][3] > 0.9


def test_identical_images_are_found():
    target = torch.tensor([0, 1, 0, 0, 1])
    digests = [b"a", b"a", b"b", b"b", b"c"]
    training = seen(None, target, digests=digests)
    validation = seen(None, target[:2], digests=[b"c", b"x"])
    found = label_conflicts(training, validation, ["cat", "dog"])
    assert found.twins == [["image 0", "image 1"]]  # of b the labels agree
    assert found.leaked == ["image 4"]
    assert found.count == 0


def test_class_means_that_nearly_coincide_are_named():
    directions = F.normalize(torch.tensor([[1.0, 0, 0, 0], [1, 0.02, 0, 0], [0, 0, 1, 0]]), dim=1)
    target = torch.arange(30) % 3
    teacher = 5 * directions[target] + 1e-3 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    images = seen(None, target, teacher, 2 * teacher)
    names = ["cat", "dog", "hen", "fox"]
    means, absent = class_means(images, names, 4)
    assert absent == ["fox"]
    found = embeddings(images, means, names, absent)
    assert [pair[:2] for pair in found.coinciding] == [("cat", "dog")]
    assert found.coinciding[0][2] == pytest.approx(1.15, abs=0.1)
    assert len(found.between) == 3
    assert found.between.max().item() == pytest.approx(90, abs=0.5)
    assert found.statistics["teacher_norm_mean"] == pytest.approx(5, rel=1e-3)
    assert found.statistics["student_norm_mean"] == pytest.approx(10, rel=1e-3)
    assert found.statistics["relative_norm"] == pytest.approx(2, rel=1e-3)
    assert found.limit == 5


def test_wide_classes_coincide_sooner():
    """Half of the angle between an image and its mean is the limit."""
    random = torch.Generator().manual_seed(0)
    target = torch.arange(400) % 2
    teacher = torch.tensor([[1.0, 0, 0, 0], [1, 0.1, 0, 0]])[target] + 0.3 * torch.randn(400, 4, generator=random)
    images = seen(None, target, teacher)
    means, absent = class_means(images, ["cat", "dog"], 2)
    found = embeddings(images, means, ["cat", "dog"], absent)
    assert found.limit == pytest.approx(found.statistics["teacher_angle_mean"] / 2)
    assert found.coinciding


def test_embeddings_of_another_width_have_no_angle():
    target = torch.arange(30) % 3
    images = seen(None, target, torch.randn(30, 4), torch.randn(30, 2))
    means, absent = class_means(images, list("abc"), 3)
    found = embeddings(images, means, list("abc"), absent)
    assert "angle_mean" not in found.statistics
    assert found.statistics["student_norm_mean"] > 0


def test_one_class_alone_has_no_angle_between():
    images = SimpleNamespace(**vars(seen(None, torch.zeros(5, dtype=torch.long))))
    means, absent = class_means(images, ["cat", "dog"], 2)
    found = embeddings(images, means, ["cat", "dog"], absent)
    assert len(found.between) == 0
    assert (found.nearest, found.coinciding) == ([], [])
