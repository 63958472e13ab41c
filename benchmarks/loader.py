"""Augmented batches from memory against torchvision's transforms, one PIL image at a time without workers.

python benchmarks/loader.py
"""

import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ndkd.data.in_memory_loader import InMemoryLoader
from ndkd.data.samplers import ShardedOrder

BATCH_SIZE, PAIRS, WANTED = 128, 7, 30
IMAGES, PIL_IMAGES = 50_000, 5_000  # an epoch of CIFAR; a tenth of it for the slow one
AUGMENTATION = [transforms.Pad(4), transforms.RandomCrop(32), transforms.RandomHorizontalFlip(), transforms.ToTensor()]


class PILImages(Dataset):
    """Images as torchvision's CIFAR hands them out."""

    def __init__(self, images: np.ndarray, target: np.ndarray, transform: Callable):
        self.images, self.target, self.transform = images, target.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.target[index]


def images_per_second(loader: Iterable) -> float:
    started = time.perf_counter()
    count = sum(len(target) for _, target in loader)
    return count / (time.perf_counter() - started)


def main() -> None:
    random = np.random.default_rng(0)
    images, target = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, IMAGES)
    ours = InMemoryLoader(images, target, BATCH_SIZE, ShardedOrder(IMAGES, True, 0, 0, 1), pad=4, flip=True)
    pil_images = PILImages(images[:PIL_IMAGES], target[:PIL_IMAGES], transforms.Compose(AUGMENTATION))
    pil = DataLoader(pil_images, BATCH_SIZE, shuffle=True)
    pairs = [(images_per_second(pil), images_per_second(ours)) for _ in range(PAIRS + 1)][1:]  # the first warms up
    ratios = [b / a for a, b in pairs]
    slow, fast = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
    print(
        f"loader, batch {BATCH_SIZE}, pad 4, flip: ours {fast:,.0f} images/s, PIL {slow:,.0f} images/s, ours / PIL = "
        f"{statistics.median(ratios):.1f}x, from {min(ratios):.1f}x to {max(ratios):.1f}x (wanted at least {WANTED}x)"
    )


if __name__ == "__main__":
    main()
