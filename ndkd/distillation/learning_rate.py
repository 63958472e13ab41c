"""The learning rate at the end of an epoch, and where a training goes on."""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ndkd.distillation.rehearsal import MakeOptimizer, MakeScheduler, tiny
from ndkd.errors import NdkdError, suggestion

# what schedules keep in an optimizer's groups: the course, and where they are on it
OF_THE_COURSE = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
SCHEDULED = ("lr", "momentum", "betas", *OF_THE_COURSE)
PROGRESS = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "T_cur", "T_i"}
OF_A_PLATEAU = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr", "_step_count")


def step_plateaus(trainer: Any, logged: Mapping[str, float]) -> None:
    """Step the schedules that wait for a metric, before a checkpoint is written.

    Lightning steps them after it: a run that goes on from there would miss a step.

    Args:
        trainer: at the end of an epoch.
        logged: what the module has logged itself, on rank 0 alone.

    Raises:
        NdkdError: nothing by that name was measured.
    """
    for config in trainer.lr_scheduler_configs:
        if not config.reduce_on_plateau or (trainer.current_epoch + 1) % config.frequency:
            continue
        metrics = {**trainer.callback_metrics, **logged}
        if config.monitor not in metrics:
            hint = suggestion(config.monitor, [*metrics])
            raise NdkdError(f"lr_scheduler.monitor: nothing measures {config.monitor}; {hint}")
        config.scheduler.step(metrics[config.monitor])


def follow_configuration(trainer: Any, make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler) -> None:
    """In a training that goes on, take the course of the configuration, where it is not that of the run so far.

    The learning rate is then what it would be had the configuration been so from the start. Where it is as it was,
    nothing is touched. The optimizer keeps all else.

    Args:
        trainer: with optimizer and schedule as the checkpoint has them.
        make_optimizer: from groups of parameters.
        make_scheduler: from the optimizer.
    """
    if len(trainer.lr_scheduler_configs) != 1 or len(trainer.optimizers) != 1:  # a module's own
        return
    (config,), (optimizer,) = trainer.lr_scheduler_configs, trainer.optimizers
    rehearsal = make_optimizer(tiny(optimizer.param_groups))
    for like, group in zip(rehearsal.param_groups, optimizer.param_groups, strict=True):
        like["lr"] = group.get("initial_lr", group["lr"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there are schedules that miss the optimizer's step
        scheduler = make_scheduler(rehearsal)
        if config.reduce_on_plateau:
            _follow_options(config.scheduler, scheduler)
            return
        if _is_on_course(scheduler, rehearsal, config.scheduler, optimizer):
            return
        for _ in range((trainer.global_step if config.interval == "step" else trainer.current_epoch) - 1):
            scheduler.step()
    was = float(optimizer.param_groups[0]["lr"])
    config.scheduler.load_state_dict(scheduler.state_dict())
    for like, group in zip(rehearsal.param_groups, optimizer.param_groups, strict=True):
        _copy_scheduled(like, group)
    now = float(optimizer.param_groups[0]["lr"])
    trainer.lightning_module.print(  # there is a progress bar already
        f"ndkd: from epoch {trainer.current_epoch} on the learning rate follows {type(scheduler).__name__} as "
        f"configured now: {now:.4g}, in the run so far {was:.4g}"
    )


def _follow_options(scheduler: Any, configured: Any) -> None:
    """Give a schedule that waits for a metric the options of another, and leave it what it has seen."""
    before = scheduler.state_dict()
    seen = {name: before[name] for name in OF_A_PLATEAU if name in before}
    scheduler.load_state_dict({**configured.state_dict(), **seen})


def _is_on_course(configured: Any, rehearsal: Optimizer, scheduler: Any, optimizer: Optimizer) -> bool:
    """Whether a schedule is of the same options as a fresh one, which makes its first step."""
    start, course = deepcopy(configured.state_dict()), _course(rehearsal)
    configured.step()
    options = _constant(start, configured.state_dict())
    return _same(options, scheduler.state_dict()) and _same(course, _course(optimizer))


def _copy_scheduled(like: dict[str, Any], group: dict[str, Any]) -> None:
    for name in SCHEDULED:
        if isinstance(group.get(name), Tensor):
            group[name].fill_(like[name])
        elif name in like:
            group[name] = like[name]


def _course(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{name: group[name] for name in OF_THE_COURSE if name in group} for group in optimizer.param_groups]


def _constant(start: Any, later: Any) -> Any:
    """Of a schedule's state at its start, what is none of its progress, and a step has left as it was."""
    if isinstance(start, dict):
        kept = {name: _constant(start[name], later[name]) for name in start if name in later and name not in PROGRESS}
        return {name: value for name, value in kept.items() if value is not None}
    if isinstance(start, list) and start and all(isinstance(value, dict) for value in start):
        return [_constant(*pair) for pair in zip(start, later, strict=True)]  # schedules in a schedule
    return start if _same(start, later) else None


def _same(wanted: Any, found: Any) -> bool:
    """Whether two states agree in what both have."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(_same(wanted[name], found[name]) for name in wanted.keys() & found.keys())
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple):
        return len(wanted) == len(found) and all(map(_same, wanted, found))
    if isinstance(wanted, Tensor) or isinstance(found, Tensor):
        return torch.equal(torch.as_tensor(wanted).cpu(), torch.as_tensor(found).cpu())
    return bool(wanted == found)
