"""Feature norm and direction: https://arxiv.org/abs/2305.17007."""

import torch
from torch import Tensor, nn

from ndkd.losses.common import check_class_means, check_same_shape, check_target, target_means, unit_vectors


def nd_loss(
    student_embedding: Tensor, teacher_embedding: Tensor, class_means: Tensor, target: Tensor, eps: float = 1e-8
) -> Tensor:
    r"""Pull student embeddings to the direction of their class mean and up to the teacher's norm.

    .. math:: L = \frac{1}{N} \sum_i 1 - \frac{\langle s_i, e_{k_i} \rangle}{\max(\|s_i\|, \|t_i\|)},
        \qquad e_k = c_k / \|c_k\|

    Where :math:`\|s\| \ge \|t\|` this is the cosine distance, without a radial gradient; below, the gradient
    :math:`-e_k / \|t\|` turns the embedding and lets its norm grow. Norms and products are taken in float32.

    Args:
        student_embedding: s, (N, D), projected to the teacher's width where the widths differ.
        teacher_embedding: t, (N, D).
        class_means: c, the teacher's mean embedding per class, (C, D), not normalised.
        target: class indices (N,), or soft labels (N, C), which mix the class means.
        eps: a row whose two norms are both below this is a constant 1 with zero gradient.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes, a class mean that is not finite.

    Example:
        >>> s, means = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> nd_loss(s, 2 * s, means, torch.tensor([1]))
        tensor(0.6000)
    """
    check_same_shape(student_embedding=student_embedding, teacher_embedding=teacher_embedding)
    check_class_means(class_means, student_embedding.shape[1])
    check_target(target, len(student_embedding), len(class_means))
    student = student_embedding.float()
    direction = unit_vectors(target_means(class_means, target))
    student_norm = torch.linalg.vector_norm(student, dim=1)
    teacher_norm = torch.linalg.vector_norm(teacher_embedding.float(), dim=1)
    # torch.maximum would give the student half of the gradient at a tie
    norm = torch.where(teacher_norm > student_norm, teacher_norm, student_norm)
    empty = norm < eps
    # multiply and sum: einsum is slower
    similarity = (student * direction).sum(dim=1) / norm.masked_fill(empty, 1.0)
    return 1 - similarity.masked_fill(empty, 0.0).mean()


class NDLoss(nn.Module):
    """The ND loss as a module, see :func:`nd_loss`; "++" in KD++ is this term."""

    inputs = ("student.projected", "teacher.embedding", "class_means", "target")

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(
        self, student_embedding: Tensor, teacher_embedding: Tensor, class_means: Tensor, target: Tensor
    ) -> Tensor:
        return nd_loss(student_embedding, teacher_embedding, class_means, target, self.eps)
