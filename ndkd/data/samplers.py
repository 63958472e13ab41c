"""Who sees which images of an epoch, in which order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler, SequentialSampler

from ndkd.errors import NdkdError
from ndkd.seeds import generator


class ShardedOrder(DistributedSampler, SequentialSampler):
    """The order in which one rank sees the images of an epoch, each with the seed of its augmentation.

    Shuffled, it depends on (seed, epoch) alone and every rank gets equally many; in order, the shards are not
    padded, so that each image is seen exactly once. It is one of torch's distributed samplers, and a sequential one, so
    that the trainer puts no other in its place, nor with ``overfit_batches``.
    """

    is_fixed = False  # whether every epoch is the first one again

    def __init__(self, size: int, shuffle: bool, seed: int, rank: int, world_size: int):
        if 0 < size < world_size:  # the others would wait for a rank without a batch
            raise NdkdError(f"{world_size} processes cannot share {size} images: lower trainer.devices or num_nodes")
        indices: Any = range(size)  # all that the sampler asks of a dataset is its length
        super().__init__(indices, world_size, rank, shuffle, seed)
        self.size, self.world_size = size, world_size

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(0 if self.is_fixed else epoch)

    def indices(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.rank, self.size, self.world_size)
        return self.share(self.order())

    def order(self) -> np.ndarray:
        """The images of the epoch in the order in which all ranks together see them."""
        return generator(self.seed, self.epoch).permutation(self.size)

    def share(self, values: np.ndarray) -> np.ndarray:
        """What this rank gets of values in that order."""
        return values[: self.size - self.size % self.world_size][self.rank :: self.world_size]

    def seeds(self, indices: np.ndarray) -> np.ndarray:
        """The seeds by which the images are augmented."""
        # of the image, not of the process: however many there are, it looks the same; zeros that nobody else draws with
        return generator(self.seed, self.epoch, 0, 0).integers(2**63, size=self.size)[indices]

    def __len__(self) -> int:
        size = self.size - self.size % self.world_size if self.shuffle else self.size
        return len(range(self.rank, size, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]  # an index with a seed
        indices = self.indices()
        return zip(indices.tolist(), self.seeds(indices).tolist(), strict=True)


class BalancedOrder(ShardedOrder):
    """A shuffled order that shows all classes equally often.

    An epoch has as many images as there are: those of small classes several times, of large ones not all. Of a class,
    every image is shown before one is shown again. Which of a large one are left out depends on (seed, epoch), and an
    image that is shown again is augmented otherwise.

    Args:
        target: class indices (N,).
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, target: np.ndarray, seed: int, rank: int, world_size: int):
        super().__init__(len(target), True, seed, rank, world_size)
        _, counts = np.unique(target, return_counts=True)
        self.images_of_class = np.split(target.argsort(kind="stable"), counts.cumsum()[:-1])

    def order(self) -> np.ndarray:
        random, classes = generator(self.seed, self.epoch), self.images_of_class
        wanted = np.full(len(classes), self.size // len(classes))
        wanted[random.permutation(len(classes))[: self.size % len(classes)]] += 1
        drawn = [
            np.concatenate([random.permutation(images) for _ in range(-(-number // len(images)))] or [images])[:number]
            for images, number in zip(classes, wanted.tolist(), strict=True)
        ]
        return random.permutation(np.concatenate(drawn))

    def seeds(self, indices: np.ndarray) -> np.ndarray:
        return self.share(super().seeds(np.arange(self.size)))


class GroupedOrder(ShardedOrder):
    """A shuffled order whose batches hold images of one group (0 or 1) each.

    At the end of an epoch, fewer images than a batch can be left of either group. All ranks have equally many batches:
    what is left of the larger group becomes a smaller batch where one is missing, the rest is left out.
    """

    def __init__(self, order: ShardedOrder, group: np.ndarray, batch_size: int):
        super().__init__(order.size, True, order.seed, order.rank, order.world_size)
        self.group, self.batch_size = group, batch_size

    def __len__(self) -> int:
        """As many images as the batches could hold, which the DataLoader counts them by."""
        size = super().__len__()
        return size - size % self.batch_size or size

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]  # an index with a seed
        waiting: tuple[list[tuple[int, int]], ...] = ([], [])
        batches = -(-len(self) // self.batch_size)
        for item in super().__iter__():
            batch = waiting[int(self.group[item[0]])]
            batch.append(item)
            if len(batch) == self.batch_size:
                yield from batch
                batch.clear()
                batches -= 1
        if batches:
            yield from max(waiting, key=len)
