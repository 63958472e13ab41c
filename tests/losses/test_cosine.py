"""The cosine distance to the class mean against a loop over samples."""

import torch

from ndkd.losses import CosineLoss, cosine_loss


def cosine(a, b):
    return a @ b / (a.norm() * b.norm())


def naive(student, class_means, target):
    means = [class_means[k] if k.ndim == 0 else k @ class_means for k in target]
    return sum(1 - cosine(s, mean) for s, mean in zip(student, means, strict=True)) / len(student)


def test_naive_reference(agree, inputs_of, target):
    agree(cosine_loss, naive, *inputs_of(CosineLoss, {"target": target}))


def test_direction_alone_counts(agree, inputs_of):
    student, class_means, target = inputs_of(CosineLoss)
    agree(lambda s, *rest: cosine_loss(7 * s, *rest), cosine_loss, student, class_means, target)
    agree(lambda s, means, k: cosine_loss(s, 7 * means, k), cosine_loss, student, class_means, target)


def test_smallest_norm():
    student, class_means, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    assert CosineLoss()(student, class_means, target) == 0
    assert CosineLoss(eps=2.0)(student, class_means, target) == 1
