"""What the optimizer trains and how long its learning rate schedule is."""

from collections.abc import Callable, Collection, Iterable
from math import inf
from typing import Any, Literal

from torch import nn

from ndkd.distillation.rehearsal import MakeOptimizer, MakeScheduler, rehearsed, waits_for_a_metric
from ndkd.errors import NdkdError

Decay = Literal["all", "matrices", "recommended"]
Named = Iterable[tuple[str, nn.Parameter]]


def trained_groups(module: Any) -> list[Any]:
    """What a module trains, in the groups that its ``decay`` asks for.

    Raises:
        NdkdError: nothing of the student is left to train.
    """
    if not any(parameter.requires_grad for parameter in module.student.parameters()):
        raise NdkdError("the student has nothing to train: all of its parameters are frozen (requires_grad is False)")
    names: Callable[[], Iterable[str]] = getattr(module.student.model, "no_weight_decay", tuple)  # timm's word
    exempt = {f"student.model.{name}" for name in names()}
    return parameter_groups(module.named_parameters(), module.decay, exempt)


def parameter_groups(named: Named, decay: Decay, exempt: Collection[str] = ()) -> list[Any]:
    """The parameters that are trained, in two groups where weight decay is not for all of them.

    Args:
        named: all parameters by name.
        decay: ``all``; ``matrices``, not biases and norms; ``recommended``, nor those that are exempt.
        exempt: names that the model itself spares.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if decay == "all":
        return [parameter for _, parameter in trained]
    own = exempt if decay == "recommended" else ()
    spared = {name for name, parameter in trained if parameter.ndim < 2 or name in own}
    decayed = [parameter for name, parameter in trained if name not in spared]
    others = [parameter for name, parameter in trained if name in spared]
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def optimizers(
    groups: list[Any], make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler | None, interval: str, trainer: Any
) -> Any:
    """The optimizer and, where there is one, its learning rate schedule, as Lightning wants them.

    Args:
        groups: of ``parameter_groups``.
        make_optimizer: from these.
        make_scheduler: from the optimizer; empty ``total_steps`` are filled in.
        interval: whether a step of the schedule is an ``epoch`` or a ``step``.
        trainer: knows for how long it will train.

    Raises:
        NdkdError: numbers that make no sense, a training without an end or without a batch.
    """
    if make_scheduler is not None:
        make_scheduler = with_total_steps(make_scheduler, trainer, interval)
    optimizer, scheduler = rehearsed(make_optimizer, groups, make_scheduler, trainer.max_epochs)
    if scheduler is None:
        return optimizer
    config = {"scheduler": scheduler, "interval": interval}
    if waits_for_a_metric(scheduler):
        config |= _on_a_metric(scheduler, interval, trainer)
    return {"optimizer": optimizer, "lr_scheduler": config}


def _on_a_metric(scheduler: Any, interval: str, trainer: Any) -> dict[str, Any]:
    """How a schedule is stepped that waits for a metric.

    Raises:
        NdkdError: a metric that there will not be when it is stepped.
    """
    kind, monitor = type(scheduler).__name__, getattr(scheduler, "monitor", None)
    of_validation = str(monitor).startswith("val/")
    why = None
    if monitor is None:
        why = "wanted the name of a metric; use lightning.pytorch.cli.ReduceLROnPlateau with monitor: val/cross_entropy"
    elif monitor.startswith("features/"):
        why = f"{monitor} is measured when the learning rate is set already; wanted one of val/… or train/…"
    elif of_validation and not trainer.limit_val_batches:
        why = f"there is no {monitor} without validation images"
    if why:
        raise NdkdError(f"lr_scheduler {kind}: monitor: {why}")
    if interval == "step":
        raise NdkdError(f"lr_scheduler {kind}: {monitor} is measured once an epoch; set lr_interval: epoch")
    every = (of_validation and trainer.check_val_every_n_epoch) or 1
    return {"monitor": monitor, "reduce_on_plateau": True, "frequency": every}


def with_total_steps(make_scheduler: MakeScheduler, trainer: Any, interval: str) -> MakeScheduler:
    """Fill in ``total_steps`` where a configuration leaves it empty.

    Raises:
        NdkdError: a training without an end or without a batch.
    """
    options = getattr(make_scheduler, "keywords", {})
    if "total_steps" not in options or options["total_steps"] is not None:
        return make_scheduler
    total = trainer.estimated_stepping_batches if interval == "step" else trainer.max_epochs
    if 0 in (trainer.limit_train_batches, trainer.num_training_batches):
        raise NdkdError("no epoch was trained: there was no batch of training images")
    if not 1 <= total < inf:
        raise NdkdError("lr_scheduler: it must know how long the training is: set trainer.max_epochs or max_steps")
    return lambda optimizer: make_scheduler(optimizer, total_steps=total)
