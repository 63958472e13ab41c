"""Knowledge distillation from a stronger teacher (DIST): https://arxiv.org/abs/2205.10536."""

import torch
from torch import Tensor, nn

from ndkd.losses.common import at_least_float32, check_positive, check_same_shape, check_weights


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0
) -> Tensor:
    r"""Match correlations instead of probabilities: between classes in a sample, and between samples in a class.

    $$
    L = \tau^2 \Big( \beta \frac{1}{N} \sum_i \big(1 - \rho(p^s_{i:}, p^t_{i:})\big)
    + \gamma \frac{1}{C} \sum_j \big(1 - \rho(p^s_{:j}, p^t_{:j})\big) \Big),
    \qquad p = \mathrm{softmax}(\cdot / \tau)
    $$

    with Pearson's correlation $\rho$. The second part depends on which samples share a batch.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        beta: weight of the correlation within samples.
        gamma: weight of the correlation within classes.
        temperature: $\tau$.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    student = (at_least_float32(student_logits) / temperature).softmax(dim=1)
    teacher = (at_least_float32(teacher_logits) / temperature).softmax(dim=1)
    within_samples = 1 - _correlation(student, teacher, dim=1).mean()
    within_classes = 1 - _correlation(student, teacher, dim=0).mean()
    return (beta * within_samples + gamma * within_classes) * temperature**2


def _correlation(student: Tensor, teacher: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    s = student - student.mean(dim=dim, keepdim=True)
    t = teacher - teacher.mean(dim=dim, keepdim=True)
    s_norm, t_norm = torch.linalg.vector_norm(s, dim=dim), torch.linalg.vector_norm(t, dim=dim)
    correlation: Tensor = (s * t).sum(dim=dim) / (s_norm * t_norm + eps)
    # a student that is constant but for rounding correlates with nothing; the quotient's gradient would be t / eps
    rounding = torch.finfo(student.dtype).eps * torch.linalg.vector_norm(student.detach(), dim=dim)
    return correlation.masked_fill(s_norm <= rounding, 0.0)


class DISTLoss(nn.Module):
    r"""DIST as a module, see ``dist_loss``; it reads the logits (N, C) of student and teacher.

    Args:
        beta: weight of the correlation within samples.
        gamma: weight of the correlation within classes.
        temperature: $\tau$.

    Examples:
        >>> teacher = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        >>> loss = DISTLoss(temperature=1.0)
        >>> bool(loss(teacher, teacher) < loss(-teacher, teacher))
        True
    """

    inputs = ("student.logits", "teacher.logits")

    def __init__(self, beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0):
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(beta=beta, gamma=gamma)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return dist_loss(student_logits, teacher_logits, self.beta, self.gamma, self.temperature)
