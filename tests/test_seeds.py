"""Randomness from the seed, the epoch and the rank alone."""

import lightning.pytorch as L
import torch

from ndkd.seeds import generator, run_seed, seed_torch


def test_seed_of_the_run(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    L.seed_everything(12, verbose=False)
    assert run_seed() == 12
    monkeypatch.delenv("PL_GLOBAL_SEED")
    torch.manual_seed(34)
    assert run_seed() == 34


def test_numbers_decide():
    draws = [generator(*numbers).random() for numbers in ((0,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0))]
    assert len(set(draws)) == len(draws)
    assert generator(5, 2).random() == generator(5, 2).random()


def test_torch_forgets_what_was_drawn_before():
    def draw(*numbers):
        seed_torch(*numbers)
        return torch.rand(1).item()

    first = draw(3, 1, 0)
    torch.rand(5)
    assert draw(3, 1, 0) == first
    assert len({first, draw(3, 2, 0), draw(3, 1, 1), draw(4, 1, 0)}) == 4
