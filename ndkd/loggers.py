"""Weights & Biases, with or without an account and a network, and MLflow, with or without a server."""

import os
import re
import secrets
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ndkd.configuration.entries import flattened
from ndkd.errors import NdkdError, words_of
from ndkd.files import write_atomically

CONNECT_SECONDS = 30.0
NOWHERE = "http://localhost"  # a server that is never asked


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


class MLFlowLogger(LightningMLFlowLogger):
    """Lightning's MLflow logger with its database and files in the run folder; a resumed run is the same MLflow run.

    Args:
        save_dir: where the folder ``mlflow`` is; the command line gives the run folder.
        experiment_name: of MLflow.
        run_name: display name; by default the last two parts of the run folder.
        tracking_uri: a server or a database instead, by default the environment's ``MLFLOW_TRACKING_URI``.
        tags: of the MLflow run.

    Raises:
        NdkdError: MLflow is not installed; once something is logged, that its server or database fails.
    """

    is_waiting = False
    """Whether to leave MLflow alone until something is logged: a mistake found while building leaves no trace there."""

    def __init__(
        self,
        save_dir: Path = Path("runs"),
        experiment_name: str = "ndkd",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
    ):
        if find_spec("mlflow") is None:
            raise NdkdError("MLflow is not installed: python -m pip install 'ndkd[mlflow]'")
        self._folder = Path(save_dir).absolute() / "mlflow"
        elsewhere = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        super().__init__(
            experiment_name,
            run_name or "/".join(Path(save_dir).parts[-2:]),
            NOWHERE,  # Lightning would make the database at once
            tags,
            artifact_location=None if elsewhere else (self._folder / "artifacts").as_uri(),
        )
        self._tracking_uri = elsewhere or f"sqlite:///{self._folder / 'mlflow.db'}"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client; the MLflow run is made, or found again, at the first call."""
        if self.is_waiting:
            return DummyExperiment()
        if self._initialized:
            return self._mlflow_client
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        known = self._folder / "run_id.txt"
        self._run_id = known.read_text() if known.is_file() else None
        if self._artifact_location:
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._mlflow_client = MlflowClient(self._tracking_uri)
            try:
                client = super().experiment
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                client = super().experiment  # another run has made the experiment meanwhile
        except MlflowException as error:
            raise NdkdError(
                f"MLflow at {self._tracking_uri}: {words_of(error)}; see the logger's tracking_uri"
            ) from error
        write_atomically(known, lambda out: out.write(str(self._run_id).encode()))
        return client

    @property
    def save_dir(self) -> str:
        """The folder of the database and of the run's id."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """MLflow keeps each value as it was first: what a resumed run has changed stays."""
        self.is_waiting = False
        entries = flattened(vars(params) if isinstance(params, Namespace) else params)
        named = {re.sub("[^a-zA-Z0-9_/. -]", "_", name): value for name, value in entries.items()}
        known = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({name: value for name, value in named.items() if name not in known})

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None:
        """As the artifact ``KEY.json``, which MLflow shows as a table."""
        self.experiment.log_dict(self.run_id, {"columns": [*columns], "data": [[*row] for row in data]}, f"{key}.json")


@rank_zero_only
def _say(save_dir: str | Path, why: str) -> None:
    print(f"ndkd: {why}; the run continues offline. To upload it later: wandb sync {save_dir}/wandb/offline-run-*")


def _run_id(save_dir: str | Path) -> str:
    """The id that an earlier start of this run left, else a new one."""
    file = _id_file(save_dir)
    return file.read_text() if file.is_file() else secrets.token_hex(4)


def _id_file(save_dir: str | Path) -> Path:
    return Path(save_dir) / "wandb" / "run_id.txt"
