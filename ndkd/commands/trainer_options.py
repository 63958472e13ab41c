"""Options of the trainer that it would take although they make no sense."""

import re
from math import isfinite
from typing import Any

from ndkd.errors import NdkdError

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "limit_predict_batches": 0,
    "limit_test_batches": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
}


def check_trainer(options: Any) -> None:
    """Raise ``NdkdError`` for a number that is too small, infinite or none."""
    for name, least in LEAST.items():
        value = options.get(name)
        if value is not None and not (isfinite(value) and value >= least):
            raise NdkdError(f"trainer.{name}: wanted at least {least}, got {value}")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and not (isfinite(interval) and interval > 0):
        raise NdkdError(f"trainer.val_check_interval: wanted more than 0, got {interval}; 1.0 is once per epoch")


def check_length(options: Any) -> None:
    """Raise ``NdkdError`` unless it is said for how long to train: left to the trainer, that would be 1,000 epochs."""
    epochs, steps, time = (options.get(name) for name in ("max_epochs", "max_steps", "max_time"))
    limited = (steps is not None and steps > 0) or time is not None or options.get("fast_dev_run")
    if epochs is not None and epochs < 1 and not (epochs == -1 and limited):
        raise NdkdError(f"trainer.max_epochs: wanted at least 1, got {epochs}")
    if steps is not None and steps != -1 and steps < 1:
        raise NdkdError(f"trainer.max_steps: wanted at least 1, got {steps}; leave it out to train for max_epochs")
    if epochs is None and not limited:
        raise NdkdError("trainer.max_epochs: wanted the number of epochs to train for; set trainer.max_epochs")


def check_strategy(strategy: Any) -> None:
    """Raise ``NdkdError`` for a strategy that splits models, or whose processes do not run the command line."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    supported = "auto|single_device|SingleDeviceStrategy|ddp(_find_unused_parameters_(true|false))?|DDPStrategy"
    if not re.fullmatch(supported, name):
        raise NdkdError(
            f"trainer.strategy: wanted auto, single_device, ddp or ddp_find_unused_parameters_true, got {name}"
        )
