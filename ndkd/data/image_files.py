"""Image files in the folders of their classes: which there are, and reading one."""

import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from ndkd.data.folders import check_link, folder_names, leads_nowhere
from ndkd.errors import NdkdError, shortened

OR_SKIP = "replace or remove it, or set on_error skip"  # of sets that can leave files out
HEIC = (".heic", ".heif")
# pictures, or so people say, that are not read
OTHER_PICTURES = {
    *HEIC,
    ".avif",
    ".gif",
    ".jp2",
    ".j2k",
    ".jpx",
    ".jxl",
    ".svg",
    ".psd",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
}


class ImageFiles(NamedTuple):
    """Paths, as an array of bytes that processes can share, and class indices (N,)."""

    paths: np.ndarray
    target: np.ndarray


@dataclass
class Skipped:
    """Pictures that are not read, by the endings of their names, and classes without any.

    >>> skipped = Skipped()
    >>> for name in ("a.heic", "b.HEIC", "c.gif", "notes.txt"):
    ...     _ = skipped.add(name)
    >>> print(skipped)
    not read: 2 .heic (python -m pip install 'ndkd[heic]'), 1 .gif
    """

    endings: Counter[str] = field(default_factory=Counter)
    classes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def add(self, name: str) -> bool:
        """Count a file if it is a picture by its name; whether it is."""
        if (ending := os.path.splitext(name)[1].lower()) in OTHER_PICTURES:
            self.endings[ending] += 1
        return ending in OTHER_PICTURES

    def __bool__(self) -> bool:
        return bool(self.endings or self.classes or self.unreadable)

    def __str__(self) -> str:
        hint = {ending: " (python -m pip install 'ndkd[heic]')" for ending in HEIC if not has_heif()}
        found = [f"{number} {ending}{hint.get(ending, '')}" for ending, number in self.endings.items()]
        if self.unreadable:
            found.append(f"{len(self.unreadable)} that cannot be read ({shortened(self.unreadable)})")
        if self.classes:
            found.append(f"class folders without images: {shortened(self.classes)}")
        return f"not read: {', '.join(found)}"


@functools.cache
def has_heif() -> bool:
    """Whether HEIC files can be read; the package is told to Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and one that is not hidden.

    >>> [is_image(name) for name in ("a.JPG", "._a.jpg", "a.txt")]
    [True, False, False]
    """
    ending = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (ending in IMG_EXTENSIONS or ending in HEIC and has_heif())


def images_of_classes(folder: Path, skipped: Skipped, skip_empty: bool = False) -> tuple[list[str], ImageFiles]:
    """The classes below a folder, which are its folders' names in alphabetical order, and their images.

    What is hidden, its name beginning with a dot, never counts.

    Args:
        folder: holds a folder for each class.
        skipped: pictures that are not read are added.
        skip_empty: a class without images is left out.

    Raises:
        NdkdError: no folder, none of a class, a class without images.
    """
    wanted = f"wanted {folder}/CLASS/IMAGE.jpg (or .png, …)"
    check_link(folder)
    if not folder.is_dir():
        raise NdkdError(f"there is no folder {folder}: {wanted}")
    if not (names := folder_names(folder)):
        raise NdkdError(f"{folder} holds no class folder: {wanted}")
    classes: list[str] = []
    paths: list[bytes] = []
    target: list[int] = []
    walked: dict[str, Path] = {}
    for name in names:
        before = sum(skipped.endings.values())
        found = list(images_below(folder / name, walked, skipped, skip_empty))
        if not found and not skip_empty:
            others = sum(skipped.endings.values()) - before
            what = (
                f"{others} pictures that are not read: {skipped}"
                if others
                else f"no image ({', '.join(IMG_EXTENSIONS)})"
            )
            raise NdkdError(f"class folder {folder / name} holds {what}; add some, remove it, or set on_error skip")
        if not found:
            skipped.classes.append(name)
            continue
        paths += found
        target += [len(classes)] * len(found)
        classes.append(name)
    if not classes:
        raise NdkdError(f"{folder} holds no image: {wanted}")
    return classes, ImageFiles(np.array(paths), np.array(target, np.int64))


def images_below(folder: Path, walked: dict[str, Path], skipped: Skipped, skips: bool = False) -> Iterator[bytes]:
    """The images in a folder and those below it, folder by folder in the order of their names.

    A link to a folder is followed, but to none that the folder lies in, and each is walked once.

    Args:
        folder: of a class, or of photos without classes.
        walked: the class of each real folder so far; of this class they are added.
        skipped: pictures that are not read are added.
        skips: images that are links to nowhere are left out.

    Raises:
        NdkdError: a folder of two classes, a link that leads nowhere, something with the name of an image that is no
            ordinary file.
    """
    real = os.path.realpath(folder)
    above = {str(parent) for parent in (Path(real), *Path(real).parents, *Path(os.path.abspath(folder)).parents)}
    waiting, folders = [str(folder)], dict[str, list[os.DirEntry[str]]]()
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
        inside, folders[place] = _contents(place, skipped, skips)
        waiting += inside
    for place in sorted(folders):
        for entry in sorted(folders[place], key=lambda entry: entry.name):
            if not is_image(entry.name):
                skipped.add(entry.name)
                continue
            if not entry.is_file():  # reading a pipe would wait for ever
                raise NdkdError(f"image {entry.path} is not an ordinary file: replace or remove it")
            yield os.fsencode(entry.path)


def _contents(place: str, skipped: Skipped, skips: bool) -> tuple[list[str], list[os.DirEntry[str]]]:
    """The folders and the files in a folder, but none that is hidden."""
    folders, files = [], []
    for entry in os.scandir(place):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and leads_nowhere(entry.path):
            if not (skips and is_image(entry.name)):
                check_link(entry.path)
            skipped.unreadable.append(entry.path)
        elif entry.is_dir():
            folders.append(entry.path)
        else:
            files.append(entry)
    return folders, files


@contextmanager
def open_image(path: bytes, remedy: str = "replace or remove it") -> Iterator[Image.Image]:
    """An image file, to be decoded before it is closed.

    Args:
        path: of the file.
        remedy: what to do about one that cannot be read.

    Raises:
        NdkdError: names the file that cannot be read.
    """
    try:
        with Image.open(path) as image:
            yield image
    # of damaged files, and of images that are too large
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        why = getattr(error, "strerror", None) or why  # without the path once more, as bytes
        raise NdkdError(f"image {os.fsdecode(path)} cannot be read ({why}): {remedy}") from error


def readable(paths: Sequence[bytes], skipped: Skipped) -> np.ndarray:
    """Which of the files can be decoded to the end (N,); the others are added to what is skipped."""

    def is_whole(path: bytes) -> bool:
        try:
            with open_image(path) as image:
                image.load()
        except NdkdError:
            return False
        return True

    with ThreadPoolExecutor() as pool:  # decoding runs beside Python
        whole = list(pool.map(is_whole, paths))
    skipped.unreadable += [os.fsdecode(path) for path, is_good in zip(paths, whole, strict=True) if not is_good]
    return np.array(whole, bool)
