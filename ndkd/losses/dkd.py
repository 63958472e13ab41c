"""Decoupled knowledge distillation: https://arxiv.org/abs/2203.08679."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import at_least_float32, check_positive, check_same_shape, check_target, check_weights
from ndkd.losses.logits import divergence, log_among, log_one_against_rest, standardized


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> Tensor:
    r"""KD split into the target class against the rest (weight alpha), and the classes among the rest (weight beta).

    $$
    L = \frac{T^2}{N} \sum_i \alpha\, \mathrm{KL}(b^t_i \,\|\, b^s_i)
    + \beta\, \mathrm{KL}(\hat p^t_i \,\|\, \hat p^s_i)
    $$

    with $p = \mathrm{softmax}(\cdot / T)$, $b = (p_k, 1 - p_k)$ for the target class k, and
    $\hat p$ the softmax over the other classes.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        target: class indices (N,).
        alpha: weight of the target-class part.
        beta: weight of the non-target part.
        temperature: T.
        standardize: bring the logits of both to mean 0 and standard deviation 1 over the classes first (LSKD,
            https://arxiv.org/abs/2403.01427).

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    num_samples, num_classes = student_logits.shape
    check_target(target, num_samples, num_classes, soft=False)
    is_target = F.one_hot(target.long(), num_classes).bool()
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    student, teacher = student / temperature, teacher / temperature
    target_part, rest_part = (
        divergence(part(student, is_target), part(teacher, is_target)) for part in (log_one_against_rest, log_among)
    )
    return (alpha * target_part + beta * rest_part) * temperature**2


class DKDLoss(nn.Module):
    """Decoupled distillation as a module, see ``dkd_loss``.

    It reads the logits (N, C) of student and teacher, and class indices (N,).

    Args:
        alpha: weight of the target-class part.
        beta: weight of the non-target part.
        temperature: T.
        standardize: bring the logits of both to mean 0 and standard deviation 1 over the classes first (LSKD).

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> loss = DKDLoss(temperature=1.0)
        >>> loss(student, teacher, torch.tensor([0]))  # of the other classes both say the same
        tensor(0.4330)
        >>> loss(student, teacher, torch.tensor([1]))
        tensor(2.7626)
    """

    inputs = ("student.logits", "teacher.logits", "target")

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, standardize: bool = False):
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.temperature, self.standardize = alpha, beta, temperature, standardize

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        options = (self.alpha, self.beta, self.temperature, self.standardize)
        return dkd_loss(student_logits, teacher_logits, target, *options)
