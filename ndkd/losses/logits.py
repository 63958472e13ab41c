"""Distributions made of logits, in the parts that several losses compare."""

import torch
from torch import Tensor
from torch.nn import functional as F


def standardized(logits: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Each sample's logits (N, C) with mean 0 and standard deviation 1 over the classes.

    $$
    \frac{z - \bar z}{\epsilon + \sigma(z)}, \qquad \sigma(z)^2 = \frac{1}{C - 1} \sum_c (z_c - \bar z)^2
    $$

    Source: https://arxiv.org/abs/2403.01427; the deviation's C - 1 and eps are those of its authors' code,
    https://github.com/sunshangquan/logit-standardization-KD. There logits that are equal in all classes have a gradient
    of the size 1 / eps; here they are 0 without a gradient.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    deviation = norm / max(logits.shape[1] - 1, 1) ** 0.5
    rounding = torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1, keepdim=True)
    scaled: Tensor = centred / (deviation + eps)
    return scaled.masked_fill(deviation <= rounding, 0.0)


def log_one_against_rest(logits: Tensor, is_one: Tensor) -> Tensor:
    """Log-probabilities (N, 2) of one class in each row and of all others together, (N, C) both."""
    lowest = torch.finfo(logits.dtype).min
    one = logits.masked_fill(~is_one, lowest).logsumexp(dim=1)
    rest = logits.masked_fill(is_one, lowest).logsumexp(dim=1)
    return torch.stack([one, rest], dim=1).log_softmax(dim=1)


def log_among(logits: Tensor, is_left_out: Tensor) -> Tensor:
    """Log-probabilities (N, C) among the classes that are not left out, and 0 for those that are.

    So the ones left out add nothing to a divergence between two of these, and neither does a row that has none left.
    """
    others = logits.masked_fill(is_left_out, torch.finfo(logits.dtype).min).log_softmax(dim=1)
    return others.masked_fill(is_left_out, 0.0)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the teacher's log-probabilities (N, C) to the student's, mean of the samples."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
