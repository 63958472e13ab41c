"""Decoupled knowledge distillation: https://arxiv.org/abs/2203.08679."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import check_positive, check_same_shape, check_target, check_weights


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
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

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    num_samples, num_classes = student_logits.shape
    check_target(target, num_samples, num_classes, soft=False)
    is_target = F.one_hot(target.long(), num_classes).bool()
    student = _split(student_logits.float() / temperature, is_target)
    teacher = _split(teacher_logits.float() / temperature, is_target)
    target_part, rest_part = (
        F.kl_div(s, t, reduction="batchmean", log_target=True) for s, t in zip(student, teacher, strict=True)
    )
    return (alpha * target_part + beta * rest_part) * temperature**2


def _split(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, all others) and, among the others, of each."""
    lowest = torch.finfo(logits.dtype).min
    log_target = logits.masked_fill(~is_target, lowest).logsumexp(dim=1)
    others = logits.masked_fill(is_target, lowest)
    binary = torch.stack([log_target, others.logsumexp(dim=1)], dim=1).log_softmax(dim=1)
    # the target's entry is the lowest number in student and teacher alike, of probability 0: it adds no divergence
    return binary, others.log_softmax(dim=1)


class DKDLoss(nn.Module):
    """Decoupled distillation as a module, see ``dkd_loss``.

    It reads the logits (N, C) of student and teacher, and class indices (N,).

    Args:
        alpha: weight of the target-class part.
        beta: weight of the non-target part.
        temperature: T.

    Examples:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> loss = DKDLoss(temperature=1.0)
        >>> loss(student, teacher, torch.tensor([0]))  # of the other classes both say the same
        tensor(0.4330)
        >>> loss(student, teacher, torch.tensor([1]))
        tensor(2.7626)
    """

    inputs = ("student.logits", "teacher.logits", "target")

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0):
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        return dkd_loss(student_logits, teacher_logits, target, self.alpha, self.beta, self.temperature)
