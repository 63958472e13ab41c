"""Losses on embeddings that the ND loss is compared with: direction alone, contrast, alignment."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import (
    check_class_means,
    check_positive,
    check_same_shape,
    check_target,
    in_float32,
    target_means,
    unit_vectors,
)


def cosine_loss(student_embedding: Tensor, class_means: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    r"""Cosine distance to the class mean, :math:`\frac{1}{N} \sum_i 1 - \cos(s_i, c_{k_i})`: direction alone.

    Source: the baseline of https://arxiv.org/abs/2305.17007.

    Args:
        student_embedding: s, (N, D).
        class_means: c, (C, D).
        target: class indices (N,), or soft labels (N, C), which mix the class means.
        eps: an embedding shorter than this counts as a constant 1, without a gradient.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes, a class mean that is not finite.
    """
    _check_against_means(student_embedding, class_means, target)
    direction = unit_vectors(target_means(class_means, target))
    return 1 - (unit_vectors(student_embedding, eps) * direction).sum(dim=1).mean()


class CosineLoss(nn.Module):
    """Cosine distance to the class mean as a module, see :func:`cosine_loss`."""

    inputs = ("student.projected", "class_means", "target")

    def forward(self, student_embedding: Tensor, class_means: Tensor, target: Tensor) -> Tensor:
        return cosine_loss(student_embedding, class_means, target)


def infonce_loss(student_embedding: Tensor, class_means: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Tell the own class mean from all others: cross-entropy of :math:`\cos(s_i, c_j) / \tau` over the classes j.

    Source: https://arxiv.org/abs/1807.03748, over class means as in https://arxiv.org/abs/2305.17007.

    Args:
        student_embedding: s, (N, D).
        class_means: c, (C, D).
        target: class indices (N,) or soft labels (N, C).
        temperature: tau.

    Raises:
        ValueError: shapes or types that do not fit, a target outside the classes, a class mean that is not finite.
    """
    _check_against_means(student_embedding, class_means, target)
    with in_float32(student_embedding.device):
        cosine = unit_vectors(student_embedding) @ unit_vectors(class_means).T
    soft = target.is_floating_point()
    return F.cross_entropy(cosine / temperature, target.float() if soft else target.long())


class InfoNCELoss(nn.Module):
    """InfoNCE over class means as a module, see :func:`infonce_loss`."""

    inputs = ("student.projected", "class_means", "target")

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, student_embedding: Tensor, class_means: Tensor, target: Tensor) -> Tensor:
        return infonce_loss(student_embedding, class_means, target, self.temperature)


def l2_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Euclidean distance between the two embeddings, :math:`\frac{1}{N} \sum_i \|s_i - t_i\|_2`: full alignment.

    Source: the baseline of https://arxiv.org/abs/2305.17007.

    Args:
        student_embedding: s, (N, D).
        teacher_embedding: t, (N, D).

    Raises:
        ValueError: shapes or types that do not fit.
    """
    check_same_shape(student_embedding=student_embedding, teacher_embedding=teacher_embedding)
    return torch.linalg.vector_norm(student_embedding.float() - teacher_embedding.float(), dim=1).mean()


class L2Loss(nn.Module):
    """Euclidean distance as a module, see :func:`l2_loss`."""

    inputs = ("student.projected", "teacher.embedding")

    def forward(self, student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
        return l2_loss(student_embedding, teacher_embedding)


def _check_against_means(student_embedding: Tensor, class_means: Tensor, target: Tensor) -> None:
    check_same_shape(student_embedding=student_embedding)
    check_class_means(class_means, student_embedding.shape[1])
    check_target(target, len(student_embedding), len(class_means))
