"""Randomness that depends on the run's seed, the epoch and the rank, and on nothing that happened before."""

import os

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
