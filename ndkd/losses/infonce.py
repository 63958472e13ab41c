"""InfoNCE over class means: https://arxiv.org/abs/1807.03748."""

from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import check_against_means, check_positive, in_float32, unit_vectors


def infonce_loss(student_embedding: Tensor, class_means: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Tell the own class mean from all others: cross-entropy of $\cos(s_i, c_j) / \tau$ over the classes j.

    Source: https://arxiv.org/abs/1807.03748, over class means as in https://arxiv.org/abs/2305.17007.

    Args:
        student_embedding: s, (N, D).
        class_means: c, (C, D).
        target: class indices (N,) or soft labels (N, C).
        temperature: $\tau$.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes, a class mean that is not finite.
    """
    check_against_means(student_embedding, class_means, target)
    with in_float32(student_embedding.device):
        cosine = unit_vectors(student_embedding) @ unit_vectors(class_means).T
    soft = target.is_floating_point()
    return F.cross_entropy(cosine / temperature, target.float() if soft else target.long())


class InfoNCELoss(nn.Module):
    r"""InfoNCE over class means as a module, see ``infonce_loss``.

    It reads the student's embedding (N, D), projected to the teacher's width where the widths differ; class means
    (C, D); and class indices (N,) or soft labels (N, C).

    Args:
        temperature: $\tau$.

    Examples:
        >>> import torch
        >>> loss = InfoNCELoss(temperature=1.0)
        >>> loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1]))
        tensor(0.5981)
    """

    inputs = ("student.projected", "class_means", "target")

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, student_embedding: Tensor, class_means: Tensor, target: Tensor) -> Tensor:
        return infonce_loss(student_embedding, class_means, target, self.temperature)
