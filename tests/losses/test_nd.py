"""The ND loss: its value, and where its gradient turns the embedding and where it lets the norm grow."""

import pytest
import torch
from torch.nn import functional as F

from ndkd.losses import NDLoss, nd_loss


def naive(student, teacher, class_means, target, eps=1e-8):
    losses = []
    for s, t, k in zip(student, teacher, target, strict=True):
        mean = class_means[k] if k.ndim == 0 else sum(w * row for w, row in zip(k, class_means, strict=True))
        norm = max(s.norm(), t.norm())  # the first, the student's, where they are equal
        losses.append(1 - s @ (mean / mean.norm()) / norm if norm >= eps else torch.tensor(1.0))
    return sum(losses) / len(losses)


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def grad(value_and_grad):
    """Gradient of the ND loss with respect to the student's embedding."""
    return lambda *arguments: value_and_grad(nd_loss, *arguments)[1]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("eps", "below_eps"), [(1e-8, 1), (8.0, 3)])
def test_naive_reference(agree, inputs_of, soft, eps, below_eps):
    student, teacher, class_means, target = inputs_of(NDLoss, {"target": torch.rand(6, 5)} if soft else {})
    student[0] = teacher[0] = 0
    assert (torch.maximum(student.norm(dim=1), teacher.norm(dim=1)) < eps).sum() == below_eps
    agree(NDLoss(eps), lambda *arguments: naive(*arguments, eps), student, teacher, 9 * class_means, target)


def test_gradient_below_the_teachers_norm(inputs_of, grad):
    student, teacher, class_means, target = inputs_of(NDLoss)
    below = student.norm(dim=1) < teacher.norm(dim=1)
    direction = (class_means / class_means.norm(dim=1, keepdim=True))[target]
    wanted = -direction / teacher.norm(dim=1, keepdim=True) / len(student)
    assert below.tolist() == [True, True, True, False, False, False]
    torch.testing.assert_close(grad(student, teacher, class_means, target)[below], wanted[below])


def test_no_radial_gradient_from_the_teachers_norm_on(inputs_of, grad):
    student, teacher, class_means, target = inputs_of(NDLoss)
    above = student.norm(dim=1) >= teacher.norm(dim=1)
    gradient = grad(student, teacher, class_means, target)
    radial = ((gradient * student).sum(dim=1) / (gradient.norm(dim=1) * student.norm(dim=1))).abs()
    assert radial[above].max() < 1e-5
    assert radial[~above].min() > 1e-3
    assert gradient.norm(dim=1).min() > 1e-3


def test_tie_of_the_norms_is_the_students(grad):
    student, target = torch.tensor([[3.0, 4.0]]), torch.tensor([0])
    class_means = torch.tensor([[0.0, 2.0]])
    tie, shorter_teacher = (grad(student, torch.tensor([[t, 0.0]]), class_means, target) for t in (5.0, 1.0))
    torch.testing.assert_close(tie, torch.tensor([[0.096, -0.072]]))  # -(e - s <s, e> / 25) / 5
    assert torch.equal(tie, shorter_teacher)


def test_both_norms_0(value_and_grad, inputs_of):
    student, teacher, class_means, target = inputs_of(NDLoss)
    arguments = torch.zeros(6, 64), torch.zeros(6, 64), class_means, target
    value, gradient = value_and_grad(nd_loss, *arguments)
    assert value == 1
    assert not gradient.any()
    alone = nd_loss(student[1:], teacher[1:], class_means, target[1:])
    student[0] = teacher[0] = 0
    value, gradient = value_and_grad(nd_loss, student, teacher, class_means, target)
    torch.testing.assert_close(6 * value, 5 * alone + 1)
    assert not gradient[0].any()
    assert gradient[1:].any(dim=1).all()


def test_from_0_to_2():
    direction = unit_rows(7, 16)
    class_means, target = 3 * direction, torch.arange(7)
    for factor, wanted in ((2.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (-0.5, 1.5), (-1.0, 2.0), (-2.0, 2.0)):
        value = nd_loss(factor * direction, unit_rows(7, 16), class_means, target)
        torch.testing.assert_close(value, torch.tensor(wanted), rtol=0, atol=1e-6)
    for scale in torch.logspace(-4, 4, 50):
        value = nd_loss(scale * torch.randn(1, 3), torch.randn(1, 3), torch.randn(1, 3), torch.tensor([0]))
        assert -1e-6 <= value <= 2 + 1e-6


def test_length_of_a_class_mean_counts_only_in_a_mixture(inputs_of):
    student, teacher, class_means, target = inputs_of(NDLoss)
    longer = class_means * torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    soft = torch.full((6, 5), 0.2)
    hard_values, soft_values = (
        [nd_loss(student, teacher, means, k) for means in (class_means, longer)] for k in (target, soft)
    )
    torch.testing.assert_close(*hard_values)
    assert (soft_values[0] - soft_values[1]).abs() > 1e-3


def test_norms_do_as_well_as_embeddings(inputs_of, value_and_grad):
    student, teacher, class_means, target = inputs_of(NDLoss)
    for scale in (1, 1e-12):
        by_embedding = value_and_grad(nd_loss, student, scale * teacher, class_means, target)
        norms = torch.linalg.vector_norm(scale * teacher, dim=1)
        by_norm = value_and_grad(nd_loss, student, norms, class_means, target)
        assert all(torch.equal(one, other) for one, other in zip(by_embedding, by_norm, strict=True))


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (torch.ones(5), "wanted 6 norms of the teacher, got 5"),
        (torch.ones(6, dtype=torch.long), "wanted floating point numbers in teacher_embedding, got torch.int64"),
    ],
)
def test_norms_that_do_not_fit(rejected, norms, message):
    rejected(NDLoss(), {"teacher.norm": norms}, message)
