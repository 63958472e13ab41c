"""InfoNCE over class means against a loop over samples."""

import pytest
import torch

from ndkd.losses import InfoNCELoss, infonce_loss
from tests.losses.test_cosine import cosine


def naive(student, class_means, target, temperature):
    total = 0
    for s, k in zip(student, target, strict=True):
        scores = torch.stack([(cosine(s, mean) / temperature).exp() for mean in class_means])
        probability = scores / scores.sum()
        total = total - (probability[k].log() if k.ndim == 0 else (k * probability.log()).sum())
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_naive_reference(agree, inputs_of, target, temperature):
    arguments = inputs_of(InfoNCELoss, {"target": target})
    agree(InfoNCELoss(temperature), lambda *inputs: naive(*inputs, temperature), *arguments)


def test_soft_targets_are_the_mixture_of_the_hard_ones(inputs_of):
    student, class_means, _ = inputs_of(InfoNCELoss)
    soft = torch.rand(5).softmax(dim=0)
    hard = [infonce_loss(student, class_means, torch.full((6,), k)) for k in range(5)]
    torch.testing.assert_close(infonce_loss(student, class_means, soft.expand(6, 5)), soft @ torch.stack(hard))


def test_direction_alone_counts(agree, inputs_of):
    student, class_means, target = inputs_of(InfoNCELoss)
    agree(lambda s, *rest: infonce_loss(7 * s, *rest), infonce_loss, student, class_means, target)
    agree(lambda s, means, k: infonce_loss(s, 7 * means, k), infonce_loss, student, class_means, target)
