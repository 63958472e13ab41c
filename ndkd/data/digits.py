"""scikit-learn's 1,797 handwritten digits: real images that need no download."""

import numpy as np
from sklearn.datasets import load_digits
from torch import from_numpy
from torch.nn import functional as F
from torchvision.transforms import v2

from ndkd.data.in_memory import InMemoryDataModule, Split

TEST_SIZE = 1000


class DigitsDataModule(InMemoryDataModule):
    """Handwritten digits as 3-channel 32×32 images: 1,000 to test on, 797 to train and validate on.

    The split is stratified and the same for every seed. Source: https://archive.ics.uci.edu/dataset/80.

    Args:
        train_size: number of training images, to make labels scarce; by default all that validation leaves.
        val_size: number of validation images, split off from the training ones; 0 validates on the test images.
        batch_size: images per step and process.
        pad: random crop after padding by this many pixels; 0 for no augmentation.
        balanced_sampling: show all classes equally often in training.
        transforms: classes of ``torchvision.transforms.v2`` for training images, in the place of ``pad``.

    Raises:
        NdkdError: sizes that the set cannot give.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    image_shape = (3, 32, 32)
    mean = (0.305, 0.305, 0.305)
    std = (0.324, 0.324, 0.324)

    def __init__(
        self,
        train_size: int | None = None,
        val_size: int = 200,
        batch_size: int = 64,
        pad: int = 3,
        balanced_sampling: bool = False,
        transforms: list[v2.Transform] | None = None,
    ):
        super().__init__(train_size, val_size, batch_size, pad, False, balanced_sampling, transforms)

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            train, test = self._split(digit_images(), TEST_SIZE, "test")
            self.keep({"train": train, "test": test})


def digit_images() -> Split:
    """The images as uint8 (1797, 32, 32, 3), enlarged from 8×8, and their digits (1797,)."""
    digits = load_digits()
    small = from_numpy(digits.images / 16.0).unsqueeze(1)
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    grey = (large * 255).round().byte().permute(0, 2, 3, 1)
    return grey.expand(-1, -1, -1, 3).contiguous().numpy(), digits.target.astype(np.int64)
