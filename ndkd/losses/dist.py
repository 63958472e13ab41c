"""Knowledge distillation from a stronger teacher (DIST): https://arxiv.org/abs/2205.10536."""

import torch
from torch import Tensor, nn

from ndkd.losses.common import check_same_shape


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, beta: float = 2.0, gamma: float = 2.0, tau: float = 4.0
) -> Tensor:
    r"""Match correlations instead of probabilities: between classes in a sample, and between samples in a class.

    .. math:: L = \tau^2 \Big( \beta \frac{1}{N} \sum_i \big(1 - \rho(p^s_{i:}, p^t_{i:})\big)
        + \gamma \frac{1}{C} \sum_j \big(1 - \rho(p^s_{:j}, p^t_{:j})\big) \Big),
        \qquad p = \mathrm{softmax}(\cdot / \tau)

    with Pearson's correlation :math:`\rho`. The second part depends on which samples share a batch.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        beta: weight of the correlation within samples.
        gamma: weight of the correlation within classes.
        tau: temperature.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    student = (student_logits.float() / tau).softmax(dim=1)
    teacher = (teacher_logits.float() / tau).softmax(dim=1)
    within_samples = 1 - _correlation(student, teacher, dim=1).mean()
    within_classes = 1 - _correlation(student, teacher, dim=0).mean()
    return (beta * within_samples + gamma * within_classes) * tau**2


def _correlation(a: Tensor, b: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    a = a - a.mean(dim=dim, keepdim=True)
    b = b - b.mean(dim=dim, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim=dim) / (norms + eps)


class DISTLoss(nn.Module):
    """DIST as a module, see :func:`dist_loss`."""

    inputs = ("student.logits", "teacher.logits")

    def __init__(self, beta: float = 2.0, gamma: float = 2.0, tau: float = 4.0):
        super().__init__()
        self.beta, self.gamma, self.tau = beta, gamma, tau

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return dist_loss(student_logits, teacher_logits, self.beta, self.gamma, self.tau)
