"""The progress of a training where there is no terminal: a line an epoch, in place of a bar that would fill a file."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, Timer
from tqdm import tqdm


class EpochLines(ProgressBar, Checkpoint):
    """Print the training loss, the validation accuracy, the seconds and the time that is left after every epoch.

    To the trainer it is a progress bar, and takes the place of Lightning's own. Like the run recorder it is one of
    Lightning's checkpoint callbacks too: those are called when the module has logged what it has of the epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True  # the trainer asks
        self._began = self._epoch_began = 0.0
        self._first_step = 0
        self._is_validated = False

    def enable(self) -> None:
        self.is_enabled = True

    def disable(self) -> None:
        self.is_enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._began, self._first_step = time.monotonic(), trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._epoch_began, self._is_validated = time.monotonic(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._is_validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.is_enabled:
            return
        metric, word = pl_module.headline
        found, epoch, most = trainer.callback_metrics, trainer.current_epoch, trainer.max_epochs or -1
        parts = [f"train loss {found['train/loss']:.4f}"] if "train/loss" in found else []
        # without validation in this epoch, the trainer still holds the value of the one before
        if self._is_validated and f"val/{metric}" in found:
            parts.append(f"validation {word} {found[f'val/{metric}']:.2%}")
        parts.append(f"{time.monotonic() - self._epoch_began:.1f} s")
        if math.isfinite(left := self._seconds_left(trainer)):
            parts.append(f"{tqdm.format_interval(left)} left")
        which = f"epoch {epoch} ({epoch + 1}/{most})" if most > 0 else f"epoch {epoch}"
        print(f"{which}: {', '.join(parts)}", flush=True)  # for those who follow the file

    def _seconds_left(self, trainer: L.Trainer) -> float:
        """By the pace of this start, or the trainer's ``max_time`` if that is less; infinite if nothing limits it."""
        done = trainer.global_step - self._first_step
        pace = (time.monotonic() - self._began) / done if done else math.inf
        left = (trainer.estimated_stepping_batches - trainer.global_step) * pace
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        timers = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
        return min([left, *(seconds for seconds in timers if seconds is not None)])


def wants_lines(options: Mapping[str, Any]) -> bool:
    """Whether standard output is no terminal, and the trainer's options leave open how progress is shown.

    Args:
        options: of the trainer; its callbacks are made already.
    """
    given = options["callbacks"] or []
    has_own = any(isinstance(each, ProgressBar) for each in (given if isinstance(given, list) else [given]))
    return not has_own and options["enable_progress_bar"] is None and not sys.stdout.isatty()


def shows_bars(trainer: L.Trainer) -> bool:
    """Whether this process is the one that shows bars, of batches."""
    bar = trainer.progress_bar_callback
    return trainer.is_global_zero and bar is not None and not isinstance(bar, EpochLines)
