"""Averages of an epoch, and which of them was the first to break."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ndkd.errors import NdkdError
from ndkd.models.output import EnsembleOutput

TEACHER = "the teacher"  # no name of a term


class EpochAverages:
    """The mean of the objective and of each of its terms over an epoch.

    Summed on the device and read once an epoch: to log every step costs more than a step of a small student on a GPU.

    Args:
        names: of the terms.
        device: where their values are.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = ["loss", *names, TEACHER]
        self.sums = torch.zeros(len(self.names), device=device)
        self.finite_steps = torch.zeros_like(self.sums)
        self.steps = 0

    def add(self, row: Tensor) -> None:
        """Add what ``values_of`` a step are."""
        self.sums += row
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
        # the total is no term; what a term makes of a teacher's numbers breaks with them
        order = {name: k for k, name in enumerate([TEACHER, *self.names[1:-1], "loss"])}
        first = min(range(len(self.names)), key=lambda k: (finite_share[k], order[self.names[k]]))
        if finite_share[first] < 1:
            kept = f"the last checkpoint is of epoch {epoch - 1}" if epoch else "there is no checkpoint yet"
            if self.names[first] == TEACHER:
                raise NdkdError(
                    f"the teacher's outputs became nan or inf in epoch {epoch}, {kept}; look at its weights and at the "
                    "images, and in half precision try trainer.precision: bf16-mixed or 32-true"
                )
            raise NdkdError(
                f"loss {self.names[first]} became {means[first]} in epoch {epoch}, {kept}; "
                "lower the learning rate or its weight"
            )
        return dict(list(zip(self.names, means, strict=True))[:-1])


def values_of(total: Tensor, values: Sequence[Tensor], teacher: Any = None) -> Tensor:
    """One row of a step: its objective, each of the terms and, last, 0 if what the teacher said in it are numbers."""
    teachers = teacher.each.values() if isinstance(teacher, EnsembleOutput) else [teacher]
    # a recorded one may lack either
    known = (getattr(each, name, None) for each in teachers for name in ("logits", "embedding"))
    said = [part for part in known if part is not None]
    zero = torch.zeros_like(total) + sum((0 * part.detach()).float().sum() for part in said)
    return torch.stack([total, *values, zero]).detach()
