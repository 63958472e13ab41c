"""What DataModules of images with one class each have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.transforms import v2

from ndkd.data.base import DataModule
from ndkd.data.disk_loader import sharded
from ndkd.data.image_files import ImageFiles
from ndkd.data.samplers import ShardedOrder
from ndkd.data.unlabeled import UnlabeledBeside, check_ratio, unlabeled_files
from ndkd.errors import NdkdError, shortened


class ClassificationDataModule(DataModule):
    """Splits of images and their class indices (N,), in this order.

    Args:
        balanced_sampling: show all classes equally often in training, see ``ndkd.data.samplers.BalancedOrder``.
        transforms: one's own augmentation, see ``ndkd.data.own_transforms.OwnTransforms``.
        unlabeled: folder of images without labels to train on as well, see ``ndkd.data.unlabeled.UnlabeledBeside``.
        unlabeled_ratio: so many of them for each labelled image of a batch.
    """

    num_classes: int
    class_names: Sequence[str]
    batch_size: int

    def __init__(
        self,
        balanced_sampling: bool = False,
        transforms: list[v2.Transform] | None = None,
        unlabeled: Path | None = None,
        unlabeled_ratio: float = 1.0,
    ):
        super().__init__()
        check_ratio(unlabeled_ratio)
        self.balanced_sampling, self.transforms = balanced_sampling, transforms
        self.unlabeled, self.unlabeled_ratio = unlabeled, unlabeled_ratio
        self.unlabeled_paths: Any = ()  # found by the setup of a training

    @property
    def class_counts(self) -> dict[str, list[int]]:
        """The images of each class that an epoch shows, by split; in training they may be balanced."""
        counts = {split: np.bincount(target, minlength=self.num_classes) for split, (_, target) in self.splits.items()}
        if self.balanced_sampling and "train" in counts:
            counts["train"] = (counts["train"] > 0) * max(1, counts["train"].sum() // self.num_classes)
        return {split: numbers.tolist() for split, numbers in counts.items()}

    @property
    def unlabeled_size(self) -> int:
        """The number of images without labels."""
        return len(self.unlabeled_paths)

    def find_unlabeled(self, stage: str | None, labeled: Mapping[str, ImageFiles], skips: bool = False) -> bool:
        """Find the images without labels, of which a training alone makes use; whether there are new ones.

        Args:
            stage: of ``setup``.
            labeled: the files of the other images, by split.
            skips: leave out what cannot be read.
        """
        if self.unlabeled is None or self.unlabeled_size or stage not in (None, "fit"):
            return False
        self.unlabeled_paths, skipped = unlabeled_files(Path(self.unlabeled), labeled, skips)
        if skipped:
            self.remarks.append(f"of the unlabelled, {skipped}")
        return True

    def order(self, split: str, shuffle: bool) -> ShardedOrder:
        """The order in which this process sees the images of a split."""
        target = self.splits[split][1]
        return sharded(self, len(target), shuffle, target if self.balanced_sampling else None)

    def order_with_unlabeled(self, drop_last: bool = False) -> UnlabeledBeside:
        """The order in which this process sees the images of an epoch of training, those without labels behind."""
        order = self.order("train", shuffle=True)
        return UnlabeledBeside(order, self.unlabeled_size, self.batch_size, self.unlabeled_ratio, drop_last)


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
