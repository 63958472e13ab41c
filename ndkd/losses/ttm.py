"""Transformed teacher matching (TTM) and weighted TTM (WTTM): https://arxiv.org/abs/2402.11148."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import at_least_float32, check_positive, check_same_shape


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    r"""Kullback-Leibler divergence from the power-transformed teacher to the student, which has no temperature.

    $$
    L = \frac{1}{N} \sum_i \mathrm{KL}(q_i \,\|\, \mathrm{softmax}(s_i)),
    \qquad q_{ic} = \frac{(p^t_{ic})^\gamma}{U_i}, \quad U_i = \sum_c (p^t_{ic})^\gamma, \quad
    p^t = \mathrm{softmax}(t)
    $$

    The power $\gamma$ is the temperature $1 / \gamma$ of the teacher alone; there is no factor $T^2$, as in the
    authors' code, https://github.com/zkxufo/TTM.

    Args:
        student_logits: s, (N, C).
        teacher_logits: t, (N, C).
        gamma: the power; below 1 it smooths.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    return _divergences(student_logits, teacher_logits, gamma)[0].mean()


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    r"""TTM with a weight for each sample, $\frac{1}{N} \sum_i U_i \mathrm{KL}(q_i \,\|\, \mathrm{softmax}(s_i))$.

    $U$ is that of ``ttm_loss``: 1 where the teacher is sure, $C^{1 - \gamma}$ where it finds all C classes equally
    likely, for a power below 1.

    Args:
        student_logits: s, (N, C).
        teacher_logits: t, (N, C).
        gamma: the power; below 1 it smooths.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    divergence, weight = _divergences(student_logits, teacher_logits, gamma)
    return (weight * divergence).mean()


def _divergences(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The divergence of each sample, and its U, (N,) both."""
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    powers = gamma * at_least_float32(teacher_logits).log_softmax(dim=1)
    student = at_least_float32(student_logits).log_softmax(dim=1)
    divergence = F.kl_div(student, powers.log_softmax(dim=1), reduction="none", log_target=True).sum(dim=1)
    return divergence, powers.logsumexp(dim=1).exp()


class TTMLoss(nn.Module):
    """TTM as a module, see ``ttm_loss``; it reads the logits (N, C) of student and teacher.

    Args:
        gamma: the power; below 1 it smooths.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> TTMLoss(gamma=1.0)(student, teacher), TTMLoss(gamma=0.1)(student, teacher)
        (tensor(0.4330), tensor(0.0046))
    """

    inputs = ("student.logits", "teacher.logits")

    def __init__(self, gamma: float = 0.1):
        super().__init__()
        check_positive(gamma=gamma)
        self.gamma = gamma

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return ttm_loss(student_logits, teacher_logits, self.gamma)


class WTTMLoss(nn.Module):
    """Weighted TTM as a module, see ``wttm_loss``; it reads the logits (N, C) of student and teacher.

    Args:
        gamma: the power; below 1 it smooths.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> WTTMLoss(gamma=1.0)(student, teacher), WTTMLoss(gamma=0.1)(student, teacher)
        (tensor(0.4330), tensor(0.0119))
    """

    inputs = ("student.logits", "teacher.logits")

    def __init__(self, gamma: float = 0.1):
        super().__init__()
        check_positive(gamma=gamma)
        self.gamma = gamma

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return wttm_loss(student_logits, teacher_logits, self.gamma)
