"""A run's checkpoints ``last`` and ``best``, written whole and found again."""

from pathlib import Path, PurePath
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ndkd.files import write_atomically
from ndkd.runs import Run


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints written whole or not at all, wherever the folder for temporary files is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


def moved_to(folder: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a ModelCheckpoint whose folder has moved: it would forget the best score with the path."""

    def path(before: str) -> str:
        return str(Path(folder, PurePath(before).name)) if before else before

    state = state | {name: path(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    best = {path(before): score for before, score in state["best_k_models"].items()}
    return state | {"dirpath": folder, "best_k_models": best}


def begin_next_epoch(loop: Any) -> None:
    """Where ``max_steps`` is set, the trainer takes the finished epoch of a checkpoint for one that was broken off."""
    for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
        progress.completed = progress.processed
    loop._restarting = loop.epoch_loop.restarting = False
    loop.reset_restart_stage()


def checkpoint_callbacks(run: Run, headline: str = "acc1") -> list[ModelCheckpoint]:
    """Lightning's callbacks for the checkpoints ``best`` and ``last``, in the order in which a resume needs them."""
    common: dict[str, Any] = {
        "dirpath": run.checkpoints.resolve(),
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = ModelCheckpoint(filename="best", monitor=f"val/{headline}", mode="max", **common)
    return [best, ModelCheckpoint(filename="last", **common)]
