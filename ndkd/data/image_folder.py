"""Anyone's images of any size, a folder per class, read from disk as they are needed."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from ndkd.data.base import PartlyLabeled
from ndkd.data.classification import ClassificationDataModule, check_taught
from ndkd.data.disk_loader import ImageLoader, check_least, worker_options
from ndkd.data.image_files import OR_SKIP, ImageFiles, open_image
from ndkd.data.layouts import image_set
from ndkd.data.own_transforms import OwnTransforms
from ndkd.data.transforms import CropWhileDecoding, InRGB, Pixels, RandAugment, erasing, mixing
from ndkd.data.unlabeled import NO_LABEL, mixed_apart
from ndkd.errors import NdkdError
from ndkd.seeds import drawing_from, generator, run_seed

Batch = tuple[Tensor, Tensor] | PartlyLabeled
MOST_PIXELS = 8192  # in height and width: more is a slip of the keyboard, and takes all the memory


class ImageFolderDataModule(ClassificationDataModule):
    """Images in ``root/train/CLASS/*``, ``root/val/CLASS/*`` and, where it exists, ``root/test/CLASS/*``.

    The folders of splits may also be called ``Train``, ``valid``, ``validation``, …; other layouts, class folders alone
    and a CSV file, are those of ``ndkd.data.layouts.find_images``. The classes are the folders' names in
    alphabetical order. Training images are cropped at random (``RandomResizedCrop``) and flipped; others are resized
    and cut from the middle. How an image is augmented depends on (seed, epoch, image) alone, not on the number of
    workers or processes.

    Args:
        root: the folder.
        batch_size: images per step and process.
        image_size: height and width of the crops.
        resize: length to which the shorter side is resized before the middle is cut out; by default 8/7 of
            ``image_size`` (256 for 224).
        interpolation: of both.
        rand_augment: timm's RandAugment, such as ``rand-m9-mstd0.5-inc1``; by default none.
        erase: probability with which a rectangle of a training image becomes noise.
        mixup: alpha of MixUp, 0 for none; with ``cutmix`` one of both is drawn for each batch. The target becomes
            soft (B, C).
        cutmix: alpha of CutMix, 0 for none.
        drop_last: leave out the last images of an epoch where they do not fill a batch; a single one always is.
        num_workers: processes that read images, for each process that trains; by default one for each core, 16 at most.
        labels: a CSV file with the columns ``file`` and ``label`` and, where there are splits, ``split``.
        val_fraction: share of the training images to validate on, where the set has none for it; chosen by the files'
            names alone, of each class.
        test_fraction: likewise to test on; 0 tests on the validation images.
        on_error: ``stop`` at a file that cannot be read and a class without images, or ``skip`` these; to find them,
            all files are decoded once.
        balanced_sampling: show all classes equally often in training: images of small ones again and again, not all
            images of large ones.
        transforms: classes of ``torchvision.transforms.v2`` for training images, after these are decoded, turned
            upright and RGB; they take the place of crop, flip, ``rand_augment`` and ``erase``, and must make images of
            ``image_size``.
        unlabeled: a folder of images without labels, arranged in whatever way, to train on as well: they are augmented
            like the others, and loss terms that read no ``target`` learn from them.
        unlabeled_ratio: so many of them for each labelled image of a batch, which has ``batch_size`` of these; an epoch
            is one pass over the labelled images.

    Raises:
        NdkdError: a missing split, classes that differ between splits, a class without images, transforms after which
            no batch can be made, no images without labels, or labelled ones among them; in use, a file that cannot be
            read.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    upright = True  # turn images as their EXIF data says

    def __init__(
        self,
        root: Path,
        batch_size: int = 64,
        image_size: int = 224,
        resize: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        rand_augment: str | None = None,
        erase: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        drop_last: bool = False,
        num_workers: int | None = None,
        labels: Path | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        on_error: Literal["stop", "skip"] = "stop",
        balanced_sampling: bool = False,
        transforms: list[v2.Transform] | None = None,
        unlabeled: Path | None = None,
        unlabeled_ratio: float = 1.0,
    ):
        super().__init__(balanced_sampling, transforms, unlabeled, unlabeled_ratio)
        check_least(batch_size=(batch_size, 2), image_size=(image_size, 1), num_workers=(num_workers or 0, 0))
        check_least(mixup=(mixup, 0), cutmix=(cutmix, 0), resize=(1 if resize is None else resize, 1))
        if image_size > MOST_PIXELS or (resize or 0) > MOST_PIXELS:
            raise NdkdError(
                f"image_size and resize: wanted at most {MOST_PIXELS} pixels, got {image_size} and {resize}"
            )
        if not 0 <= erase <= 1:
            raise NdkdError(f"erase: wanted a probability, 0 to 1, got {erase}")
        self.root, self.batch_size, self.num_workers = Path(root), batch_size, num_workers
        self.labels, self.skips = labels, on_error == "skip"
        self.fractions = {"test": test_fraction, "val": val_fraction}
        self.mixup, self.cutmix, self.drop_last = mixup, cutmix, drop_last
        self.image_shape = (3, image_size, image_size)
        kind, in_rgb = v2.InterpolationMode(interpolation), InRGB(self.upright)
        middle = v2.Resize(resize or round(image_size * 8 / 7), kind), v2.CenterCrop(image_size)
        self.plain = v2.Compose([in_rgb, *middle, Pixels()])
        if transforms is not None:
            if rand_augment or erase:
                raise NdkdError("transforms take the place of rand_augment and erase; leave these out")
            own = OwnTransforms(transforms, (image_size, image_size))
            self.augmented = v2.Compose([in_rgb, Pixels(), own])
            return
        strong = [RandAugment(rand_augment, image_size, self.mean)] if rand_augment else []
        crop = CropWhileDecoding(image_size, interpolation=kind), in_rgb, v2.RandomHorizontalFlip()
        self.augmented = v2.Compose([*crop, *strong, Pixels(), *erasing(erase, self.mean, self.std)])

    @property
    def transform(self) -> v2.Compose:
        """What becomes of an image that is evaluated."""
        return self.plain

    @property
    def predict_files(self) -> list[str]:
        """The files of the test images, in order."""
        return [os.fsdecode(path) for path in self.splits["test"].paths]

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self._find(stage)
        self.find_unlabeled(stage, self.splits, self.skips)

    def _find(self, stage: str | None) -> None:
        found = image_set(self.root, self.labels, self.fractions, self.skips, self.unlabeled)
        self.class_names, self.remarks = found.class_names, found.remarks
        self.num_classes = len(self.class_names)
        self.mixing = mixing(self.mixup, self.cutmix, self.num_classes)
        val = found.splits.get("val", found.splits.get("test"))
        if val is None:
            raise NdkdError(f"{self.root} has no images to validate on: set val_fraction above 0")
        self.splits = {"test": val, **found.splits, "val": val}
        check_taught(
            found.splits["train"].target, self.class_names, "none can be read; replace them, or drop the class"
        )
        if self.transforms is not None and stage in (None, "fit"):
            with drawing_from(0), open_image(found.splits["train"].paths[0], OR_SKIP) as image:  # before the run begins
                self.augmented(image)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Mix training images, on the device they are on."""
        if self.mixing is None or self.trainer is None or not self.trainer.training:
            return batch
        images = batch[0].float().div_(255) if batch[0].dtype == torch.uint8 else batch[0]
        begun = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready  # batches of this epoch
        numbers = self.trainer.current_epoch, self.trainer.global_rank, begun
        with drawing_from(int(generator(run_seed(), *numbers).integers(2**63))):  # whatever a student has drawn before
            if isinstance(batch, PartlyLabeled):
                return mixed_apart(self.mixing, batch._replace(images=images))
            return self.mixing(images, batch[1])

    def loader(self, split: str, augment: bool = False, shuffle: bool = False) -> ImageLoader:
        if split == "train" and augment and shuffle and self.unlabeled_size:
            return self._with_unlabeled()
        order = self.order(split, shuffle)
        left = len(order) % self.batch_size
        drop_last = shuffle and (self.drop_last and len(order) >= self.batch_size or left == 1)
        return ImageLoader(
            FolderDataset(self.splits[split], self.augmented if augment else self.plain, augment),
            batch_size=self.batch_size,
            sampler=order,
            drop_last=drop_last,  # of a single image BatchNorm has no variance
            collate_fn=collate_channels_last,
            **worker_options(self, persistent=shuffle),
        )

    def _with_unlabeled(self) -> ImageLoader:
        paths, target = self.splits["train"]
        none = np.full(self.unlabeled_size, NO_LABEL, target.dtype)
        files = ImageFiles(np.concatenate([paths, self.unlabeled_paths]), np.concatenate([target, none]))
        order = self.order_with_unlabeled(self.drop_last)
        return ImageLoader(
            FolderDataset(files, self.augmented, is_random=True),
            batch_size=order.batch_size,
            sampler=order,
            collate_fn=collate_channels_last,
            **worker_options(self, persistent=True),
        )


class FolderDataset(Dataset):
    """Image ``index``, transformed with a random seed of its own, and its class: ``dataset[index, seed]``.

    Args:
        files: the images.
        transform: makes a PIL image to a tensor (c, h, w).
        is_random: whether the transform draws.

    Raises:
        NdkdError: names the file that cannot be read.
    """

    def __init__(self, files: ImageFiles, transform: v2.Compose, is_random: bool):
        self.paths, self.target = files
        self.transform, self.is_random = transform, is_random

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = item
        with open_image(self.paths[index], OR_SKIP) as image, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a tenth of an image's time
            return self.transform(image), self.target[index]


def collate_channels_last(samples: list[tuple[Tensor, int]]) -> Batch:
    """A batch (B, c, h, w), pixel by pixel in memory; ``PartlyLabeled`` where images have no label."""
    images, target = default_collate([(image.permute(1, 2, 0), target) for image, target in samples])
    images, labeled = images.permute(0, 3, 1, 2), int((target != NO_LABEL).sum())
    return (images, target) if labeled == len(target) else PartlyLabeled(images, target, labeled)
