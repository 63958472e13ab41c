"""Weights & Biases, with or without an account and a network."""

import os
import secrets
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ndkd.files import write_atomically

CONNECT_SECONDS = 30.0


class WandbLogger(LightningWandbLogger):
    """Lightning's W&B logger that continues offline where it cannot go online, and keeps its id over a resume.

    A sweep's agent, or ``WANDB_RUN_ID``, decides over the id. What W&B would refuse is made acceptable: names end
    after 128 characters and tags after 64, and a plus, which W&B's own editor of tags does not know, becomes a p:
    ``KD++`` is ``KDpp``.

    Args:
        save_dir: where W&B keeps its files; the command line gives the run folder.
        project: W&B project.
        entity: W&B user or team; by default the account's.
        name: display name; by default the last two parts of the run folder.
        group: W&B group of runs.
        tags: W&B tags.
        offline: do not try to go online.
        log_model: keep checkpoints as artifacts ``last-ID`` and ``best-ID``: ``True`` at the end, ``"all"`` while
            training; offline they are copies, uploaded by ``wandb sync``.
    """

    is_waiting = False
    """Whether to leave W&B alone until something is logged: a mistake found while building leaves no trace there."""

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
            (name or "/".join(Path(save_dir).parts[-2:]))[:128],
            save_dir,
            project=project,
            entity=entity,
            group=group,
            tags=tags and [tag.replace("+", "p")[:64] for tag in tags if tag],
            id=os.environ.get("WANDB_RUN_ID") or _run_id(save_dir),
            resume="allow",
            mode=mode,
            log_model=log_model,
            settings=wandb.Settings(init_timeout=CONNECT_SECONDS),
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        if self.is_waiting:
            return DummyExperiment()
        folder: Any = self.save_dir
        if self._experiment is None:
            if wandb.run is not None and wandb.run.id != self.version:
                wandb.finish()  # of an earlier run in this process
            write_atomically(_id_file(folder), lambda out: out.write(str(self.version).encode()))
        try:
            return super().experiment
        except wandb.errors.Error as error:
            _say(folder, f"W&B could not be reached ({' '.join(str(error).split())[:120]})")
            wandb.teardown()  # the failed attempt still holds the run's id
            self._wandb_init["mode"] = "offline"
            return super().experiment

    def log_hyperparams(self, params: Any) -> None:
        self.is_waiting = False
        super().log_hyperparams(params)

    @rank_zero_only
    def log_histograms(self, histograms: dict[str, Any], step: int) -> None:
        """Log a pair of counts and edges for each name."""
        drawn: dict[str, Any] = {name: wandb.Histogram(np_histogram=pair) for name, pair in histograms.items()}
        self.log_metrics(drawn, step)

    def _scan_and_log_checkpoints(self, checkpoint_callback: Any) -> None:
        # Lightning's one name for both would make last the newest version of best
        name = checkpoint_callback.filename
        self._checkpoint_name = f"{name}-{self.version}" if name in ("last", "best") else None
        super()._scan_and_log_checkpoints(checkpoint_callback)


@rank_zero_only
def _say(save_dir: str | Path, why: str) -> None:
    print(f"ndkd: {why}; the run continues offline. To upload it later: wandb sync {save_dir}/wandb/offline-run-*")


def _run_id(save_dir: str | Path) -> str:
    """The id that an earlier start of this run left, else a new one."""
    file = _id_file(save_dir)
    return file.read_text() if file.is_file() else secrets.token_hex(4)


def _id_file(save_dir: str | Path) -> Path:
    return Path(save_dir) / "wandb" / "run_id.txt"
