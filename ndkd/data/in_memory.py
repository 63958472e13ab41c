"""What the DataModules of small images share."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torchvision.transforms import v2

from ndkd.data.classification import ClassificationDataModule, check_taught
from ndkd.data.image_files import OR_SKIP, ImageFiles, open_image
from ndkd.data.in_memory_loader import InMemoryLoader, TransformedLoader
from ndkd.data.own_transforms import OwnTransforms
from ndkd.data.unlabeled import NO_LABEL
from ndkd.errors import NdkdError

Transform = Callable[[Any], torch.Tensor]
Split = tuple[np.ndarray, np.ndarray]  # images uint8 (N, h, w, c), class indices (N,)


class InMemoryDataModule(ClassificationDataModule):
    """Small images in memory: a validation split, scarce labels, augmentation of whole batches.

    A subclass says ``num_classes``, ``class_names``, ``image_shape``, ``mean`` and ``std``; its ``setup`` calls
    ``keep``.

    Args:
        train_size: number of training images, stratified, to make labels scarce; by default all that validation leaves.
        val_size: number of validation images, split off from the training ones; 0 validates on the set's own
            validation images or else on the test images.
        batch_size: images per step and process.
        pad: random crop after padding by this many pixels; 0 for none.
        flip: random horizontal flip.
        balanced_sampling: show all classes equally often in training: images of small ones again and again, not all
            images of large ones.
        transforms: classes of ``torchvision.transforms.v2`` for training images, which take the place of ``pad`` and
            ``flip``.
        unlabeled: a folder of images without labels, arranged in whatever way, to train on as well: they are augmented
            like the others, and loss terms that read no ``target`` learn from them.
        unlabeled_ratio: so many of them for each labelled image of a batch, which has ``batch_size`` of these; an epoch
            is one pass over the labelled images.

    Raises:
        NdkdError: sizes that the set cannot give, transforms after which no batch can be made, no images without
            labels, or labelled ones among them.
    """

    def __init__(
        self,
        train_size: int | None = None,
        val_size: int = 0,
        batch_size: int = 128,
        pad: int = 4,
        flip: bool = True,
        balanced_sampling: bool = False,
        transforms: list[v2.Transform] | None = None,
        unlabeled: Path | None = None,
        unlabeled_ratio: float = 1.0,
    ):
        super().__init__(balanced_sampling, transforms, unlabeled, unlabeled_ratio)
        if batch_size is None or batch_size < 2:
            raise NdkdError(f"batch_size: wanted at least 2 images, got {batch_size}")
        if pad is None or pad < 0:
            raise NdkdError(f"pad: wanted a number of pixels, got {pad}")
        if val_size is None or val_size < 0:
            raise NdkdError(f"val_size: wanted a number of images, 0 for none of the training images, got {val_size}")
        self.train_size, self.val_size, self.batch_size = train_size, val_size, batch_size
        self.pad, self.flip = pad, flip

    def keep(self, splits: dict[str, Split]) -> None:
        """Take the splits ``train``, ``test`` and, where the set has one, ``val``; split off what is asked."""
        if self.val_size:
            splits["train"], splits["val"] = self._split(splits["train"], self.val_size, "val_size")
            check_taught(splits["train"][1], self.class_names, f"val_size {self.val_size} takes all of them; lower it")
        splits.setdefault("val", splits["test"])
        if self.train_size is not None and self.train_size != len(splits["train"][1]):
            splits["train"] = self._split(splits["train"], self.train_size, "train_size")[1]
            check_taught(splits["train"][1], self.class_names, f"train_size {self.train_size} is too few; raise it")
        self.splits = splits
        images = splits["train"][0]
        size = images.shape[1:3]
        if self.pad > min(size):
            raise NdkdError(f"pad: wanted at most the images' {min(size)} pixels, got {self.pad}")
        self.augmentation = None if self.transforms is None else OwnTransforms(self.transforms, size)
        if self.augmentation is not None:
            self.augmentation.try_on(torch.from_numpy(images[0]).permute(2, 0, 1))

    def keep_unlabeled(
        self, stage: str | None, transform: Transform, labeled: Mapping[str, ImageFiles], skips: bool = False
    ) -> None:
        """Read the images without labels for a training, after ``keep``.

        Args:
            stage: of ``setup``.
            transform: makes an image to bytes (c, h, w) of the size of the others.
            labeled: the files of the other images, by split, where there are files.
            skips: leave out what cannot be read.
        """
        if self.find_unlabeled(stage, labeled, skips):
            self.unlabeled_images = pixels_of(self.unlabeled_paths, transform, self.splits["train"][0].shape[1:3])

    def loader(self, split: str, augment: bool = False, shuffle: bool = False) -> InMemoryLoader:
        (images, target), pad, flip = self.splits[split], self.pad if augment else 0, self.flip and augment
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        order, batch_size = self.order(split, shuffle), self.batch_size
        if split == "train" and augment and shuffle and self.unlabeled_size:
            none = np.full(self.unlabeled_size, NO_LABEL, target.dtype)
            images, target = np.concatenate([images, self.unlabeled_images]), np.concatenate([target, none])
            order = beside = self.order_with_unlabeled()
            batch_size = beside.batch_size
        if augment and self.augmentation is not None:
            return TransformedLoader(images, target, batch_size, order, self.augmentation, device)
        return InMemoryLoader(images, target, batch_size, order, pad, flip, device)

    def _split(self, split: Split, size: int, option: str) -> tuple[Split, Split]:
        """Split ``size`` images off, stratified and the same for every seed: (the others, those).

        An image that is the only one of its class stays in training, where nothing else would teach it.
        """
        (images, target), fewest = split, self.num_classes
        most = len(target) - fewest
        if not fewest <= size <= most:
            raise NdkdError(f"{option}: wanted {fewest} to {most} images (there are {len(target)}), got {size}")
        single = np.flatnonzero(np.bincount(target)[target] == 1)
        places, is_training = np.setdiff1d(np.arange(len(target)), single), option == "train_size"
        number = size - len(single) if is_training else size
        others, chosen = train_test_split(places, test_size=number, stratify=target[places], random_state=0)
        if is_training:
            chosen = np.append(chosen, single)
        else:
            others = np.append(others, single)
        others, chosen = np.sort(others), np.sort(chosen)
        return (images[others], target[others]), (images[chosen], target[chosen])


def pixels_of(paths: np.ndarray, transform: Transform, size: Sequence[int] | None = None) -> np.ndarray:
    """Image files as bytes (N, h, w, c).

    Args:
        paths: of the files.
        transform: makes an image to bytes (c, h, w).
        size: (h, w) that all must have; by default the first image's.

    Raises:
        NdkdError: a file that cannot be read, an image of another size.
    """

    def pixels(path: bytes) -> np.ndarray:
        with open_image(path, OR_SKIP) as image:
            return np.asarray(transform(image).permute(1, 2, 0))

    first = tuple(size or pixels(paths[0]).shape[:2])
    images = np.empty((len(paths), *first, 3), np.uint8)
    with ThreadPoolExecutor() as pool:  # decoding runs beside Python
        for number, image in enumerate(pool.map(pixels, paths)):
            if image.shape[:2] != first:
                found, wanted = ("×".join(map(str, shape)) for shape in (image.shape[:2], first))
                path = os.fsdecode(paths[number])
                raise NdkdError(f"image {path} is {found}, wanted {wanted} as the first; set image_size")
            images[number] = image
    return images
