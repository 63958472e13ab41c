"""Randomness that depends on the run's seed, the epoch and the rank, and on nothing that happened before."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def run_seed() -> int:
    """The seed of ``lightning.seed_everything``, else the one torch started with."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """A NumPy generator for a seed and any further numbers (epoch, rank)."""
    # with their count, since NumPy ignores trailing zeros: order and augmentation would draw the same numbers
    return np.random.default_rng([seed, len(numbers), *numbers])


def seed_torch(seed: int, *numbers: int) -> None:
    """Seed torch's global generators from a seed and any further numbers (epoch, rank)."""
    torch.manual_seed(int(generator(seed, *numbers).integers(2**63)))


def seed_others() -> None:
    """Seed Python's and NumPy's global generators from torch's, for code that draws with them."""
    seed = int(torch.randint(2**31, ()))
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Inside, torch on the CPU, NumPy and Python draw from this seed; afterwards they go on as before.

    It takes half a millisecond, most of it to give NumPy its state back.

    >>> with drawing_from(3):
    ...     first = torch.rand(1), np.random.rand(), random.random()
    >>> with drawing_from(3):
    ...     first == (torch.rand(1), np.random.rand(), random.random())
    True
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        seed_others()
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
