"""The distance to the teacher's embedding against a loop over samples."""

import torch

from ndkd.losses import L2Loss, l2_loss


def naive(student, teacher):
    return sum((s - t).square().sum().sqrt() for s, t in zip(student, teacher, strict=True)) / len(student)


def test_naive_reference(agree, inputs_of):
    agree(l2_loss, naive, *inputs_of(L2Loss))


def test_where_the_embeddings_are_equal(value_and_grad):
    value, gradient = value_and_grad(l2_loss, torch.ones(3, 4), torch.ones(3, 4))
    assert value == 0
    assert not gradient.any()
