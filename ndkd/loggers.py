"""Weights & Biases, with or without an account and a network."""

import os
import secrets
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ndkd.runs import write_atomically

CONNECT_SECONDS = 30.0


class WandbLogger(LightningWandbLogger):
    """Lightning's W&B logger that goes on offline where it cannot go online, and keeps its id over a resume.

    Args:
        save_dir: where W&B keeps its files; the command line gives the run folder.
        project: W&B project.
        entity: W&B user or team; by default the account's.
        name: display name; by default the last two parts of the run folder.
        group: W&B group of runs.
        tags: W&B tags.
        offline: do not try to go online.
        log_model: upload checkpoints as artifacts: ``True`` at the end, ``"all"`` while training.
    """

    def __init__(
        self,
        save_dir: Path = Path("runs"),
        project: str = "ndkd",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
        log_model: bool | Literal["all"] = False,
    ):
        mode = os.environ.get("WANDB_MODE", "offline" if offline else "online")
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode = "offline"
            _say(save_dir, "no W&B credentials were found (with an account: wandb login)")
        super().__init__(
            name or "/".join(Path(save_dir).parts[-2:]),
            save_dir,
            project=project,
            entity=entity,
            group=group,
            tags=tags,
            id=_run_id(save_dir),
            resume="allow",
            mode=mode,
            log_model=log_model and mode == "online",
            settings=wandb.Settings(init_timeout=CONNECT_SECONDS),
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        try:
            return super().experiment
        except wandb.errors.Error as error:
            _say(self.save_dir, f"W&B could not be reached ({' '.join(str(error).split())[:120]})")
            wandb.teardown()  # the failed attempt still holds the run's id
            self._wandb_init["mode"] = "offline"
            return super().experiment


@rank_zero_only
def _say(save_dir: str | Path, why: str) -> None:
    print(f"ndkd: {why}; the run goes on offline. To upload it later: wandb sync {save_dir}/wandb/offline-run-*")


@rank_zero_only  # the only rank with a W&B run
def _run_id(save_dir: str | Path) -> str:
    """The id that an earlier start of this run left, else a new one."""
    file = Path(save_dir) / "wandb" / "run_id.txt"
    if not file.is_file():
        write_atomically(file, lambda out: out.write(secrets.token_hex(4).encode()))
    return file.read_text()
