"""RLD against a loop over samples, values worked out by hand, and which classes of the teacher count."""

import pytest
import torch

from ndkd.losses import RLDLoss, dkd_loss, rld_loss


def divergence(p, q):
    return sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))


def binary(logits, k):
    p = logits.exp() / logits.exp().sum()
    return p[k], sum(value for c, value in enumerate(p) if c != k)


def naive(student, teacher, target, alpha, beta, temperature, alpha_temperature):
    total = 0
    for s, t, k in zip(student, teacher, target.tolist(), strict=True):
        likeliest = max(range(len(t)), key=lambda c: t[c])
        confidence = divergence(binary(t / alpha_temperature, likeliest), binary(s / alpha_temperature, k))
        total = total + alpha * alpha_temperature**2 * confidence
        below = [c for c in range(len(t)) if t[c] < t[k]]
        if below:
            p, q = ((row[below] / temperature).exp() for row in (t, s))
            total = total + beta * temperature**2 * divergence(p / p.sum(), q / q.sum())
    return total / len(student)


@pytest.mark.parametrize(
    "options",
    [(1.0, 8.0, 4.0, 1.0), (1.0, 8.0, 4.0, 4.0), (1.0, 0.0, 1.0, 2.0), (0.0, 1.0, 2.0, 1.0), (0.5, 2.5, 0.7, 3.0)],
)
def test_naive_reference(agree, inputs_of, options):
    agree(RLDLoss(*options), lambda *arguments: naive(*arguments, *options), *inputs_of(RLDLoss))


def test_by_hand():
    """Two images of three classes at temperature 1, alpha 1, beta 2.

    Image 1, target 0, which the teacher finds likeliest: (5, 3, 2)/10 against the student's (2, 4, 4)/10. Confidence:
    0.5 log(0.5/0.2) + 0.5 log(0.5/0.8) = 0.2231. Below the target both others: (3/5, 2/5) against (1/2, 1/2):
    0.6 log 1.2 + 0.4 log 0.8 = 0.0201. Image 2, target 2, which it ranks second: (7, 1, 2)/10 against (6, 3, 1)/10. Its
    confidence 0.7 goes to the target: 0.7 log(0.7/0.1) + 0.3 log(0.3/0.9) = 1.0326. Below it is class 1 alone: 0.
    Together (0.2231 + 2 · 0.0201 + 1.0326)/2 = 0.6480.
    """
    teacher, student = torch.tensor([[5.0, 3, 2], [7, 1, 2]]).log(), torch.tensor([[2.0, 4, 4], [6, 3, 1]]).log()
    value = rld_loss(student, teacher, torch.tensor([0, 2]), alpha=1, beta=2, temperature=1)
    torch.testing.assert_close(value, torch.tensor(0.6480), rtol=0, atol=1e-4)


def test_where_the_teacher_is_right_it_is_dkd(agree, inputs_of):
    student, teacher, _ = inputs_of(RLDLoss)
    target = teacher.argmax(dim=1)
    agree(
        lambda s, t: rld_loss(s, t, target, 0.5, 2.0, temperature=3.0, alpha_temperature=3.0),
        lambda s, t: dkd_loss(s, t, target, 0.5, 2.0, temperature=3.0),
        *(student, teacher),
    )


def test_the_order_of_the_classes_above_the_target_does_not_matter():
    """Of them the teacher's highest probability alone counts, and not whose it is."""
    student, target = torch.randn(1, 5), torch.tensor([2])
    found = rld_loss(student, torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]), target)
    torch.testing.assert_close(rld_loss(student, torch.tensor([[3.0, 4.0, 2.0, 1.0, 0.0]]), target), found)
    assert not torch.allclose(rld_loss(student, torch.tensor([[4.0, 3.0, 2.0, 0.0, 1.0]]), target), found, rtol=0.01)


@pytest.mark.parametrize("teacher", [(0.0, 1.0, 2.0), (1.0, 1.0, 1.0), (1.0, 1.0, 3.0)], ids=["last", "all", "two"])
def test_a_target_with_no_class_below_it(value_and_grad, teacher):
    student, target = torch.randn(1, 3), torch.tensor([0])
    options = {"alpha": 0.0, "beta": 8.0}
    value, gradient = value_and_grad(lambda s: rld_loss(s, torch.tensor([teacher]), target, **options), student)
    assert value == 0
    assert not gradient.any()


def test_a_shift_of_all_logits_changes_nothing(inputs_of):
    student, teacher, target = inputs_of(RLDLoss)
    shifted = rld_loss(student + 30, teacher - 7, target)
    torch.testing.assert_close(shifted, rld_loss(student, teacher, target), rtol=1e-4, atol=1e-5)
