"""Full alignment: the distance to the teacher's embedding, a baseline of https://arxiv.org/abs/2305.17007."""

import torch
from torch import Tensor, nn

from ndkd.losses.common import check_same_shape


def l2_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Euclidean distance between the two embeddings, $\frac{1}{N} \sum_i \|s_i - t_i\|_2$: full alignment.

    Source: the baseline of https://arxiv.org/abs/2305.17007.

    Args:
        student_embedding: s, (N, D).
        teacher_embedding: t, (N, D).

    Raises:
        ValueError: shapes or types that do not fit.
    """
    check_same_shape(student_embedding=student_embedding, teacher_embedding=teacher_embedding)
    distance: Tensor = torch.linalg.vector_norm(student_embedding.float() - teacher_embedding.float(), dim=1)
    return distance.mean()


class L2Loss(nn.Module):
    """Euclidean distance as a module, see ``l2_loss``.

    It reads the student's embedding, projected to the teacher's width where the widths differ, and the teacher's, both
    (N, D).

    Examples:
        >>> L2Loss()(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        tensor(5.)
    """

    inputs = ("student.projected", "teacher.embedding")

    def forward(self, student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
        return l2_loss(student_embedding, teacher_embedding)
