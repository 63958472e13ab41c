"""Stepwise increasing feature norm (SIFN): https://arxiv.org/abs/1811.07456."""

import torch
from torch import Tensor, nn

from ndkd.losses.common import check_positive, check_same_shape


def sifn_loss(student_embedding: Tensor, step: float = 1.0) -> Tensor:
    r"""Let every feature norm grow by a step, whatever its direction.

    $$
    L = \frac{1}{N} \sum_i \big(\|s_i\| - (\mathrm{stopgrad}\,\|s_i\| + r)\big)^2
    $$

    The value is the constant $r^2$; the gradient is $-2 r\, s_i / (N \|s_i\|)$, and zero at the origin.

    Args:
        student_embedding: s, (N, D).
        step: r, in units of the norm.

    Raises:
        ValueError: an embedding that is not a floating point (N, D).
    """
    check_same_shape(student_embedding=student_embedding)
    norm: Tensor = torch.linalg.vector_norm(student_embedding.float(), dim=1)
    return (norm - (norm.detach() + step)).square().mean()


class SIFNLoss(nn.Module):
    """SIFN as a module, see ``sifn_loss``; it reads the student's embedding (N, D).

    Args:
        step: r, in units of the norm.

    Examples:
        >>> embedding = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> loss = SIFNLoss()(embedding)
        >>> loss.backward()
        >>> loss.item(), embedding.grad  # a step of gradient descent makes it longer
        (1.0, tensor([[-1.2000, -1.6000]]))
    """

    inputs = ("student.embedding",)

    def __init__(self, step: float = 1.0):
        super().__init__()
        check_positive(step=step)
        self.step = step

    def forward(self, student_embedding: Tensor) -> Tensor:
        return sifn_loss(student_embedding, self.step)
