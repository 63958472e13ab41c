"""Embeddings summed up by class: all that the class means need of a pass over the images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ndkd.errors import NdkdError, shortened


class UnknownMean(NdkdError):
    """A class without an image to take a mean of; every process finds it alike."""


class ClassSums:
    """Sums in float64, however many images there are.

    Args:
        num_classes: C.
        width: D of the embeddings.
        device: where they are.
    """

    def __init__(self, num_classes: int, width: int, device: torch.device):
        # Apple's GPUs have no float64
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.sums = torch.zeros(num_classes, width, dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=self.device)
        self.span = torch.tensor([-num_classes, 0], device=self.device)  # of the labels: minus the lowest, the highest

    def add(self, embedding: Tensor, label: Tensor) -> None:
        """Add embeddings (N, D) of classes (N,), or each to its share of soft labels (N, C)."""
        embedding, label = embedding.to(self.device).double(), label.to(self.device)
        if label.ndim == 2:
            self.sums += label.double().T @ embedding
            self.counts += label.double().sum(dim=0)
            return
        self.span = torch.maximum(self.span, torch.stack([-label.min(), label.max()]))
        # a wrong one is named by ``means``, by every rank: none waits for another
        label = label.clamp(0, len(self.counts) - 1)
        self.sums.index_add_(0, label, embedding)
        self.counts.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))

    def reduce(self, reduce: Callable[..., Tensor]) -> None:
        """Make them those of all processes, with a strategy's ``reduce``."""
        self.sums, self.counts = (reduce(tensor, reduce_op="sum") for tensor in (self.sums, self.counts))
        self.span = reduce(self.span, reduce_op="max")

    def means(self, class_names: Sequence[str] | None, may_be_absent: bool = False) -> tuple[Tensor, list[str]]:
        """The means (C, D), and the names of the classes without an image, whose mean is zero.

        Raises:
            NdkdError: labels that are no classes, embeddings that are not finite; ``UnknownMean`` for a class that
                is absent and may not be.
        """
        low, high = (self.span * self.span.new_tensor([-1, 1])).tolist()
        if low < 0 or high >= len(self.counts):
            raise NdkdError(f"wanted labels from 0 to {len(self.counts) - 1}, the data has {low} to {high}")
        names = class_names or [str(k) for k in range(len(self.counts))]
        absent = [names[k] for k in (self.counts == 0).nonzero().flatten().tolist()]
        if absent and not may_be_absent:
            raise UnknownMean(
                f"no training image of class {shortened(absent, most=5)}: its mean is unknown; "
                "add images or drop the class"
            )
        if not self.sums.isfinite().all():
            raise NdkdError("the teacher's embeddings are not finite; is its checkpoint damaged?")
        if not self.sums.any():
            raise NdkdError("the teacher's embeddings are all 0, no class has a direction; is its checkpoint damaged?")
        return (self.sums / torch.where(self.counts > 0, self.counts, 1.0).unsqueeze(1)).float(), absent
