"""Images that are read from disk as they are needed: by which process, by how many workers, and their name."""

import hashlib
import os
from math import inf
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from ndkd.data.samplers import BalancedOrder, ShardedOrder
from ndkd.errors import NdkdError
from ndkd.seeds import run_seed
from ndkd.stopping import as_worker, held

MOST_WORKERS = 256


class ImageLoader(DataLoader):
    """Batches of images, with a name for what is in them.

    The dataset has their ``paths``, all their targets as bytes or as an array (``target``), and a ``transform``, which
    may be random (``is_random``).
    """

    def __iter__(self) -> Any:
        if self._iterator is not None:  # its workers are there, and one that hangs may be waited for
            return super().__iter__()
        with held():  # a signal to all processes would kill a worker before it knows that this is not for it
            return super().__iter__()

    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and times, the targets and the transform, whatever the order."""
        order: Any = self.sampler
        images: Any = self.dataset
        drawn_from = (order.seed, order.epoch) if images.is_random else ()
        digest = hashlib.sha256(repr((images.transform, *drawn_from)).encode())
        for path in images.paths:
            entry = os.stat(path)
            digest.update(b"%s %d %d\n" % (path, entry.st_size, entry.st_mtime_ns))
        digest.update(images.target)
        return digest.hexdigest()


def check_least(**options: tuple[float, float]) -> None:
    """Raise ``NdkdError`` unless each option, (value, least), is a finite number and at least that."""
    for name, (value, least) in options.items():
        if value is None or not least <= value < inf:
            raise NdkdError(f"{name}: wanted at least {least}, got {value}")
    if (workers := options.get("num_workers", (0, 0))[0]) > MOST_WORKERS:
        raise NdkdError(f"num_workers: wanted at most {MOST_WORKERS} processes, got {workers}")


def sharded(data: L.LightningDataModule, size: int, shuffle: bool, balanced: np.ndarray | None = None) -> ShardedOrder:
    """The order in which this process of the data's trainer sees the images.

    Args:
        data: whose.
        size: number of images.
        shuffle: in an order that changes with the epoch.
        balanced: the images' classes (N,), if a shuffled epoch is to show all of them equally often.
    """
    trainer = data.trainer
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    if shuffle and balanced is not None:
        return BalancedOrder(balanced, run_seed(), rank, world_size)
    return ShardedOrder(size, shuffle, run_seed(), rank, world_size)


def worker_options(data: Any, persistent: bool) -> dict[str, Any]:
    """Options of a DataLoader: ``data.num_workers`` workers, by default one for each core, 16 at most."""
    workers, local = data.num_workers, data.trainer.num_devices if data.trainer else 1
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(16, max(1, cores // local))
    return {
        "num_workers": workers,
        "persistent_workers": persistent and workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": as_worker,
        "generator": torch.Generator(),  # it draws a number, which would change those that dropout draws
    }
