"""A folder of photos: epochs of ImageFolderDataModule against torchvision's reference pipeline for classification.

The reference reads with PIL, normalises each image and collates floats. The same files, workers and batch size on both
sides. Ours ends with floats in [0, 1], channels last, since each model normalises for itself; ``--normalised`` takes
both to what the network reads: ours normalised, the reference's channels last as well.

    python benchmarks/image_folder.py [--images N] [--workers N] [--pairs N] [--phone] [--normalised]
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ndkd.data import ImageFolderDataModule

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, QUALITY, GRAIN = 8, 90, 12
TRAIN = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
EVAL = [v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.PILToTensor()]
TO_MODEL = [v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]


def write_photos(folder: Path, count: int, width: int, height: int) -> None:
    """JPEGs of parts of scikit-learn's two photos, sizes up to a tenth off, a quarter of them upright."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % 2]
        size = (np.array([width, height]) * random.uniform(0.9, 1.1, 2)).astype(int)
        size = size[::-1] if random.random() < 0.25 else size
        part = size * random.uniform(0.6, 1) * (np.array(photo.size) / size).min()
        corner = random.random(2) * (np.array(photo.size) - part)
        image = photo.resize(tuple(size.tolist()), Image.Resampling.BICUBIC, box=(*corner, *(corner + part)))
        # an enlarged photo is smooth and its JPEG decodes too fast; grain gives it the bytes of a real one
        pixels = np.asarray(image) + random.integers(-GRAIN, GRAIN + 1, (*size[::-1], 3), dtype=np.int16)
        file = folder / f"class{number % CLASSES}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=QUALITY)


def images_per_second(loader: DataLoader, finish: Callable) -> float:
    started = time.perf_counter()
    count = sum(len(finish(*batch)) for batch in loader)
    return count / (time.perf_counter() - started)


def compare(what: str, runs: list[tuple[DataLoader, Callable]], pairs: int) -> None:
    speeds = []
    for epoch in range(pairs + 1):
        runs[0][0].sampler.set_epoch(epoch)
        speeds.append([images_per_second(*run) for run in runs])
    speeds = speeds[1:]  # the first epoch starts the workers
    ratios = [ours / theirs for ours, theirs in speeds]
    ours, theirs = (statistics.median(column) for column in zip(*speeds, strict=True))
    print(
        f"{what}: ours {ours:,.1f} images/s, reference {theirs:,.1f} images/s, ours / reference = "
        f"{statistics.median(ratios):.2f}x, from {min(ratios):.2f}x to {max(ratios):.2f}x",
        flush=True,
    )


def check_pixels(loader: DataLoader, reference: DataLoader) -> None:
    wrong = count = 0
    for (images, target), (wanted, wanted_target) in zip(loader, reference, strict=True):
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert target.tolist() == wanted_target.tolist()
        wrong += (images != wanted).flatten(1).any(1).sum().item()
        count += len(target)
    print(f"eval pixels: {count - wrong} of {count} images as the reference's")
    assert not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="of each split; default 640, or 64 large ones")
    parser.add_argument("--workers", type=int, help="default: the DataModule's")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--phone", action="store_true", help="4000×3000 instead of ImageNet's usual 500×375")
    parser.add_argument("--normalised", action="store_true", help="to what the network reads, see above")
    options = parser.parse_args()
    # batches enough for each worker to have several
    count, batch_size, size = (64, 8, (4000, 3000)) if options.phone else (640, 64, (500, 375))
    count = options.images or count
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))

    def finish_reference(images: Tensor, _target: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if options.normalised else images

    def finish(*batch: Tensor) -> Tensor:
        images, _ = data.on_after_batch_transfer(batch, 0)
        images = images.float().div_(255) if images.dtype == torch.uint8 else images  # as the training step does
        return (images - mean) / std if options.normalised else images

    def reference(split: str, transforms: list, ours: DataLoader) -> DataLoader:
        # the same loader, down to whether workers are kept
        shared = {name: getattr(ours, name) for name in ("num_workers", "persistent_workers", "pin_memory")}
        dataset = ImageFolder(root / split, v2.Compose(transforms))
        return DataLoader(dataset, batch_size, shuffle=split == "train", **shared)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "train", count, *size)
        shutil.copytree(root / "train", root / "val")
        data = ImageFolderDataModule(root, batch_size=batch_size, num_workers=options.workers)
        data.setup()
        train, val = data.train_dataloader(), data.val_dataloader()
        kib = statistics.mean(file.stat().st_size for file in root.glob("train/*/*")) / 1024
        about = f"{count} photos about {size[0]}×{size[1]}, {kib:,.0f} KiB each"
        print(f"{about}; batch {batch_size}, {train.num_workers} workers", flush=True)
        check_pixels(val, reference("val", EVAL, val))
        for what, split, transforms, ours in (("train", "train", TRAIN, train), ("eval", "val", EVAL, val)):
            theirs = reference(split, transforms + TO_MODEL, ours)
            compare(what, [(ours, finish), (theirs, finish_reference)], options.pairs)


if __name__ == "__main__":
    main()
