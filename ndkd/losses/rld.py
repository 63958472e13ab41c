"""Refined logit distillation (RLD): https://arxiv.org/abs/2408.07703."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import at_least_float32, check_positive, check_same_shape, check_target, check_weights
from ndkd.losses.logits import divergence, log_among, log_one_against_rest


def rld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    alpha_temperature: float = 1.0,
) -> Tensor:
    r"""Give the target class the teacher's confidence, and learn from the classes that the teacher ranks below it.

    $$
    L = \frac{1}{N} \sum_i \alpha\, T_\alpha^2\, \mathrm{KL}\big((p^t_m, 1 - p^t_m) \,\|\, (p^s_k, 1 - p^s_k)\big)
    + \beta\, T^2\, \mathrm{KL}(\hat p^t \,\|\, \hat p^s)
    $$

    In the first part p is the softmax at $T_\alpha$, k the target class, and m the class that the teacher finds
    likeliest, be it the target or not. In the second $\hat p$ is the softmax at T over the classes whose teacher's
    logit is below that of the target class: the target, its equals and all above it are left out. A sample whose target
    the teacher ranks last adds nothing to this part. So a teacher that is wrong does not argue against the label.

    These details, and the defaults, are those of the authors' code, https://github.com/zju-SWJ/RLD; its example has
    $T_\alpha = T = 4$.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        target: class indices (N,).
        alpha: weight of the confidence part.
        beta: weight of the classes ranked below the target.
        temperature: T, of the second part.
        alpha_temperature: $T_\alpha$, of the first part.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    num_samples, num_classes = student_logits.shape
    check_target(target, num_samples, num_classes, soft=False)
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
    label = target.long()
    confidence_part = divergence(
        *(
            log_one_against_rest(logits / alpha_temperature, F.one_hot(one, num_classes).bool())
            for logits, one in ((student, label), (teacher, teacher.argmax(dim=1)))
        )
    )
    is_left_out = teacher >= teacher.gather(1, label[:, None])
    ranked_part = divergence(*(log_among(logits / temperature, is_left_out) for logits in (student, teacher)))
    return alpha * alpha_temperature**2 * confidence_part + beta * temperature**2 * ranked_part


class RLDLoss(nn.Module):
    r"""RLD as a module, see ``rld_loss``.

    It reads the logits (N, C) of student and teacher, and class indices (N,).

    Args:
        alpha: weight of the confidence part.
        beta: weight of the classes ranked below the target.
        temperature: T, of the second part.
        alpha_temperature: $T_\alpha$, of the first part.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> loss = RLDLoss(temperature=1.0)
        >>> loss(student, teacher, torch.tensor([0]))  # of the classes below the target both say the same
        tensor(0.4330)
        >>> loss(student, teacher, torch.tensor([1]))  # the teacher is wrong, its confidence counts
        tensor(0.4330)
    """

    inputs = ("student.logits", "teacher.logits", "target")

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, alpha_temperature: float = 1.0):
        super().__init__()
        check_positive(temperature=temperature, alpha_temperature=alpha_temperature)
        check_weights(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta
        self.temperature, self.alpha_temperature = temperature, alpha_temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        options = (self.alpha, self.beta, self.temperature, self.alpha_temperature)
        return rld_loss(student_logits, teacher_logits, target, *options)
