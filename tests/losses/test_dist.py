"""DIST against correlations computed pair by pair."""

import pytest
import torch

from ndkd.losses import DISTLoss, dist_loss


def correlation(a, b):
    return torch.corrcoef(torch.stack([a, b]))[0, 1]


def naive(student, teacher, beta, gamma, temperature):
    powers = ((logits / temperature).exp() for logits in (student, teacher))
    p, q = (power / power.sum(dim=1, keepdim=True) for power in powers)
    within_samples = [1 - correlation(a, b) for a, b in zip(p, q, strict=True)]
    within_classes = [1 - correlation(a, b) for a, b in zip(p.T, q.T, strict=True)]
    inter, intra = (sum(losses) / len(losses) for losses in (within_samples, within_classes))
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize("options", [(2.0, 2.0, 4.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.5, 3.0, 2.0)])
def test_naive_reference(agree, inputs_of, options):
    agree(DISTLoss(*options), lambda *arguments: naive(*arguments, *options), *inputs_of(DISTLoss))


def test_eps_is_added_to_the_product_of_norms():
    student, teacher = torch.tensor([[2e-4, 0.0]]), torch.tensor([[1e-4, 0.0]])
    value = dist_loss(student, teacher, beta=1.0, gamma=0.0, temperature=1.0)
    a, b = (logits.softmax(dim=1)[0] - 0.5 for logits in (student, teacher))
    torch.testing.assert_close(value, 1 - a @ b / (a.norm() * b.norm() + 1e-8), rtol=1e-4, atol=0)
    assert value > 0.5  # 0 without eps


def test_equal_logits_in_all_classes(value_and_grad):
    value, gradient = value_and_grad(dist_loss, torch.zeros(3, 4), torch.zeros(3, 4))
    torch.testing.assert_close(value, torch.tensor(64.0))
    assert gradient.isfinite().all()
