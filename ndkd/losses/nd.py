"""Feature norm and direction: https://arxiv.org/abs/2305.17007."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ndkd.losses.common import (
    check_class_means,
    check_floating,
    check_positive,
    check_same_shape,
    check_target,
    target_means,
)


def nd_loss(
    student_embedding: Tensor, teacher_embedding: Tensor, class_means: Tensor, target: Tensor, eps: float = 1e-8
) -> Tensor:
    r"""Pull student embeddings to the direction of their class mean and up to the teacher's norm.

    $$
    L = \frac{1}{N} \sum_i 1 - \frac{\langle s_i, e_{k_i} \rangle}{\max(\|s_i\|, \|t_i\|)},
    \qquad e_k = c_k / \|c_k\|
    $$

    Where $\|s\| \ge \|t\|$ this is the cosine distance, without a radial gradient; below, the gradient
    $-e_k / \|t\|$ turns the embedding and lets its norm grow. Norms and products are taken in float32; gradients
    flow to the student's embedding alone.

    Args:
        student_embedding: s, (N, D), projected to the teacher's width where the widths differ.
        teacher_embedding: t, (N, D), or its norm, (N,), which is all that is needed of it.
        class_means: c, the teacher's mean embedding per class, (C, D), not normalised.
        target: class indices (N,), or soft labels (N, C), which mix the class means.
        eps: a row whose two norms are both below this is a constant 1 with zero gradient.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes, a class mean that is not finite.

    Examples:
        >>> s, means = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> nd_loss(s, 2 * s, means, torch.tensor([1]))
        tensor(0.6000)
        >>> nd_loss(s, torch.tensor([10.0]), means, torch.tensor([1]))
        tensor(0.6000)
    """
    if student_embedding.ndim == 2 and teacher_embedding.ndim == 1:
        _check_norms(student_embedding, teacher_embedding)
        teacher_norm = teacher_embedding.float()
    else:
        check_same_shape(student_embedding=student_embedding, teacher_embedding=teacher_embedding)
        teacher_norm = torch.linalg.vector_norm(teacher_embedding.float(), dim=1)
    check_class_means(class_means, student_embedding.shape[1])
    check_target(target, len(student_embedding), len(class_means))
    loss: Tensor = _NormAndDirection.apply(student_embedding.float(), teacher_norm, class_means, target, eps)
    return loss


def _check_norms(student_embedding: Tensor, teacher_norm: Tensor) -> None:
    check_same_shape(student_embedding=student_embedding)
    check_floating("teacher_embedding", teacher_norm)
    if len(teacher_norm) != len(student_embedding):
        raise ValueError(f"wanted {len(student_embedding)} norms of the teacher, got {len(teacher_norm)}")


class _NormAndDirection(torch.autograd.Function):
    r"""The loss with its gradient written out: autograd would go over the embeddings three times as often.

    $$
    N \frac{\partial L}{\partial s} = \begin{cases} -e / \|t\| & \|s\| < \|t\| \\
    -e / \|s\| + \langle s, e \rangle\, s / \|s\|^3 & \|s\| \ge \|t\| \end{cases}
    $$
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher_norm: Tensor, class_means: Tensor, target: Tensor, eps: float
    ) -> Tensor:
        means = target_means(class_means, target)
        student_norm = torch.linalg.vector_norm(student, dim=1)
        norm = torch.maximum(student_norm, teacher_norm)
        mean_norm = torch.linalg.vector_norm(means, dim=1).clamp_min(eps)
        empty = norm <= eps
        scale = (norm * mean_norm).mul_(len(student)).reciprocal_().masked_fill_(empty, 0.0)
        similarity = (student * means).sum(dim=1).mul_(scale)
        if ctx.needs_input_grad[0]:
            # at a tie the student's branch takes the whole gradient
            no_radial = (teacher_norm > student_norm).logical_or_(empty)
            radial = (similarity / norm.square()).masked_fill_(no_radial, 0.0)
            # in the place of the gathered means: at this size an allocation costs as much as the arithmetic
            ctx.save_for_backward(means.mul_(scale.neg_()[:, None]).addcmul_(student, radial[:, None]))
        return 1 - similarity.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradient_of_loss, None, None, None, None


class NDLoss(nn.Module):
    """The ND loss as a module, see ``nd_loss``; "++" in KD++ is this term.

    It reads the student's embedding (N, D), projected to the teacher's width where the widths differ; the norm of the
    teacher's (N,), or that itself (N, D); class means (C, D); and class indices (N,) or soft labels (N, C).

    Args:
        eps: a row whose two norms are both below this is a constant 1 with zero gradient.

    Examples:
        >>> s, means = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> loss = NDLoss()
        >>> loss(s, s, means, torch.tensor([1]))  # the cosine distance
        tensor(0.2000)
        >>> loss(s, 2 * s, means, torch.tensor([1]))  # a student that is too short loses more
        tensor(0.6000)
    """

    inputs = ("student.projected", "teacher.norm", "class_means", "target")

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        check_positive(eps=eps)
        self.eps = eps

    def forward(
        self, student_embedding: Tensor, teacher_embedding: Tensor, class_means: Tensor, target: Tensor
    ) -> Tensor:
        return nd_loss(student_embedding, teacher_embedding, class_means, target, self.eps)
