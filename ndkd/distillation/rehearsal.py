"""One step of an optimizer and the course of its learning rate, tried on parameters of next to no size."""

import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ndkd.errors import NdkdError, words_of

MOST_STEPS = 1000  # of a learning rate that are tried
# numbers of optimizers and of schedules: from where on to where
SHARE, NOT_NEGATIVE, POSITIVE = (0, 1, "from 0 to below 1"), (0, inf, "from 0 on"), (5e-324, inf, "above 0")
OPTIMIZER_NUMBERS = {"lr": POSITIVE, "momentum": SHARE, "weight_decay": NOT_NEGATIVE, "dampening": SHARE}
SCHEDULE_NUMBERS = dict.fromkeys(("T_max", "T_0", "T_mult", "step_size", "gamma", "total_iters"), POSITIVE)
Groups = list[Any]
MakeOptimizer = Callable[[Groups], Optimizer]
MakeScheduler = Callable[..., Any]


def rehearsed(
    make_optimizer: MakeOptimizer,
    groups: Groups,
    make_scheduler: MakeScheduler | None,
    steps: int | None,
) -> tuple[Optimizer, Any]:
    """An optimizer and its learning rate scheduler, if there is one, that can do what they will have to.

    Args:
        make_optimizer: from parameters, or groups of them.
        groups: those.
        make_scheduler: from the optimizer.
        steps: how often the learning rate will change.

    Raises:
        NdkdError: numbers that make no sense, an optimizer that cannot use dense gradients, a schedule that ends early
            or leads to a learning rate that is none.
    """
    try:
        trial = make_optimizer(tiny(groups))
        _check_numbers(type(trial).__name__, trial.param_groups[0], OPTIMIZER_NUMBERS)
        scheduler = make_scheduler(trial) if make_scheduler else None
        if scheduler is not None:
            _check_schedule(scheduler)
        _rehearse(trial, scheduler, MOST_STEPS if steps is None or steps < 0 else min(steps, MOST_STEPS))
        optimizer = make_optimizer(groups)
        return optimizer, make_scheduler(optimizer) if make_scheduler else None
    except NdkdError:
        raise
    except Exception as error:  # of whatever kind they raise for numbers that they do not check
        hint = "; it may want channels_last: false" if "view size" in str(error) else ""
        raise NdkdError(f"optimizer or lr_scheduler: {words_of(error)}{hint}") from error


def tiny(groups: Groups) -> Groups:
    """Groups of as many parameters as these, of at most 2 numbers in each dimension."""
    if groups and isinstance(groups[0], dict):
        return [{**group, "params": tiny(group["params"])} for group in groups]
    return [nn.Parameter(_small(parameter)) for parameter in groups]


def _small(parameter: Tensor) -> Tensor:
    """Ones of as many dimensions, in the same memory format."""
    small = torch.ones([min(2, size) for size in parameter.shape])
    last = parameter.ndim == 4 and not parameter.is_contiguous()
    return small.contiguous(memory_format=torch.channels_last) if last else small


def _rehearse(optimizer: Optimizer, scheduler: Any, steps: int) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(_loss)
    if scheduler is None or waits_for_a_metric(scheduler):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(steps):
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            if not all(0 <= rate < inf for rate in rates):
                raise NdkdError(
                    f"lr_scheduler {type(scheduler).__name__}: the learning rate becomes {rates[0]} in step {step}; "
                    "correct its options"
                )
            try:
                scheduler.step()
            except ValueError as error:
                ends = getattr(scheduler, "total_steps", None)
                if not isinstance(ends, int) or step < ends - 1:
                    raise
                raise NdkdError(
                    f"lr_scheduler {type(scheduler).__name__}: total_steps is {ends}, and the training goes on: leave "
                    "total_steps out to have as many as there are"
                ) from error


def waits_for_a_metric(scheduler: Any) -> bool:
    """Whether a schedule is stepped with a metric's value, as Lightning's and torch's ReduceLROnPlateau are."""
    return hasattr(scheduler, "monitor") or isinstance(scheduler, ReduceLROnPlateau)


def _loss() -> Any:
    """What a step of training gives an optimizer."""
    return torch.ones(())


def _check_numbers(owner: str, options: dict[str, Any], wanted: dict[str, tuple[float, float, str]]) -> None:
    for name, value in options.items():
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        low, high, words = wanted.get(name, (-inf, inf, "that is finite"))
        if not (isfinite(number) and low <= number < high):
            raise NdkdError(f"{owner}: {name}: wanted a number {words}, got {number}")


def _check_schedule(scheduler: Any) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):
        _check_schedule(inner)
    owner, options = type(scheduler).__name__, vars(scheduler)
    _check_numbers(owner, {name: options[name] for name in SCHEDULE_NUMBERS if name in options}, SCHEDULE_NUMBERS)
    milestones = options.get("milestones", getattr(scheduler, "_milestones", ()))
    _check_milestones(owner, list(milestones))


def _check_milestones(owner: str, milestones: Iterable[int]) -> None:
    given = list(milestones)
    if any(step < 0 for step in given) or any(later <= earlier for earlier, later in pairwise(given)):
        raise NdkdError(f"{owner}: milestones: wanted numbers from 0 on in ascending order, got {given}")
