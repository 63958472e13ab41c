"""Distillation from logits: soft (https://arxiv.org/abs/1503.02531) and hard (https://arxiv.org/abs/2012.12877)."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import at_least_float32, check_positive, check_same_shape
from ndkd.losses.logits import divergence, standardized


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, standardize: bool = False
) -> Tensor:
    r"""Kullback-Leibler divergence from the teacher's softened distribution to the student's.

    $$
    L = \frac{T^2}{N} \sum_i \mathrm{KL}\big(\mathrm{softmax}(t_i / T) \,\|\, \mathrm{softmax}(s_i / T)\big)
    $$

    Args:
        student_logits: s, (N, C).
        teacher_logits: t, (N, C).
        temperature: T.
        standardize: bring the logits of both to mean 0 and standard deviation 1 over the classes first (LSKD,
            https://arxiv.org/abs/2403.01427), so that neither their scale nor their mean matters; the factor $T^2$
            stays.

    Raises:
        ValueError: shapes or types that do not fit.

    Examples:
        >>> import torch
        >>> kd_loss(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor(0.)
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    student, teacher = (student / temperature).log_softmax(dim=1), (teacher / temperature).log_softmax(dim=1)
    return divergence(student, teacher) * temperature**2


class KDLoss(nn.Module):
    """Soft distillation as a module, see ``kd_loss``; it reads the logits (N, C) of student and teacher.

    Args:
        temperature: T.
        standardize: bring the logits of both to mean 0 and standard deviation 1 over the classes first (LSKD).

    Examples:
        >>> import torch
        >>> loss = KDLoss(temperature=1.0)
        >>> loss(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]]))
        tensor(0.4330)
        >>> lskd = KDLoss(temperature=2.0, standardize=True)
        >>> lskd(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 0.0]]))  # the same for 3 in place of 9
        tensor(1.0900)
    """

    inputs = ("student.logits", "teacher.logits")

    def __init__(self, temperature: float = 4.0, standardize: bool = False):
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature, self.standardize = temperature, standardize

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return kd_loss(student_logits, teacher_logits, self.temperature, self.standardize)


def hard_kd_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""Cross-entropy to the class that the teacher predicts, $\mathrm{CE}(s_i, \arg\max_c t_{ic})$.

    Args:
        student_logits: s, (N, C).
        teacher_logits: t, (N, C).

    Raises:
        ValueError: shapes or types that do not fit.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    return F.cross_entropy(at_least_float32(student_logits), teacher_logits.argmax(dim=1))


class HardKDLoss(nn.Module):
    """Hard distillation as a module, see ``hard_kd_loss``; it reads the logits (N, C) of student and teacher.

    Examples:
        >>> import torch
        >>> HardKDLoss()(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))
        tensor(0.6931)
    """

    inputs = ("student.logits", "teacher.logits")

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return hard_kd_loss(student_logits, teacher_logits)
