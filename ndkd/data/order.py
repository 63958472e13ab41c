"""Who sees which images of an epoch, in which order."""

from collections.abc import Iterator

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
        super().__init__(range(size), world_size, rank, shuffle, seed)
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
