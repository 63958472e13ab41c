"""Images without labels: which there are, and in which order they come beside the labelled ones."""

import os
from collections.abc import Iterator, Mapping
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ndkd.data.base import PartlyLabeled
from ndkd.data.folders import check_link
from ndkd.data.image_files import ImageFiles, Skipped, images_below, readable
from ndkd.data.samplers import ShardedOrder
from ndkd.errors import NdkdError
from ndkd.seeds import generator

NO_LABEL = -1
MOST = 100  # unlabelled images for each labelled one


def check_ratio(ratio: float) -> None:
    """Raise ``NdkdError`` unless a batch can have so many unlabelled images for each labelled one."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= MOST:
        raise NdkdError(
            f"unlabeled_ratio: wanted a number above 0 and at most {MOST}, got {ratio}; to read no unlabelled images, "
            "leave unlabeled out"
        )


def unlabeled_files(folder: Path, labeled: Mapping[str, ImageFiles], skips: bool) -> tuple[np.ndarray, Skipped]:
    """The images in a folder, however it is arranged, and what in it is not read.

    Args:
        folder: of images, in folders or not, whose names are ignored.
        labeled: the files of the other images, by split; none of them may be among those of the folder.
        skips: leave out what cannot be read.

    Raises:
        NdkdError: no folder, no image in it, an image that is among the labelled ones as well.
    """
    check_link(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise NdkdError(f"unlabeled: wanted a folder of images, {folder} {found}")
    skipped = Skipped()
    paths = list(images_below(folder, {}, skipped, skips))
    _check_apart(folder, paths, labeled)
    if skips and paths:
        paths = list(compress(paths, readable(paths, skipped)))
    if not paths:
        beside = f"; {skipped}" if skipped else ""
        raise NdkdError(f"unlabeled: {folder} holds no image (.jpg, .png, …){beside}; add some, or leave unlabeled out")
    return np.array(paths), skipped


def _check_apart(folder: Path, paths: list[bytes], labeled: Mapping[str, ImageFiles]) -> None:
    known = {_file(path): (split, path) for split, files in labeled.items() for path in files.paths.tolist()}
    both = [(path, *known[file]) for path in paths if (file := _file(path)) in known]
    if not both:
        return
    path, split, other = both[0]
    same = "" if os.path.abspath(path) == os.path.abspath(other) else f" ({os.fsdecode(other)})"
    more = f" and {len(both) - 1:,} more" if len(both) > 1 else ""
    raise NdkdError(
        f"unlabeled: {os.fsdecode(path)}{more} of {folder} {'are' if more else 'is'} among the labelled {split} "
        f"images{same}; give a folder that has none of these"
    )


def _file(path: bytes) -> tuple[int, int]:
    """What makes two paths the same file, by a link of whatever kind or not."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


class UnlabeledBeside(ShardedOrder):
    """An order of labelled images, with unlabelled ones behind those of each batch.

    An epoch is one pass over the labelled images, as it would be without the others. These are drawn in shuffled passes
    of their own that go on from one epoch to the next: each is shown once before one is shown again. What all processes
    together are shown in an epoch depends on (seed, epoch) alone, and how an image is augmented on (seed, pass, image).

    Args:
        order: of the labelled images, shuffled; their indices come first.
        unlabeled: number of the others.
        batch_size: labelled images of a batch.
        ratio: unlabelled images for each labelled one, at least one in a batch.
        drop_last: leave out the last labelled images where they do not fill a batch; a single one always is.
    """

    def __init__(self, order: ShardedOrder, unlabeled: int, batch_size: int, ratio: float, drop_last: bool = False):
        super().__init__(order.size, True, order.seed, order.rank, order.world_size)
        self.labeled, self.unlabeled, self.ratio = order, unlabeled, ratio
        number = len(order)
        left = number % batch_size
        if left == 1 or drop_last and number >= batch_size:
            number -= left
        self.sizes = [min(batch_size, number - start) for start in range(0, number, batch_size)]
        self.beside = [max(1, round(size * ratio)) for size in self.sizes]
        self.batch_size = batch_size + max(1, round(batch_size * ratio))  # of both

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.labeled.set_epoch(self.epoch)

    def __len__(self) -> int:
        return sum(self.sizes) + sum(self.beside)

    def indices(self) -> np.ndarray:
        return self._mixed(self.labeled.indices(), self._drawn()[0])

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]  # an index with a seed
        labeled = np.array(list(self.labeled), np.int64).reshape(-1, 2)
        unlabeled = np.stack(self._drawn(), axis=1)
        return map(tuple, self._mixed(labeled, unlabeled).tolist())

    def _mixed(self, labeled: np.ndarray, unlabeled: np.ndarray) -> np.ndarray:
        parts, start, others = [labeled[:0]], 0, 0
        for size, beside in zip(self.sizes, self.beside, strict=True):
            parts += labeled[start : start + size], unlabeled[others : others + beside]
            start, others = start + size, others + beside
        return np.concatenate(parts)

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """The unlabelled images of this process in this epoch, and the seeds by which they are augmented."""
        each = sum(self.beside) * self.world_size
        places = np.arange(self.epoch * each, (self.epoch + 1) * each)[self.rank :: self.world_size]
        number = places // self.unlabeled  # of the pass
        indices, seeds = np.empty_like(places), np.empty_like(places)
        for one in np.unique(number).tolist():
            mine = number == one
            # zeros, and a last number, that nobody else draws with
            order = generator(self.seed, one, 0, 0, 0).permutation(self.unlabeled)
            indices[mine] = order[places[mine] % self.unlabeled]
            seeds[mine] = generator(self.seed, one, 0, 0, 1).integers(2**63, size=self.unlabeled)[indices[mine]]
        return indices + self.size, seeds


def mixed_apart(mixing: nn.Module, batch: PartlyLabeled) -> PartlyLabeled:
    """MixUp or CutMix of the labelled images with one another, and of the others with one another."""
    images, target, labeled = batch
    first, soft = mixing(images[:labeled], target[:labeled])
    rest, _ = mixing(images[labeled:], target[labeled:].clamp_min(0))  # of which the labels count for nothing
    none = soft.new_zeros(len(rest), soft.shape[1])
    return PartlyLabeled(torch.cat([first, rest]), torch.cat([soft, none]), labeled)
