"""SIFN: a constant value, and a gradient along the embedding."""

import pytest
import torch

from ndkd.losses import SIFNLoss, sifn_loss


def naive(student, step):
    losses = [(s.norm() - (s.norm().item() + step)) ** 2 for s in student]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("step", [1.0, 0.25, 2.0])
def test_naive_reference(agree, value_and_grad, inputs_of, step):
    (student,) = inputs_of(SIFNLoss)
    agree(SIFNLoss(step), lambda s: naive(s, step), student)
    value, gradient = value_and_grad(sifn_loss, student, step)
    torch.testing.assert_close(value, torch.tensor(step**2), rtol=1e-5, atol=0)
    radial = -2 * step * student / (len(student) * student.norm(dim=1, keepdim=True))
    torch.testing.assert_close(gradient, radial, rtol=1e-5, atol=1e-6)


def test_no_gradient_at_the_origin(value_and_grad):
    value, gradient = value_and_grad(sifn_loss, torch.zeros(3, 4))
    assert value == 1
    assert not gradient.any()


@pytest.mark.parametrize("shape", [(6,), (6, 4, 1, 1)])
def test_wrong_shape(rejected, shape):
    rejected(
        SIFNLoss(), {"student.embedding": torch.zeros(shape)}, f"wanted a tensor (N, D), got student_embedding {shape}"
    )
