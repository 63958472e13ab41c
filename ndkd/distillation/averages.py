"""Averages of an epoch, and which of them was the first to break."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ndkd.errors import NdkdError


class EpochAverages:
    """The mean of the objective and of each of its terms over an epoch.

    Summed on the device and read once an epoch: to log every step costs more than a step of a small student on a GPU.

    Args:
        names: of the terms.
        device: where their values are.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = ["loss", *names]
        self.sums = torch.zeros(len(self.names), device=device)
        self.finite_steps = torch.zeros_like(self.sums)
        self.steps = 0

    def add(self, total: Tensor, values: Sequence[Tensor]) -> None:
        """Add a step."""
        self.sums += torch.stack([total, *values]).detach()
        self.finite_steps += self.sums.isfinite()
        self.steps += 1

    def means(self, epoch: int, reduce: Callable[..., Tensor]) -> dict[str, float]:
        """The means over all steps of all processes.

        Args:
            epoch: for the message.
            reduce: a mean over processes, ``trainer.strategy.reduce``.

        Raises:
            NdkdError: names the term that was the first not to be a finite number; it spoils the others.
        """
        sums = torch.stack([self.sums, self.finite_steps]) / max(1, self.steps)
        means, finite_share = reduce(sums, reduce_op="mean").tolist()
        first = min(range(len(self.names)), key=lambda k: (finite_share[k], k == 0))  # the total is no term
        if finite_share[first] < 1:
            kept = f"the last checkpoint is of epoch {epoch - 1}" if epoch else "there is no checkpoint yet"
            raise NdkdError(
                f"loss {self.names[first]} became {means[first]} in epoch {epoch}, {kept}; "
                "lower the learning rate or its weight"
            )
        return dict(zip(self.names, means, strict=True))
