"""Normalised knowledge distillation (NKD): https://arxiv.org/abs/2303.13005."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import at_least_float32, check_not_negative, check_positive, check_same_shape, check_target
from ndkd.losses.logits import log_among


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    r"""Cross-entropy of the target class, weighed by the teacher's probability, and among all other classes.

    $$
    L = -\frac{1}{N} \sum_i \Big( p^t_{ik} \log p^s_{ik}
    + \gamma\, T^2 \sum_{c \ne k} \hat p^t_{ic} \log \hat p^s_{ic} \Big)
    $$

    with the target class k, $p$ the softmax at temperature 1 whatever T is, and $\hat p$ the softmax at T over the
    other classes. These are cross-entropies: where student and teacher agree, L is not 0.

    Of soft labels, as MixUp makes them, the class with the largest share is the target, the first of several. Both this
    and the temperature 1 of the target class are in the authors' code, https://github.com/yzd-v/cls_KD.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        target: class indices (N,) or soft labels (N, C).
        gamma: weight of the other classes.
        temperature: T of the other classes.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    num_samples, num_classes = student_logits.shape
    check_target(target, num_samples, num_classes)
    label = target.argmax(dim=1) if target.is_floating_point() else target.long()
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
    probability, log_probability = (
        distribution.gather(1, label[:, None]) for distribution in (teacher.softmax(dim=1), student.log_softmax(dim=1))
    )
    is_target = F.one_hot(label, num_classes).bool()
    of_rest, log_of_rest = (log_among(logits / temperature, is_target) for logits in (teacher, student))
    rest_part = (of_rest.exp() * log_of_rest).sum(dim=1)  # the target's entries are 0: they add nothing
    return -(probability * log_probability).mean() - gamma * temperature**2 * rest_part.mean()


class NKDLoss(nn.Module):
    """NKD as a module, see ``nkd_loss``.

    It reads the logits (N, C) of student and teacher, and class indices (N,) or soft labels (N, C).

    Args:
        gamma: weight of the other classes.
        temperature: T of the other classes.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> loss = NKDLoss()
        >>> loss(student, teacher, torch.tensor([0]))
        tensor(1.9043)
        >>> loss(student, teacher, torch.tensor([1]))
        tensor(1.1567)
    """

    inputs = ("student.logits", "teacher.logits", "target")

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0):
        super().__init__()
        check_not_negative(gamma=gamma)
        check_positive(temperature=temperature)
        self.gamma, self.temperature = gamma, temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        return nkd_loss(student_logits, teacher_logits, target, self.gamma, self.temperature)
