"""What DataModules of images with one class each have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torchvision.transforms import v2

from ndkd.data.base import DataModule
from ndkd.data.disk_loader import sharded
from ndkd.data.samplers import ShardedOrder
from ndkd.errors import NdkdError, shortened


class ClassificationDataModule(DataModule):
    """Splits of images and their class indices (N,), in this order.

    Args:
        balanced_sampling: show all classes equally often in training, see ``ndkd.data.samplers.BalancedOrder``.
        transforms: one's own augmentation, see ``ndkd.data.own_transforms.OwnTransforms``.
    """

    num_classes: int
    class_names: Sequence[str]

    def __init__(self, balanced_sampling: bool = False, transforms: list[v2.Transform] | None = None):
        super().__init__()
        self.balanced_sampling, self.transforms = balanced_sampling, transforms

    @property
    def class_counts(self) -> dict[str, list[int]]:
        """The images of each class that an epoch shows, by split; in training they may be balanced."""
        counts = {split: np.bincount(target, minlength=self.num_classes) for split, (_, target) in self.splits.items()}
        if self.balanced_sampling and "train" in counts:
            counts["train"] = (counts["train"] > 0) * max(1, counts["train"].sum() // self.num_classes)
        return {split: numbers.tolist() for split, numbers in counts.items()}

    def order(self, split: str, shuffle: bool) -> ShardedOrder:
        """The order in which this process sees the images of a split."""
        target = self.splits[split][1]
        return sharded(self, len(target), shuffle, target if self.balanced_sampling else None)


def check_taught(target: np.ndarray, class_names: Sequence[Any], why: str) -> None:
    """Raise ``NdkdError`` if a class has no training image.

    Args:
        target: class indices (N,) of the training images.
        class_names: of all classes.
        why: what took them, and what to do.
    """
    there = set(target.tolist())
    if untaught := [str(name) for number, name in enumerate(class_names) if number not in there]:
        raise NdkdError(f"no training image of class {shortened(untaught)}: {why}")
