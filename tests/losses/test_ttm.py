"""TTM and WTTM against a loop over samples, values worked out by hand, and their kinship with KD."""

import pytest
import torch

from ndkd.losses import TTMLoss, WTTMLoss, kd_loss, ttm_loss, wttm_loss

FUNCTIONS = {TTMLoss: ttm_loss, WTTMLoss: wttm_loss}
both = pytest.mark.parametrize("loss_class", FUNCTIONS)


def naive(student, teacher, gamma, is_weighted):
    total = 0
    for s, t in zip(student, teacher, strict=True):
        p, q = (row.exp() / row.exp().sum() for row in (t, s))
        normaliser = sum(value**gamma for value in p)
        transformed = [value**gamma / normaliser for value in p]
        divergence = sum(a * (a / b).log() for a, b in zip(transformed, q, strict=True))
        total = total + (normaliser if is_weighted else 1) * divergence
    return total / len(student)


@both
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_naive_reference(agree, inputs_of, loss_class, gamma):
    is_weighted = loss_class is WTTMLoss
    agree(loss_class(gamma), lambda s, t: naive(s, t, gamma, is_weighted), *inputs_of(loss_class))


@pytest.mark.parametrize(("loss", "wanted"), [(ttm_loss, 0.0734), (wttm_loss, 0.1222)])
def test_by_hand(loss, wanted):
    """Two images of three classes at gamma = 1/2: the power is a square root.

    Image 1: the teacher's (4, 1, 4)/9 has roots (2, 1, 2)/3, so U = 5/3 and the transform is (2, 1, 2)/5; the student
    says (1, 2, 2)/5. Divergence: 0.4 log 2 + 0.2 log(1/2) = 0.2 log 2 = 0.1386. Image 2: (1, 4, 1)/6 has roots
    (1, 2, 1)/√6, so U = 4/√6 = 1.6330 and (1, 2, 1)/4, and the student says (3, 6, 4)/13: 0.75 log(13/12) +
    0.25 log(13/16) = 0.75 · 0.0800 - 0.25 · 0.2076 = 0.0081. The means: (0.1386 + 0.0081)/2 = 0.0734, and weighed by U
    (0.2310 + 0.0133)/2 = 0.1222.
    """
    teacher, student = torch.tensor([[4.0, 1, 4], [1, 4, 1]]).log(), torch.tensor([[1.0, 2, 2], [3, 6, 4]]).log()
    torch.testing.assert_close(loss(student, teacher, gamma=0.5), torch.tensor(wanted), rtol=0, atol=1e-4)


@both
def test_at_power_1_it_is_plain_distillation(agree, inputs_of, loss_class):
    loss = FUNCTIONS[loss_class]
    agree(lambda s, t: loss(s, t, gamma=1.0), lambda s, t: kd_loss(s, t, temperature=1.0), *inputs_of(loss_class))


def test_the_power_is_the_teachers_temperature(agree, inputs_of):
    agree(lambda s, t: ttm_loss(s, t, gamma=0.25), lambda s, t: kd_loss(s, t / 4, temperature=1.0), *inputs_of(TTMLoss))


@both
def test_zero_at_the_transformed_teacher(value_and_grad, inputs_of, loss_class):
    _, teacher = inputs_of(loss_class)
    value, gradient = value_and_grad(loss_class(0.2), 0.2 * teacher + 3, teacher)
    torch.testing.assert_close(value, torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(teacher), rtol=0, atol=1e-6)


@both
def test_a_shift_of_all_logits_changes_nothing(inputs_of, loss_class):
    student, teacher = inputs_of(loss_class)
    loss = loss_class()
    torch.testing.assert_close(loss(student + 30, teacher - 7), loss(student, teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("teacher", "weight"), [((0.0, 0.0, 0.0, 0.0), 4**0.8), ((1e4, 0.0, 0.0, 0.0), 1.0)])
def test_the_weight_is_largest_where_the_teacher_knows_least(teacher, weight):
    student, teacher = torch.tensor([[1.0, -1, 0, 2]]), torch.tensor([teacher])
    torch.testing.assert_close(wttm_loss(student, teacher, 0.2), weight * ttm_loss(student, teacher, 0.2))
