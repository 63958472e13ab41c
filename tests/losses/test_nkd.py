"""NKD against a loop over samples, values worked out by hand, and what its gradient does."""

import pytest
import torch

from ndkd.losses import NKDLoss, nkd_loss


def naive(student, teacher, target, gamma, temperature):
    total = 0
    for s, t, k in zip(student, teacher, target.tolist(), strict=True):
        rest = [c for c in range(len(s)) if c != k]
        sizes = [sum((row[c] / temperature).exp() for c in rest) for row in (s, t)]
        total = total - (t[k].exp() / t.exp().sum()) * (s[k].exp() / s.exp().sum()).log()
        for c in rest:
            of_student, of_teacher = (
                (row[c] / temperature).exp() / size for row, size in zip((s, t), sizes, strict=True)
            )
            total = total - gamma * temperature**2 * of_teacher * of_student.log()
    return total / len(student)


@pytest.mark.parametrize("options", [(1.5, 1.0), (3.5, 3.0), (0.0, 2.0), (0.5, 0.7)])
def test_naive_reference(agree, inputs_of, options):
    agree(NKDLoss(*options), lambda *arguments: naive(*arguments, *options), *inputs_of(NKDLoss))


def test_by_hand():
    """Two images of three classes with probabilities that can be read off, gamma 2, T = 1.

    Image 1, target 0: the teacher's probabilities (5, 3, 2)/10, the student's (2, 4, 4)/10. Target: 0.5 log(1/0.2)
    = 0.8047. Among the others the teacher says (3/5, 2/5), the student (1/2, 1/2): log 2 = 0.6931, twice 1.3863.
    Image 2, target 1: (1, 8, 1)/10 and (6, 1, 3)/10. Target: 0.8 log 10 = 1.8421. Others: (1/2, 1/2) and (2/3, 1/3):
    (log 1.5 + log 3)/2 = 0.7520, twice 1.5041. The mean of 2.1910 and 3.3462 is 2.7686.
    """
    teacher, student = torch.tensor([[5.0, 3, 2], [1, 8, 1]]).log(), torch.tensor([[2.0, 4, 4], [6, 1, 3]]).log()
    value = nkd_loss(student, teacher, torch.tensor([0, 1]), gamma=2)
    torch.testing.assert_close(value, torch.tensor(2.7686), rtol=0, atol=1e-4)


def test_the_temperature_is_that_of_the_other_classes_alone():
    """The first image above at T = 2: the others' (√3, √2) and (1, 1) still have the cross-entropy log 2, times T²."""
    teacher, student = torch.tensor([[5.0, 3, 2]]).log(), torch.tensor([[2.0, 4, 4]]).log()
    value = nkd_loss(student, teacher, torch.tensor([0]), gamma=1, temperature=2)
    torch.testing.assert_close(value, torch.tensor(0.8047 + 4 * 0.6931), rtol=0, atol=1e-3)


def test_where_the_others_agree_they_have_no_gradient(value_and_grad, inputs_of):
    student, _, target = inputs_of(NKDLoss)
    at_target = torch.nn.functional.one_hot(target, 5).bool()
    _, gradient = value_and_grad(lambda s: nkd_loss(s, student, target, 2) - nkd_loss(s, student, target, 0), student)
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-6)
    _, gradient = value_and_grad(nkd_loss, student, torch.randn(6, 5), target)
    assert (gradient[at_target] < 0).all()  # the target's probability always grows


@pytest.mark.parametrize("shift", [-50.0, 3.0])
def test_a_shift_of_all_logits_changes_nothing(inputs_of, shift):
    student, teacher, target = inputs_of(NKDLoss)
    shifted = nkd_loss(student + shift, teacher - shift, target)
    torch.testing.assert_close(shifted, nkd_loss(student, teacher, target), rtol=1e-5, atol=1e-5)


def test_the_largest_share_of_a_soft_label_is_the_target(agree, inputs_of):
    student, teacher, _ = inputs_of(NKDLoss)
    soft = torch.tensor([[0.3, 0.7, 0, 0, 0]] * 5 + [[0.5, 0, 0, 0.5, 0]])
    hard = torch.tensor([1] * 5 + [0])  # the first of several
    agree(lambda s, t: nkd_loss(s, t, soft), lambda s, t: nkd_loss(s, t, hard), student, teacher)
