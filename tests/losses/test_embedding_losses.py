"""Cosine, InfoNCE and L2 against a loop over samples."""

import pytest
import torch

from ndkd.losses import CosineLoss, InfoNCELoss, L2Loss, cosine_loss, infonce_loss, l2_loss


def cosine(a, b):
    return a @ b / (a.norm() * b.norm())


def naive_cosine(student, class_means, target):
    means = [class_means[k] if k.ndim == 0 else k @ class_means for k in target]
    return sum(1 - cosine(s, mean) for s, mean in zip(student, means, strict=True)) / len(student)


def naive_infonce(student, class_means, target, temperature):
    total = 0
    for s, k in zip(student, target, strict=True):
        scores = torch.stack([(cosine(s, mean) / temperature).exp() for mean in class_means])
        probability = scores / scores.sum()
        total = total - (probability[k].log() if k.ndim == 0 else (k * probability.log()).sum())
    return total / len(student)


def naive_l2(student, teacher):
    return sum((s - t).square().sum().sqrt() for s, t in zip(student, teacher, strict=True)) / len(student)


@pytest.fixture(params=["hard", "soft"])
def target(request, tensors):
    """Class indices, and soft labels that mix the classes."""
    return tensors["target"] if request.param == "hard" else torch.rand(6, 5).softmax(dim=1)


def test_naive_cosine(agree, inputs_of, target):
    agree(cosine_loss, naive_cosine, *inputs_of(CosineLoss, {"target": target}))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_naive_infonce(agree, inputs_of, target, temperature):
    arguments = inputs_of(InfoNCELoss, {"target": target})
    agree(InfoNCELoss(temperature), lambda *inputs: naive_infonce(*inputs, temperature), *arguments)


def test_naive_l2(agree, inputs_of):
    agree(l2_loss, naive_l2, *inputs_of(L2Loss))


def test_soft_infonce_is_the_mixture_of_the_hard_ones(inputs_of):
    student, class_means, _ = inputs_of(InfoNCELoss)
    soft = torch.rand(5).softmax(dim=0)
    hard = [infonce_loss(student, class_means, torch.full((6,), k)) for k in range(5)]
    torch.testing.assert_close(infonce_loss(student, class_means, soft.expand(6, 5)), soft @ torch.stack(hard))


@pytest.mark.parametrize("loss", [cosine_loss, infonce_loss])
def test_direction_alone_counts(agree, inputs_of, loss):
    student, class_means, target = inputs_of(CosineLoss)
    agree(lambda s, *rest: loss(7 * s, *rest), loss, student, class_means, target)
    agree(lambda s, means, k: loss(s, 7 * means, k), loss, student, class_means, target)


def test_cosine_smallest_norm():
    student, class_means, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    assert cosine_loss(student, class_means, target) == 0
    assert cosine_loss(student, class_means, target, eps=2.0) == 1


def test_l2_where_the_embeddings_are_equal(value_and_grad):
    value, gradient = value_and_grad(l2_loss, torch.ones(3, 4), torch.ones(3, 4))
    assert value == 0
    assert not gradient.any()
