"""Keeps the run folder while training."""

import platform
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from ndkd.callbacks.checkpoints import begin_next_epoch, moved_to
from ndkd.data.base import HasBatchSize
from ndkd.errors import NdkdError, plain_words
from ndkd.runs import Run
from ndkd.stopping import stop

PACKAGES = ("ndkd", "torch", "torchvision", "lightning", "torchmetrics", "timm")


class RunRecorder(Checkpoint):
    """Write configuration, status, a row of metrics and the evaluation set's predictions per epoch.

    It is one of Lightning's checkpoint callbacks, so that it comes after everything that logs.

    Args:
        run: the folder.
        config: the resolved configuration as YAML.
        is_tested: a test follows, before which the run is not finished.
    """

    def __init__(self, run: Run, config: str, is_tested: bool = False):
        self.run, self.config, self.is_tested = run, config, is_tested
        self._started: float | None = None
        self._seconds = 0.0
        self._predictions: list[torch.Tensor] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Everything is built, and Lightning has not yet written the loggers' files of hyper-parameters."""
        self._origin = {"git_commit": git_commit(), "versions": versions()}
        settings = {**yaml.safe_load(self.config), **self._origin}
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, HasBatchSize):
            copies = trainer.world_size * trainer.accumulate_grad_batches
            settings["global_batch_size"] = data.batch_size * copies
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["callbacks"]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
                states[callback.state_key] = moved_to(callback.dirpath, states[callback.state_key])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.time()
        if trainer.fit_loop.restarting:
            begin_next_epoch(trainer.fit_loop)
        if trainer.is_global_zero:
            self.run.start(self.config, trainer.current_epoch)
            self._seconds = self._seconds_before()
            self._started -= self._seconds  # of a resumed run
            self.run.update_status(state="running", command=sys.argv, machine=machine(trainer), **self._origin)
            self._describe(pl_module)

    def _seconds_before(self) -> float:
        """What earlier starts of the run took."""
        return max((float(row.get("time/seconds") or 0) for row in self.run.metrics()), default=0.0)

    def _describe(self, module: Any, **values: Any) -> None:
        parameters = sum(parameter.numel() for parameter in module.student.model.parameters())
        objective = getattr(module, "objective", None)
        if objective is not None:  # numbers, where the configuration leaves them to a measurement
            values["weights"] = {name: term.weight for name, term in objective.terms.items()}
        self.run.update_status(headline=module.headline[0], parameters=parameters, **values)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._predictions = None  # an epoch without validation keeps none

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._predictions = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs.student is None or self._predictions is None:  # detections are not kept
            return
        confidence, predicted = outputs.student.logits.float().softmax(dim=1).max(dim=1)
        self._predictions.append(torch.stack([outputs.target.float(), predicted.float(), confidence], dim=1))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own = list(torch.cat(self._predictions).cpu().numpy()) if self._predictions else []
        rows = np.array(in_order(trainer, own))
        if not trainer.is_global_zero:
            return
        self.run.check_kept()
        before, self._seconds = self._seconds, time.time() - (self._started or 0.0)
        times = {"time/seconds": self._seconds, "time/epoch": self._seconds - before}
        pl_module.log_dict(times, rank_zero_only=True)
        epoch, logged = trainer.current_epoch, trainer.callback_metrics.items()
        # without validation in this epoch, the trainer still holds the values of the one before
        validated = self._predictions is not None
        of_validation = ("val/", "features/")
        metrics = {k: f"{v.item():.7g}" for k, v in logged if validated or not k.startswith(of_validation)}
        self.run.add_metrics({"epoch": epoch, "step": trainer.global_step, **metrics})
        if len(rows):
            target, prediction = rows[:, :2].T.astype(np.int32)
            arrays = {"target": target, "prediction": prediction, "confidence": rows[:, 2].astype(np.float16)}
            self.run.write_epoch("predictions", epoch, arrays)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self._started is None and self.run.is_used and "seconds" not in self.run.known_status():
            # it was broken off after its last epoch, or its status was damaged or lost
            self._started = time.time() - self._seconds_before()
            self._describe(pl_module)
        if self._started is not None:  # else nothing was left to train
            now = time.time()
            ended = {"seconds": round(now - self._started, 3), "date": date.fromtimestamp(now).isoformat()}
            self.run.update_status(state="running" if self.is_tested else "finished", **ended)
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    for logger in trainer.loggers:
                        logger.after_save_checkpoint(callback)  # a best one may be of an earlier start

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """In training, or in the test that follows it."""
        if trainer.is_global_zero and self._started is not None and self.run.is_kept:
            # Lightning makes SIGTERM a SystemExit
            stopped = stop.number or isinstance(exception, (KeyboardInterrupt, SystemExit))
            error = plain_words(exception) or str(exception).split("\n")[0]
            with suppress(NdkdError):  # a full disk may have been what happened, and is full still
                self.run.update_status(state="interrupted" if stopped else "failed", error="" if stopped else error)


def in_order(trainer: L.Trainer, rows: list[Any]) -> list[Any]:
    """The rows of all ranks in the order of the images: rank r has every world_size-th, from the r-th on."""
    if trainer.world_size == 1:
        return rows
    shards: list[list[Any]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(shards, rows)
    return [shard[step] for step in range(len(shards[0])) for shard in shards if step < len(shard)]


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(trainer: L.Trainer) -> str:
    """What a run is trained on: a GPU, where it is one, and the system."""
    gpu = [torch.cuda.get_device_name()] if trainer.strategy.root_device.type == "cuda" else []
    return ", ".join([*gpu, platform.platform()])


def git_commit() -> str | None:
    """Commit of the working directory, marked where files differ from it; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
