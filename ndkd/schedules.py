"""Learning rate schedules, to be stepped every step (``lr_interval: step``), that torch has only in parts."""

from bisect import bisect
from collections.abc import Sequence
from math import cos, inf, pi

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


class WarmupCosineLR(LRScheduler):
    r"""Linear warm-up from ``min_lr``, then a cosine back to it.

    $$
    \eta_t = \eta_{min} + (\eta - \eta_{min}) \begin{cases} t / w & t < w \\
    \tfrac{1}{2} \big(1 + \cos \pi \tfrac{t - w}{T - w}\big) & t \ge w \end{cases}
    $$

    Source: https://arxiv.org/abs/1608.03983.

    Args:
        optimizer: whose learning rates are the highest.
        total_steps: T, of the whole training; the module fills it in.
        warmup: w / T.
        min_lr: learning rate at the start of the warm-up and in the end.

    Raises:
        ValueError: no steps, or a warm-up outside [0, 1).
    """

    def __init__(self, optimizer: Optimizer, total_steps: int | None = None, warmup: float = 0.0, min_lr: float = 0.0):
        if total_steps is None or total_steps < 1:
            raise ValueError(f"total_steps: wanted at least 1, got {total_steps}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup: wanted a share of the training, 0 to 1, got {warmup}")
        if not 0 <= min_lr < inf:
            raise ValueError(f"min_lr: wanted a learning rate from 0 on, got {min_lr}")
        self.total_steps, self.warmup_steps, self.min_lr = total_steps, round(warmup * total_steps), min_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        if self.last_epoch < self.warmup_steps:
            share = self.last_epoch / self.warmup_steps
        else:
            done = (self.last_epoch - self.warmup_steps) / (self.total_steps - self.warmup_steps)
            share = (1 + cos(pi * min(1, done))) / 2
        return [self.min_lr + (highest - self.min_lr) * share for highest in self.base_lrs]


class WarmupMultiStepLR(LambdaLR):
    """Linear warm-up, then a constant rate that is multiplied by ``gamma`` at each milestone.

    Args:
        optimizer: whose learning rates are the highest.
        milestones: in steps, ascending.
        warmup_steps: number of steps of the warm-up.
        warmup_factor: of the learning rate, at the start.
        gamma: factor at a milestone.

    Raises:
        ValueError: a warm-up of less than no steps, or from a factor outside [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
        gamma: float = 0.1,
    ):
        if warmup_steps < 0 or not 0 <= warmup_factor <= 1:
            raise ValueError(
                "warmup_steps and warmup_factor: wanted a number from 0 on and one from 0 to 1, got "
                f"{warmup_steps} and {warmup_factor}"
            )
        self.milestones, self.gamma = list(milestones), gamma
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor  # part of the state

        def factor(step: int) -> float:
            share = step / warmup_steps if step < warmup_steps else 1.0
            return gamma ** bisect(milestones, step) * (warmup_factor * (1 - share) + share)

        super().__init__(optimizer, factor)
