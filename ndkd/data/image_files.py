"""Images in ``root/SPLIT/CLASS/*``: which there are, and reading one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

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
    wanted = f"wanted {split}/CLASS/IMAGE.jpg (or .png, …)"
    if not split.is_dir():
        raise NdkdError(f"there is no folder {split}: {wanted}")
    classes = sorted(entry.name for entry in os.scandir(split) if entry.is_dir())
    if not classes:
        raise NdkdError(f"{split} holds no class folder: {wanted}")
    paths, target = [], []
    walked: dict[str, Any] = {}
    for number, name in enumerate(classes):
        found = list(_images_below(split / name, walked))
        if not found:
            raise NdkdError(f"class folder {split / name} holds no image ({', '.join(IMG_EXTENSIONS)})")
        paths += found
        target += [number] * len(found)
    return classes, ImageFiles(np.array(paths), np.array(target, np.int64))


def _images_below(folder: Path, walked: dict[str, Path]) -> Iterator[bytes]:
    """The images of a class, folder by folder in the order of their names.

    A link to a folder is followed, but to none that the class lies in, and each folder is walked once.

    Args:
        folder: of the class.
        walked: the class of each real folder so far; of this class they are added.

    Raises:
        NdkdError: a folder of two classes, or something with the name of an image that is no ordinary file.
    """
    real = os.path.realpath(folder)
    above = {str(parent) for parent in (Path(real), *Path(real).parents, *Path(os.path.abspath(folder)).parents)}
    waiting, folders = [str(folder)], {}
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if walked.get(real) == folder or (real in above and place != str(folder)):
            continue
        if real in walked:
            raise NdkdError(
                f"{place} and {walked[real]} are one folder, its images would be of two classes; remove one"
            )
        walked[real] = folder
        entries = list(os.scandir(place))
        waiting += [entry.path for entry in entries if entry.is_dir()]
        folders[place] = [entry for entry in entries if not entry.is_dir()]
    for place in sorted(folders):
        for entry in sorted(folders[place], key=lambda entry: entry.name):
            if not entry.name.lower().endswith(IMG_EXTENSIONS):
                continue
            if not entry.is_file():  # reading a pipe would wait for ever
                raise NdkdError(f"image {entry.path} is no ordinary file: replace or remove it")
            yield os.fsencode(entry.path)


@contextmanager
def open_image(path: bytes) -> Iterator[Image.Image]:
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
