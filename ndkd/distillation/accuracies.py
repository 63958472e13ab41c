"""How many images are classified correctly, of all and of each class."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


class BalancedAccuracy(Metric):
    """The mean of the classes' accuracies, over the classes that have an image.

    $$
    \\frac{1}{|K|} \\sum_{c \\in K} \\frac{r_c}{n_c}
    $$

    for $r_c$ correct ones of $n_c$ images and the classes K with $n_c > 0$. ``measured`` (C, 2) keeps $r_c$ and $n_c$
    of the last ``compute``, over all processes.

    Args:
        num_classes: C.

    Examples:
        >>> accuracy = BalancedAccuracy(3)
        >>> accuracy.update(torch.eye(3)[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 0]))
        >>> accuracy.update(torch.eye(3)[[1, 0]], torch.tensor([1, 1]))
        >>> accuracy.compute(), accuracy.measured.tolist()
        (tensor(0.6250), [[3, 4], [1, 2], [0, 0]])
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.add_state("counts", torch.zeros(num_classes, 2, dtype=torch.long), dist_reduce_fx="sum")
        self.measured: Tensor | None = None

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits (N, C) and class indices (N,)."""
        right = logits.argmax(dim=1) == target
        self.counts.index_add_(0, target, torch.stack([right, torch.ones_like(right)], dim=1).long())

    def compute(self) -> Tensor:
        self.measured = self.counts.clone()  # a reset follows
        right, images = self.counts.float().unbind(dim=1)
        return (right / images.clamp_min(1)).sum() / (images > 0).sum().clamp_min(1)


def accuracies(num_classes: int) -> MetricCollection:
    """``acc1``, where there are more than five classes ``acc5``, and ``balanced_acc``."""
    options: dict[str, Any] = {"num_classes": num_classes, "average": "micro", "validate_args": False}
    ranks = (1, 5) if num_classes > 5 else (1,)
    found: dict[str, Any] = {f"acc{k}": MulticlassAccuracy(top_k=k, **options) for k in ranks}
    return MetricCollection({**found, "balanced_acc": BalancedAccuracy(num_classes)})
