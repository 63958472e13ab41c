"""Anyone's small images, a folder per class, kept in memory."""

from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.transforms import v2

from ndkd.data.in_memory import InMemoryDataModule, pixels_of
from ndkd.data.layouts import image_set
from ndkd.data.transforms import InRGB, Pixels
from ndkd.errors import NdkdError

LEAST_STD = 1 / 255  # a step of brightness


class InMemoryImageFolderDataModule(InMemoryDataModule):
    """Small images in ``root/train/CLASS/*``, ``root/test/CLASS/*`` and, where it exists, ``root/val/CLASS/*``.

    Other names and layouts are those of ``ndkd.data.ImageFolderDataModule``. The classes are the folders' names in
    alphabetical order. Mean and standard deviation are those of the training images.

    Args:
        root: the folder.
        image_size: height and width to resize to; by default all images must be of one size already.
        labels: a CSV file with the columns ``file`` and ``label`` and, where there are splits, ``split``.
        test_fraction: share of the training images to test on, where the set has none to test or validate on; chosen
            by the files' names alone, of each class.
        on_error: ``stop`` at a file that cannot be read and a class without images, or ``skip`` these.
        options: of ``InMemoryDataModule``.

    Raises:
        NdkdError: a missing split, classes that differ between splits, a class without images, a file that cannot be
            read, images of several sizes.
    """

    def __init__(
        self,
        root: Path,
        image_size: int | None = None,
        labels: Path | None = None,
        test_fraction: float = 0.2,
        on_error: Literal["stop", "skip"] = "stop",
        **options,
    ):
        super().__init__(**options)
        self.labels, self.test_fraction, self.skips = labels, test_fraction, on_error == "skip"
        if image_size is not None and image_size < 1:
            raise NdkdError(f"image_size: wanted a number of pixels, got {image_size}")
        self.root, self.image_size = Path(root), image_size

    @property
    def transform(self) -> v2.Compose:
        """What becomes of an image."""
        size = self.image_size and (self.image_size, self.image_size)
        return v2.Compose([InRGB(upright=True), *([v2.Resize(size)] if size else []), Pixels()])

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self._find()
        self.keep_unlabeled(stage, self.transform, self.files, self.skips)

    def _find(self) -> None:
        images_found = image_set(self.root, self.labels, {"test": self.test_fraction}, self.skips, self.unlabeled)
        self.class_names, self.remarks = images_found.class_names, images_found.remarks
        self.num_classes = len(self.class_names)
        self.files = images_found.splits
        size = (self.image_size, self.image_size) if self.image_size else None
        found = {split: (pixels_of(f.paths, self.transform, size), f.target) for split, f in self.files.items()}
        if "test" not in found:
            raise NdkdError(f"{self.root} has no images to test on: set test_fraction above 0")
        images = found["train"][0]
        self.image_shape = (images.shape[3], *images.shape[1:3])
        self.mean, self.std = _statistics(images)
        self.keep(found)


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1], a block of images at a time."""
    sums = np.zeros((2, images.shape[3]))
    for start in range(0, len(images), 1000):
        block = images[start : start + 1000].reshape(-1, images.shape[3]) / 255
        sums += block.sum(axis=0), np.square(block).sum(axis=0)
    mean, square = sums / (images.size / images.shape[3])
    std = np.sqrt((square - mean**2).clip(LEAST_STD**2))  # a channel may be alike in all pixels
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
