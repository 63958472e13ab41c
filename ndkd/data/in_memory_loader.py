"""Small images kept in memory as uint8 and augmented a whole batch at a time, without worker processes."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ndkd.data.base import PartlyLabeled
from ndkd.data.samplers import ShardedOrder
from ndkd.seeds import drawing_from, generator

# of a batch: which images, the windows' offsets y and x, and which are mirrored
Windows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


class InMemoryLoader:
    """Iterates over (images, target) batches; images are float32 (B, c, h, w) in [0, 1], channels last in memory.

    Where images have no label, their target being -1, a batch is ``PartlyLabeled``: the order puts them last.

    On a GPU the whole set lives there and batches are cut out there. The last batch may be smaller; in training a last
    batch of one image is left out, BatchNorm cannot use it.

    Args:
        images: uint8 (N, h, w, c).
        target: class indices (N,).
        batch_size: per rank.
        order: which of them this rank sees; with the epoch, its seed and rank decide the augmentation, whatever the
            device.
        pad: random crop after padding by this many black pixels on each side; 0 for none.
        flip: random horizontal flip.
        device: where the batches are wanted.
    """

    batch_sampler = None  # the trainer asks for it wherever there is a sampler

    def __init__(
        self,
        images: np.ndarray,
        target: np.ndarray,
        batch_size: int,
        order: ShardedOrder,
        pad: int = 0,
        flip: bool = False,
        device: torch.device | str = "cpu",
    ):
        self.images, self.target = images, target.astype(np.int64)
        self.batch_size, self.pad, self.flip, self.device = batch_size, pad, flip, torch.device(device)
        self.sampler = order  # the trainer sets its epoch
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else images
        cut = CutOnCPU if self.device.type == "cpu" else partial(CutOnDevice, device=self.device)
        self._cut = cut(padded, self.target, images.shape[1:3])

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | PartlyLabeled]:
        for indices, (images, target) in zip(self._batches(), self._cut(self._drawn()), strict=True):
            yield self._batch(indices, images.permute(0, 3, 1, 2).float().div_(255), target)

    def _drawn(self) -> Iterator[Windows]:
        """Where the images of each batch are cut."""
        order = self.sampler
        random = generator(order.seed, order.epoch, order.rank)
        for indices in self._batches():
            y, x = random.integers(0, 2 * self.pad + 1, (2, len(indices)))
            yield indices, y, x, random.random(len(indices)) < 0.5 if self.flip else None

    def _batch(self, indices: np.ndarray, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | PartlyLabeled:
        labeled = int((self.target[indices] >= 0).sum())  # of the copy on the host
        return (images, target) if labeled == len(indices) else PartlyLabeled(images, target, labeled)

    def fingerprint(self) -> str:
        """Digest of the images, targets and augmentation, whatever the order and the rank."""
        digest = hashlib.sha256(repr((self.images.shape, self.pad, self.flip)).encode())
        if self.pad or self.flip:
            digest.update(repr((self.sampler.seed, self.sampler.epoch, self.sampler.world_size)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.target.data)
        return digest.hexdigest()

    def _batches(self) -> list[np.ndarray]:
        indices = self.sampler.indices()
        batches = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        if self.sampler.shuffle and batches and len(batches[-1]) == 1:
            batches.pop()
        return batches


class TransformedLoader(InMemoryLoader):
    """The same with one's own augmentation, image by image, on the CPU.

    Args:
        images: uint8 (N, h, w, c).
        target: class indices (N,).
        batch_size: per rank.
        order: which of them this rank sees, each with the seed of its augmentation.
        augmentation: makes an image (c, h, w) of bytes to one of bytes or of floats in [0, 1].
        device: where the batches are wanted.
    """

    def __init__(
        self,
        images: np.ndarray,
        target: np.ndarray,
        batch_size: int,
        order: ShardedOrder,
        augmentation: nn.Module,
        device: torch.device | str = "cpu",
    ):
        super().__init__(images, target, batch_size, order)
        self.augmentation, self.wanted_on = augmentation, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | PartlyLabeled]:
        drawn = iter(self.sampler)
        for indices in self._batches():
            with drawing_from(0):  # each image draws from a seed of its own; what else draws goes on afterwards
                images = torch.stack([self._augmented(*next(drawn)) for _ in indices])
            images = images.to(self.wanted_on, memory_format=torch.channels_last)
            yield self._batch(indices, images, torch.from_numpy(self.target[indices]).to(self.wanted_on))

    def _augmented(self, index: int, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)
        image: Tensor = self.augmentation(torch.from_numpy(self.images[index]).permute(2, 0, 1))
        return image / 255 if image.dtype == torch.uint8 else image

    def fingerprint(self) -> str:
        """Digest of the images, targets and transforms, whatever the order and the rank."""
        drawn_from = self.sampler.seed, self.sampler.epoch
        return hashlib.sha256(f"{super().fingerprint()} {self.augmentation} {drawn_from}".encode()).hexdigest()


class CutOnCPU:
    """Cut windows out of padded images with NumPy: a view of all windows makes it one copy per image.

    Args:
        padded: uint8 (N, H, W, c).
        target: class indices (N,).
        size: (h, w) of a window.
    """

    def __init__(self, padded: np.ndarray, target: np.ndarray, size: tuple[int, int]):
        self.target = torch.from_numpy(target)
        windows = np.lib.stride_tricks.sliding_window_view(np.ascontiguousarray(padded), size, axis=(1, 2))
        self.windows = np.moveaxis(windows, 3, 5)  # (N, y, x, h, w, c)
        self.mirror = np.arange(size[1] * padded.shape[3]).reshape(size[1], -1)[::-1].flatten()

    def __call__(self, drawn: Iterable[Windows]) -> Iterator[tuple[Tensor, Tensor]]:
        """The uint8 (B, h, w, c) windows of each batch and their classes (B,)."""
        for indices, y, x, flipped in drawn:
            images = self.windows[indices, y, x]
            if flipped is not None:
                rows = images.reshape(*images.shape[:2], -1)  # rows of bytes: pixel by pixel takes twice the time
                rows[flipped] = rows[flipped].take(self.mirror, axis=2)
            yield torch.from_numpy(images), self.target[torch.from_numpy(indices)]


class CutOnDevice:
    """The same on a GPU, where the images live: a gather by rows and columns."""

    def __init__(self, padded: np.ndarray, target: np.ndarray, size: tuple[int, int], device: torch.device):
        self.padded, self.target = (torch.from_numpy(array).to(device) for array in (padded, target))
        self.rows, self.columns = (torch.arange(n, device=device) for n in size)

    def __call__(self, drawn: Iterable[Windows]) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = [np.stack([i, y, x, np.zeros_like(x) if f is None else f.astype(x.dtype)]) for i, y, x, f in drawn]
        if not numbers:
            return
        # one transfer for all that an epoch draws, without waiting for it; an index on the CPU would be waited for
        moved = torch.from_numpy(np.concatenate(numbers, axis=1))
        moved = moved.pin_memory() if self.padded.is_cuda else moved
        moved = moved.to(self.padded.device, non_blocking=True)
        columns = torch.stack([self.columns, self.columns.flip(0)])
        for index, y, x, mirrored in (part.unbind() for part in moved.split([each.shape[1] for each in numbers], 1)):
            rows, across = y[:, None] + self.rows, x[:, None] + columns[mirrored]
            yield self.padded[index[:, None, None], rows[:, :, None], across[:, None, :]], self.target[index]
