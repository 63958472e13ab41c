"""Images in ``root/SPLIT/CLASS/*``: which there are, and reading one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ndkd.errors import NdkdError


class ImageFiles(NamedTuple):
    """Paths, as an array of bytes that processes can share, and class indices (N,)."""

    paths: np.ndarray
    target: np.ndarray


def find_images(root: Path, splits: Sequence[str]) -> tuple[tuple[str, ...], dict[str, ImageFiles]]:
    """The classes, which are the folders' names in alphabetical order, and the images of each split.

    Files that are no images by their names are passed over.

    Raises:
        NdkdError: a missing split, classes that differ between splits, a class without images.
    """
    classes = {split: _class_folders(root / split) for split in splits}
    files = {split: _images(root / split, classes[split]) for split in splits}
    first, *others = splits
    for split in others:
        pairs = (first, split), (split, first)
        alone = {one: [name for name in classes[one] if name not in classes[other]] for one, other in pairs}
        if any(alone.values()):
            found = "; ".join(f"only in {one}: {', '.join(names[:5])}" for one, names in alone.items() if names)
            raise NdkdError(f"{root}: {first} and {split} have different classes; {found}")
    return tuple(classes[first]), files


def _class_folders(split: Path) -> list[str]:
    if not split.is_dir():
        raise NdkdError(f"there is no folder {split}: wanted {split}/CLASS/IMAGE.jpg (or .png, …)")
    names = sorted(entry.name for entry in os.scandir(split) if entry.is_dir())
    if not names:
        raise NdkdError(f"{split} holds no class folder: wanted {split}/CLASS/IMAGE.jpg (or .png, …)")
    return names


def _images(split: Path, classes: list[str]) -> ImageFiles:
    numbers = {name: number for number, name in enumerate(classes)}
    files = make_dataset(str(split), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    paths, target = np.array([os.fsencode(path) for path, _ in files]), np.array([k for _, k in files], np.int64)
    empty = np.bincount(target, minlength=len(classes)) == 0
    if empty.any():
        raise NdkdError(f"class folder {split / classes[empty.argmax()]} holds no image ({', '.join(IMG_EXTENSIONS)})")
    return ImageFiles(paths, target)


@contextmanager
def opened(path: bytes) -> Iterator[Image.Image]:
    """An image file, to be decoded before it is closed.

    Raises:
        NdkdError: names the file that cannot be read.
    """
    try:
        with Image.open(path) as image:
            yield image
    # of damaged files, and of images that are too large
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise NdkdError(f"image {os.fsdecode(path)} cannot be read ({why}): replace or remove it") from error
