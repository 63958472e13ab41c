"""scikit-learn's 1,797 handwritten digits: real images that need no download."""

from functools import cache

import lightning.pytorch as L
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import from_numpy
from torch.nn import functional as F

from ndkd.data.in_memory import InMemoryLoader
from ndkd.errors import NdkdError
from ndkd.seeds import run_seed

TEST_SIZE = 1000


class DigitsDataModule(L.LightningDataModule):
    """Handwritten digits as 3-channel 32×32 images: 1,000 to test on, 797 to train and validate on.

    The split is stratified and the same for every seed. Source: https://archive.ics.uci.edu/dataset/80.

    Args:
        train_size: number of training images, to make labels scarce; by default all that validation leaves.
        val_size: number of validation images, split off from the training ones; 0 validates on the test images.
        batch_size: images per step and process.
        pad: random crop after padding by this many pixels; 0 for no augmentation.

    Raises:
        NdkdError: sizes that the set cannot give.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    image_shape = (3, 32, 32)
    mean = (0.305, 0.305, 0.305)
    std = (0.324, 0.324, 0.324)

    def __init__(self, train_size: int | None = None, val_size: int = 200, batch_size: int = 64, pad: int = 3):
        super().__init__()
        if batch_size < 2:
            raise NdkdError(f"batch_size: wanted at least 2 images, got {batch_size}")
        if pad < 0:
            raise NdkdError(f"pad: wanted a number of pixels, got {pad}")
        self.train_size, self.val_size, self.batch_size, self.pad = train_size, val_size, batch_size, pad
        self.validates_on_test = val_size == 0

    def setup(self, stage: str | None = None) -> None:
        images, target = digit_images()
        rest, self.test_indices = _stratified(np.arange(len(target)), target, TEST_SIZE, "test")
        rest, self.val_indices = _stratified(rest, target, self.val_size, "val_size")
        if self.train_size is not None and self.train_size != len(rest):
            rest = _stratified(rest, target, self.train_size, "train_size")[1]
        self.train_indices = rest
        if self.validates_on_test:
            self.val_indices = self.test_indices

    def train_dataloader(self) -> InMemoryLoader:
        return self._loader(self.train_indices, shuffle=True, pad=self.pad)

    def class_mean_dataloader(self, augment: bool = False) -> InMemoryLoader:
        """One pass over the training images, in order."""
        return self._loader(self.train_indices, pad=self.pad if augment else 0)

    def val_dataloader(self) -> InMemoryLoader:
        return self._loader(self.val_indices)

    def test_dataloader(self) -> InMemoryLoader:
        return self._loader(self.test_indices)

    predict_dataloader = test_dataloader

    def _loader(self, indices: np.ndarray, **options) -> InMemoryLoader:
        images, target = digit_images()
        if self.trainer:
            options |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return InMemoryLoader(images[indices], target[indices], self.batch_size, seed=run_seed(), **options)


@cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """The images as uint8 (1797, 32, 32, 3), enlarged from 8×8, and their digits (1797,)."""
    digits = load_digits()
    small = from_numpy(digits.images / 16.0).unsqueeze(1)
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    grey = (large * 255).round().byte().permute(0, 2, 3, 1)
    return grey.expand(-1, -1, -1, 3).contiguous().numpy(), digits.target.astype(np.int64)


def _stratified(indices: np.ndarray, target: np.ndarray, size: int, option: str) -> tuple[np.ndarray, np.ndarray]:
    """Split ``size`` images off, with every class in its proportion: (the others, those)."""
    if size == 0 and option == "val_size":
        return indices, indices[:0]
    if not 10 <= size <= len(indices) - 10:
        raise NdkdError(f"{option}: wanted 10 to {len(indices) - 10} images (there are {len(indices)}), got {size}")
    others, chosen = train_test_split(indices, test_size=size, stratify=target[indices], random_state=0)
    return np.sort(others), np.sort(chosen)
