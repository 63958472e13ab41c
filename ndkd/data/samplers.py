"""Who sees which images of an epoch, in which order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler

from ndkd.errors import NdkdError
from ndkd.seeds import generator


class ShardedOrder(DistributedSampler):
    """The order in which one rank sees the images of an epoch, each with the seed of its augmentation.

    Shuffled, it depends on (seed, epoch) alone and every rank gets equally many; in order, the shards are not
    padded, so that each image is seen exactly once. It is one of torch's distributed samplers, so that the trainer
    puts no other in its place.
    """

    def __init__(self, size: int, shuffle: bool, seed: int, rank: int, world_size: int):
        if 0 < size < world_size:  # the others would wait for a rank without a batch
            raise NdkdError(f"{world_size} processes cannot share {size} images: lower trainer.devices or num_nodes")
        indices: Any = range(size)  # all that the sampler asks of a dataset is its length
        super().__init__(indices, world_size, rank, shuffle, seed)
        self.size, self.world_size = size, world_size

    def indices(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.rank, self.size, self.world_size)
        order = generator(self.seed, self.epoch).permutation(self.size)
        return order[: self.size - self.size % self.world_size][self.rank :: self.world_size]

    def __len__(self) -> int:
        size = self.size - self.size % self.world_size if self.shuffle else self.size
        return len(range(self.rank, size, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = self.indices()
        # of the image, not of the process: however many there are, it looks the same; zeros that nobody else draws with
        seeds = generator(self.seed, self.epoch, 0, 0).integers(2**63, size=self.size)[indices]
        return zip(indices.tolist(), seeds.tolist(), strict=True)


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

    def __iter__(self) -> Iterator[tuple[int, int]]:
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
