"""Direction alone: the cosine distance to the class mean, a baseline of https://arxiv.org/abs/2305.17007."""

from torch import Tensor, nn

from ndkd.losses.common import check_against_means, check_positive, target_means, unit_vectors


def cosine_loss(student_embedding: Tensor, class_means: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    r"""Cosine distance to the class mean, $\frac{1}{N} \sum_i 1 - \cos(s_i, c_{k_i})$: direction alone.

    Source: the baseline of https://arxiv.org/abs/2305.17007.

    Args:
        student_embedding: s, (N, D).
        class_means: c, (C, D).
        target: class indices (N,), or soft labels (N, C), which mix the class means.
        eps: an embedding shorter than this counts as a constant 1, without a gradient.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes, a class mean that is not finite.
    """
    check_against_means(student_embedding, class_means, target)
    direction = unit_vectors(target_means(class_means, target))
    return 1 - (unit_vectors(student_embedding, eps) * direction).sum(dim=1).mean()


class CosineLoss(nn.Module):
    """Cosine distance to the class mean as a module, see ``cosine_loss``.

    It reads the student's embedding (N, D), projected to the teacher's width where the widths differ; class means
    (C, D); and class indices (N,) or soft labels (N, C).

    Args:
        eps: an embedding shorter than this counts as a constant 1, without a gradient.

    Examples:
        >>> import torch
        >>> loss = CosineLoss()
        >>> loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1]))
        tensor(0.2000)
    """

    inputs = ("student.projected", "class_means", "target")

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        check_positive(eps=eps)
        self.eps = eps

    def forward(self, student_embedding: Tensor, class_means: Tensor, target: Tensor) -> Tensor:
        return cosine_loss(student_embedding, class_means, target, self.eps)
