"""Distributions made of logits: standardised logits, one class against the rest, some classes among themselves."""

import pytest
import torch

from ndkd.losses import DKDLoss, KDLoss, dkd_loss, kd_loss
from ndkd.losses.logits import divergence, log_among, log_one_against_rest, standardized

LSKD = {KDLoss: kd_loss, DKDLoss: dkd_loss}
both = pytest.mark.parametrize("loss_class", LSKD)


def naive(row):
    """One sample's logits, by the two-pass formula with C - 1."""
    mean = sum(row) / len(row)
    deviation = (sum((value - mean) ** 2 for value in row) / (len(row) - 1)) ** 0.5
    return torch.stack([(value - mean) / (1e-7 + deviation) for value in row])


def test_naive_reference(agree):
    agree(
        lambda logits: (standardized(logits) ** 3).sum(),
        lambda logits: sum((naive(row) ** 3).sum() for row in logits),
        torch.randn(6, 5),
    )


def test_by_hand():
    """First row: mean 3, squares 4 + 1 + 9 = 14, C - 1 = 2, so deviation √7. Second row: mean 0, deviation 1."""
    found = standardized(torch.tensor([[1.0, 2.0, 6.0], [1.0, 0.0, -1.0]]))
    wanted = torch.tensor([[-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5], [1.0, 0.0, -1.0]])
    torch.testing.assert_close(found, wanted)


def test_lskd_by_hand():
    """Two images at temperature 2; of the second the student's logits are the teacher's times 3.

    First image: the student's (0, 0, 3) has mean 1 and deviation √3, so (-1, -1, 2)/√3; the teacher's (3, 0, 0) is
    (2, -1, -1)/√3. With a = exp(1/√3) = 1.7813, b = exp(-1/(2√3)) = 0.7493 and Z = a + 2 b = 3.2799 the divergence, the
    sum of p log(p/q), is (a/Z) log(a/b) + (b/Z) log(b/a) = (a - b)/Z · √3/2 = 0.3147 · 0.8660 = 0.2725. The second
    image adds 0; the mean halves the sum and T² = 4: 0.5450.
    """
    student, teacher = (
        torch.tensor([[0.0, 0.0, 3.0], [3.0, 9.0, 0.0]]),
        torch.tensor([[3.0, 0.0, 0.0], [1.0, 3.0, 0.0]]),
    )
    value = kd_loss(student, teacher, temperature=2, standardize=True)
    torch.testing.assert_close(value, torch.tensor(0.5450), rtol=0, atol=1e-4)


@both
def test_standardised_logits_by_hand_are_the_option(agree, inputs_of, loss_class):
    function = LSKD[loss_class]
    student, *rest = inputs_of(loss_class)
    agree(
        lambda s, t, *target: function(s, t, *target, temperature=2, standardize=True),
        lambda s, t, *target: function(standardized(s), standardized(t), *target, temperature=2),
        *(student, *rest),
    )


@both
@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (1.0, -7.0), (0.25, 100.0)])
def test_neither_scale_nor_shift_matters(inputs_of, loss_class, scale, shift):
    loss = loss_class(temperature=2, standardize=True)
    student, teacher, *target = inputs_of(loss_class)
    plain = loss(student, teacher, *target)
    torch.testing.assert_close(loss(scale * student + shift, teacher, *target), plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(student, scale * teacher + shift, *target), plain, rtol=1e-4, atol=1e-6)
    changed = loss_class(temperature=2)(scale * student + shift, teacher, *target)
    assert scale == 1 or not torch.allclose(changed, loss_class(temperature=2)(student, teacher, *target), rtol=0.01)


@both
def test_the_gradient_moves_neither_scale_nor_mean(value_and_grad, inputs_of, loss_class):
    student, *rest = inputs_of(loss_class)
    _, gradient = value_and_grad(loss_class(temperature=2, standardize=True), student, *rest)
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(6), rtol=0, atol=1e-6)
    torch.testing.assert_close((gradient * student).sum(dim=1), torch.zeros(6), rtol=0, atol=1e-6)


@both
@pytest.mark.parametrize("level", [0.0, 0.1, 1e4, -3e7])
def test_equal_logits_in_all_classes_have_no_gradient(value_and_grad, inputs_of, loss_class, level):
    student, *rest = inputs_of(loss_class)
    loss = loss_class(temperature=2, standardize=True)
    value, gradient = value_and_grad(loss, torch.full_like(student, level), *rest)
    torch.testing.assert_close(value, loss(torch.zeros_like(student), *rest))
    assert value.isfinite()
    assert not gradient.any()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_and_half_precision(value_and_grad, inputs_of, loss_class, dtype):
    student, teacher, *target = inputs_of(loss_class)
    inputs = [student.to(dtype), teacher.to(dtype), *target]
    loss = loss_class(temperature=2, standardize=True)
    found = value_and_grad(torch.autocast("cpu", dtype=torch.bfloat16)(loss.forward), *inputs)
    wanted, gradient = value_and_grad(loss, *(tensor.float() for tensor in inputs[:2]), *target)
    assert (found[0].dtype, found[1].dtype) == (torch.float32, dtype)
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1].float(), gradient, rtol=torch.finfo(dtype).eps, atol=1e-5)


@both
def test_compiles_without_graph_break(inputs_of, loss_class):
    loss, inputs = loss_class(temperature=2, standardize=True), inputs_of(loss_class)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))


@both
def test_step_on_tensors_without_values(inputs_of, loss_class):
    inputs = [tensor.to("meta") for tensor in inputs_of(loss_class)]
    value = loss_class(standardize=True)(inputs[0].requires_grad_(), *inputs[1:])
    value.backward()
    assert inputs[0].grad.shape == inputs[0].shape


def test_a_single_class():
    assert torch.equal(standardized(torch.tensor([[3.0]])), torch.tensor([[0.0]]))


def test_one_against_the_rest():
    """Of logits log 1, log 2, log 5 the second class has 2 of 8."""
    logits, is_one = torch.tensor([[1.0, 2.0, 5.0]]).log(), torch.tensor([[False, True, False]])
    torch.testing.assert_close(log_one_against_rest(logits, is_one).exp(), torch.tensor([[0.25, 0.75]]))


@pytest.mark.parametrize(
    ("is_left_out", "wanted"),
    [
        ((False, True, False), (1 / 6, 1.0, 5 / 6)),
        ((True, True, False), (1.0, 1.0, 1.0)),
        ((True, True, True), (1.0, 1.0, 1.0)),
        ((False, False, False), (1 / 8, 2 / 8, 5 / 8)),
    ],
)
def test_among_the_classes_that_are_not_left_out(is_left_out, wanted):
    """Log-probability 0 stands for the classes that are left out."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    torch.testing.assert_close(log_among(logits, torch.tensor([is_left_out])).exp(), torch.tensor([wanted]))


def test_classes_left_out_add_no_divergence(value_and_grad):
    is_left_out = torch.tensor([[False, True, True, False, True], [True] * 5])
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    value, gradient = value_and_grad(
        lambda s: divergence(log_among(s, is_left_out), log_among(teacher, is_left_out)), student
    )
    p, q = (logits[0, [0, 3]].softmax(dim=0) for logits in (teacher, student))
    torch.testing.assert_close(value, (p * (p / q).log()).sum() / 2)
    assert not gradient[is_left_out].any()
    assert gradient[~is_left_out].all()
