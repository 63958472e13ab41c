"""Soft and hard distillation from logits against a loop over samples."""

import pytest
import torch

from ndkd.losses import HardKDLoss, KDLoss, hard_kd_loss, kd_loss


def naive_kd(student, teacher, temperature):
    total = 0
    for s, t in zip(student, teacher, strict=True):
        p, q = ((row / temperature).exp() / (row / temperature).exp().sum() for row in (t, s))
        total = total + sum(p[c] * (p[c].log() - q[c].log()) for c in range(len(p)))
    return total / len(student) * temperature**2


def naive_hard_kd(student, teacher):
    losses = [-(s.exp() / s.exp().sum()).log()[t.tolist().index(max(t))] for s, t in zip(student, teacher, strict=True)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_naive_kd(agree, inputs_of, temperature):
    agree(KDLoss(temperature), lambda s, t: naive_kd(s, t, temperature), *inputs_of(KDLoss))


def test_naive_hard_kd(agree, inputs_of):
    agree(hard_kd_loss, naive_hard_kd, *inputs_of(HardKDLoss))


def test_kd_is_0_at_the_teachers_distribution(value_and_grad, inputs_of):
    _, teacher = inputs_of(KDLoss)
    value, gradient = value_and_grad(kd_loss, teacher + 3, teacher)
    torch.testing.assert_close(value, torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, torch.zeros_like(teacher), rtol=0, atol=1e-5)
