"""Small images kept in memory as uint8 and augmented a whole batch at a time, without worker processes."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ndkd.seeds import generator


class ShardedOrder:
    """The order in which one rank sees the images of an epoch.

    Shuffled, it depends on (seed, epoch) alone and every rank gets equally many; in order, the shards are not
    padded, so that each image is seen exactly once.
    """

    def __init__(self, size: int, shuffle: bool, seed: int, rank: int, world_size: int):
        self.size, self.shuffle, self.seed, self.rank, self.world_size = size, shuffle, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def indices(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.rank, self.size, self.world_size)
        order = generator(self.seed, self.epoch).permutation(self.size)
        return order[: self.size - self.size % self.world_size][self.rank :: self.world_size]


class InMemoryLoader:
    """Iterates over (images, target) batches; images are float32 (B, c, h, w) in [0, 1], channels last in memory.

    The last batch may be smaller; in training a last batch of one image is left out, BatchNorm cannot use it.

    Args:
        images: uint8 (N, h, w, c).
        target: class indices (N,).
        batch_size: per rank.
        shuffle: a new order every epoch (training), or the given one.
        pad: random crop after padding by this many black pixels on each side; 0 for none.
        flip: random horizontal flip.
        seed: with epoch and rank, decides order and augmentation.
        rank: this process.
        world_size: number of processes that share the images.
    """

    batch_sampler = None  # the trainer asks for it wherever there is a sampler

    def __init__(
        self,
        images: np.ndarray,
        target: np.ndarray,
        batch_size: int,
        shuffle: bool = False,
        pad: int = 0,
        flip: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.images, self.target = images, target.astype(np.int64)
        self.batch_size, self.pad, self.flip = batch_size, pad, flip
        self.sampler = ShardedOrder(len(images), shuffle, seed, rank, world_size)  # the trainer sets its epoch
        height, width = images.shape[1:3]
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
        self._windows = np.moveaxis(windows, 3, 5)  # (N, y, x, h, w, c): a view on the padded images

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.sampler
        random = generator(order.seed, order.epoch, order.rank)
        for indices in self._batches():
            yield self._images(indices, random), torch.from_numpy(self.target[indices])

    def fingerprint(self) -> str:
        """Digest of the images, targets and augmentation, whatever the order and the rank."""
        digest = hashlib.sha256(repr((self.images.shape, self.pad, self.flip)).encode())
        if self.pad or self.flip:
            digest.update(repr((self.sampler.seed, self.sampler.epoch, self.sampler.world_size)).encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(self.target)
        return digest.hexdigest()

    def _batches(self) -> list[np.ndarray]:
        indices = self.sampler.indices()
        batches = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        if self.sampler.shuffle and batches and len(batches[-1]) == 1:
            batches.pop()
        return batches

    def _images(self, indices: np.ndarray, random: np.random.Generator) -> Tensor:
        y, x = random.integers(0, 2 * self.pad + 1, (2, len(indices)))
        images = self._windows[indices, y, x]
        if self.flip:
            flipped = random.random(len(indices)) < 0.5
            images[flipped] = images[flipped, :, ::-1]
        return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
