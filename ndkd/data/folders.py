"""Images in ``root/SPLIT/CLASS/*``: which there are, and reading one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder

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
    found = {split: _read(root / split) for split in splits}
    classes = {split: names for split, (names, _) in found.items()}
    first, *others = splits
    for split in others:
        pairs = (first, split), (split, first)
        alone = {one: [name for name in classes[one] if name not in classes[other]] for one, other in pairs}
        if any(alone.values()):
            where = "; ".join(f"only in {one}: {', '.join(names[:5])}" for one, names in alone.items() if names)
            raise NdkdError(f"{root}: {first} and {split} have different classes; {where}")
    return tuple(classes[first]), {split: files for split, (_, files) in found.items()}


def _read(split: Path) -> tuple[list[str], ImageFiles]:
    try:
        found = ImageFolder(split, allow_empty=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"{split} holds no class folder" if split.is_dir() else f"there is no folder {split}"
        raise NdkdError(f"{what}: wanted {split}/CLASS/IMAGE.jpg (or .png, …)") from error
    paths, target = np.array([os.fsencode(path) for path, _ in found.samples]), np.array(found.targets, np.int64)
    empty = np.bincount(target, minlength=len(found.classes)) == 0
    if empty.any():
        folder = split / found.classes[empty.argmax()]
        raise NdkdError(f"class folder {folder} holds no image ({', '.join(IMG_EXTENSIONS)})")
    return found.classes, ImageFiles(paths, target)


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
