"""Decoupled distillation: its two parts against a loop over samples, and together plain distillation."""

import pytest

from ndkd.losses import DKDLoss, dkd_loss, kd_loss


def divergence(p, q):
    return sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))


def split(logits, k):
    """Probabilities of (class k, the others), and of each other class among them."""
    p = logits.exp() / logits.exp().sum()
    others = [p[c] for c in range(len(p)) if c != k]
    return (p[k], sum(others)), [value / sum(others) for value in others]


def naive(student, teacher, target, alpha, beta, temperature):
    total = 0
    for s, t, k in zip(student / temperature, teacher / temperature, target.tolist(), strict=True):
        (student_binary, student_rest), (teacher_binary, teacher_rest) = split(s, k), split(t, k)
        total = (
            total + alpha * divergence(teacher_binary, student_binary) + beta * divergence(teacher_rest, student_rest)
        )
    return total / len(student) * temperature**2


@pytest.mark.parametrize("options", [(1.0, 8.0, 4.0), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0), (0.5, 2.5, 0.7)])
def test_naive_reference(agree, inputs_of, options):
    agree(DKDLoss(*options), lambda *arguments: naive(*arguments, *options), *inputs_of(DKDLoss))


def test_weighted_by_the_teachers_rest_it_is_plain_distillation(agree, inputs_of):
    student, teacher, target = (tensor[:1] for tensor in inputs_of(DKDLoss))
    rest = 1 - (teacher / 2).softmax(dim=1)[0, target[0]].item()
    agree(
        lambda s, t: dkd_loss(s, t, target, alpha=1.0, beta=rest, temperature=2.0),
        lambda s, t: kd_loss(s, t, temperature=2.0),
        *(student, teacher),
    )
