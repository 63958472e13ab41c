"""Weights & Biases where there is no account or no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record
from wandb.wandb_agent import Agent

from ndkd.loggers import WandbLogger
from ndkd.runs import Run
from tests.command import REPOSITORY, SHORT, ndkd

BLOCK = 2**15  # of a .wandb file, which is a log of LevelDB's with a header of 7 bytes
LOGGERS = """
trainer:
  logger:
    - {class_path: ndkd.loggers.WandbLogger, init_args: {tags: [KD++, shorter], log_model: true}}
    - {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: .}}
    - {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: ., name: board}}
"""
KDPP = ["fit", "--config", "configs/digits/kd++.yaml", "--config", "loggers.yaml", *SHORT, "--run_dir", "watched"]
KDPP += ["--trainer.accumulate_grad_batches=2"]


def read(file):
    """The records of an offline run, by their kind."""
    content, at, whole, found = file.read_bytes(), 7, b"", {}
    while at < len(content):
        if BLOCK - at % BLOCK < 7:  # too short for another header
            at += BLOCK - at % BLOCK
            continue
        start, size = at + 7, int.from_bytes(content[at + 4 : at + 6], "little")
        whole += content[start : start + size]
        if content[at + 6] in (1, 4):  # a record in one piece, or its last piece
            record = Record.FromString(whole)
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
            whole = b""
        at = start + size
    return found


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def watched(workplace):
    """A run that SIGTERM ends in its second epoch, and that is continued: its folder, the records of both starts."""
    Path("loggers.yaml").write_text(LOGGERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ndkd.callbacks.run_recorder.git_commit", lambda: "5eed")
        for name in ("WANDB_API_KEY", "WANDB_RUN_ID"):
            patch.delenv(name, raising=False)
        for name, value in {"MODE": "offline", "SILENT": "true", "DATA_DIR": str(workplace / "staged")}.items():
            patch.setenv(f"WANDB_{name}", value)
        wandb.finish()
        wandb.teardown()  # what tests of other files have set up reads the environment no more
        assert ndkd(*KDPP, "--trainer.callbacks+=tests.command.Terminated")[0] == 143
        wandb.finish()
        status, _, err = ndkd(*KDPP, "--ckpt_path", "last")
        assert status == 0, err
        wandb.finish()
        wandb.teardown()  # a finished run's file may still be open
    files = sorted(Path("watched/wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    return Run("watched"), [read(file) for file in files]


def test_every_panel_has_a_group(watched):
    run, starts = watched
    rows = [values(row.item) for start in starts for row in start["history"]]
    logged = {key for row in rows for key in row if key[0] != "_"}
    assert {key.split("/")[0] for key in logged - {"epoch", "trainer/global_step"}} == {
        *("train", "val", "features", "time", "test")
    }
    # what metrics.csv has, W&B has
    assert run.metrics()[1].keys() - {"step"} <= logged
    assert "features/angle/values" in logged  # a histogram
    angles = {row["epoch"]: row["features/angle_mean"] for row in rows if "features/angle_mean" in row}
    assert angles == pytest.approx({k: float(row["features/angle_mean"]) for k, row in enumerate(run.metrics())})


def test_tensorboard_has_what_metrics_csv_has(watched):
    run, _ = watched
    found = {}
    for file in sorted(run.path.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        found |= {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    last = run.metrics()[-1]
    assert {tag: found[tag] for tag in last.keys() - {"step"}} == pytest.approx(
        {tag: float(value) for tag, value in last.items() if tag != "step"}, rel=1e-5
    )
    assert {"features/angle_mean", "features/longer_than_teacher", "test/best_acc1"} <= found.keys()


def test_a_logger_whose_package_is_missing(workplace, monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.__init__", missing)
    overlay = ["--config", "configs/loggers/tensorboard.yaml", "--run_dir", "unseen"]
    status, _, err = ndkd("fit", "--config", "configs/digits/student.yaml", *overlay)
    assert (status, err) == (2, "ndkd: No module named 'tensorboard'\n")
    assert not Path("unseen").exists()


def test_a_continued_run_is_the_same_run(watched):
    run, starts = watched
    identity = (run.path / "wandb" / "run_id.txt").read_text()
    assert [start["run"][0].run_id for start in starts] == [identity, identity]
    rows = [[values(row.item) for row in start["history"]] for start in starts]
    epochs = [[row["epoch"] for row in of_start if "val/acc1" in row] for of_start in rows]
    assert epochs == [[0], [1]]
    assert [start["run"][0].resume for start in starts] == [True, True]


def test_the_configuration_is_recorded(watched):
    run, starts = watched
    config = {}
    for update in starts[1]["config"]:
        config |= values(update.update)
    assert {"model": config["model"], "data": config["data"]}.items() <= yaml.safe_load(run.config.read_text()).items()
    assert config["model"]["init_args"]["losses"]["nd"]["weight"] == 1
    assert config["git_commit"] == run.status()["git_commit"] == "5eed"
    assert config["versions"] == run.status()["versions"]
    assert config["global_batch_size"] == 2 * 32
    kept = yaml.safe_load((run.path / "lightning_logs/version_1/hparams.yaml").read_text())  # of the other logger
    assert kept == config


def test_last_and_best_are_tested_under_names_of_their_own(watched):
    run, starts = watched
    results = run.status()["results"]
    rows = [values(row.item) for row in starts[1]["history"]]
    assert "test/acc1" not in {key for row in rows for key in row}
    (row,) = (row for row in rows if "test/last_acc1" in row)
    for kind in ("last", "best"):
        assert row[f"test/{kind}_acc1"] == pytest.approx(results[kind]["test/acc1"], rel=1e-6)
        assert row[f"test/{kind}_epoch"] == results[kind]["epoch"]
    (table,) = run.path.glob("wandb/offline-run-*/files/media/table/test/results*.json")
    table = json.loads(table.read_text())
    assert table["columns"][:3] == ["checkpoint", "epoch", "test/acc1"]
    assert [row[:2] for row in table["data"]] == [[kind, results[kind]["epoch"]] for kind in ("last", "best")]
    header = (run.path / "lightning_logs/version_1/metrics.csv").read_text().split("\n")[0].split(",")
    assert {"test/last_acc1", "test/best_acc1"} <= set(header)
    assert "test/acc1" not in header


def test_checkpoints_are_artifacts_offline_too(watched):
    run, starts = watched
    kept = {artifact.name: artifact for artifact in starts[1]["artifact"] if artifact.type == "model"}
    identity = (run.path / "wandb" / "run_id.txt").read_text()
    assert kept.keys() == {f"last-{identity}", f"best-{identity}"}
    assert not [artifact for artifact in starts[0].get("artifact", []) if artifact.type == "model"]
    for name in ("last", "best"):
        (entry,) = kept[f"{name}-{identity}"].manifest.contents
        assert Path(entry.local_path).read_bytes() == run.checkpoint(name).read_bytes()


def test_tags_and_name(watched, make_logger):
    _, starts = watched
    assert list(starts[0]["run"][0].tags) == ["KDpp", "shorter"]
    logger = make_logger(offline=True, name="n" * 200, tags=["t" * 70, ""])
    assert logger._wandb_init["name"] == "n" * 128
    assert logger._wandb_init["tags"] == ["t" * 64]
    wandb.Settings(run_tags=logger._wandb_init["tags"])


def test_a_mistake_found_while_building_leaves_no_trace(watched, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    missing = "--model.init_args.teacher.checkpoint=missing.pth"
    status, _, err = ndkd(*KDPP, missing, "--run_dir", "mistaken")
    assert (status, "missing.pth does not exist" in err) == (2, True)
    assert not list(Path("mistaken").rglob("*wandb*"))


# ---- a sweep ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def agent_command(tmp_path, monkeypatch):
    """The command and the environment that W&B's agent makes of a sweep for chosen values."""
    started = {}
    monkeypatch.setattr("wandb.wandb_agent.AgentProcess", lambda **options: started.update(options))
    for name, value in {"DIR": str(tmp_path), "SWEEP_ID": "s1", "RUN_ID": "earlier", "SWEEP_PARAM_PATH": ""}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)

    def expand(sweep, **arguments):
        agent = Agent(api=None, queue=None, sweep_id="s1")
        agent._sweep_command, agent._run_processes = sweep["command"], {"r1": None}
        with pytest.raises(AttributeError, match="last_sigterm_time"):  # of the process that is not started
            agent._command_run({"run_id": "r1", "program": sweep["program"], "args": arguments})
        return started["command"], started["env"]

    return expand


def test_the_shipped_sweep(workplace, agent_command, tmp_path):
    sweep = yaml.safe_load((REPOSITORY / "configs/sweeps/nd_weight.yaml").read_text())
    chosen = {name: {"value": parameter["values"][-1]} for name, parameter in sweep["parameters"].items()}
    command, environment = agent_command(sweep, **chosen)
    (tmp_path / "ndkd").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "ndkd").chmod(0o755)
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    status, out, err = ndkd(*done.stdout.splitlines(), "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    assert config["model"]["init_args"]["losses"]["nd"]["weight"] == 4
    assert config["seed_everything"] == 2
    assert config["run_dir"] == "runs/sweeps/nd_weight/r1"
    assert config["trainer"]["logger"]["class_path"] == "ndkd.loggers.WandbLogger"
    assert sweep["metric"]["name"] == "val/acc1"


def test_an_agent_decides_over_the_id(make_logger, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    assert make_logger(offline=True).version == "r1"


# ---- the logger by itself --------------------------------------------------------------------------------------------


@pytest.fixture
def make_logger(monkeypatch, tmp_path):
    """A logger in an environment without an account; the folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    return lambda **options: WandbLogger(tmp_path / "digits" / "kd++", **options)


SCRIPT = """
import wandb
from ndkd import loggers
loggers.CONNECT_SECONDS = 1.0
logger = loggers.WandbLogger("digits/kd++")
print("made")
logger.log_metrics({"val/acc1": 0.5}, step=1)
wandb.finish()
"""


def test_a_server_that_does_not_answer(tmp_path):
    account = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_SILENT": "true"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | account
    # W&B keeps its connection for as long as a process lives
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    made, said = done.stdout.split("\n", 1)
    assert made == "made"
    assert said.startswith("ndkd: W&B could not be reached (")
    assert "the run continues offline. To upload it later: wandb sync digits/kd++/wandb/offline-run-*" in said
    assert len(list(tmp_path.glob("digits/kd++/wandb/offline-run-*/*.wandb"))) == 1


def test_asked_to_stay_offline_it_says_nothing(make_logger, capsys):
    logger = make_logger(offline=True)
    assert capsys.readouterr().out == ""
    assert (logger._wandb_init["mode"], logger._wandb_init["name"]) == ("offline", "digits/kd++")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_environment_decides_over_the_configuration(make_logger, monkeypatch, capsys, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert make_logger(offline=mode == "disabled")._wandb_init["mode"] == mode
    assert capsys.readouterr().out == ""


def test_other_ranks_write_no_id(make_logger, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_only.rank", 1)
    make_logger(offline=True).log_metrics({"val/acc1": 0.5})
    assert not list(tmp_path.rglob("run_id.txt"))


def test_a_folder_keeps_its_id(make_logger, tmp_path):
    first = make_logger(offline=True)
    assert first.experiment.id == first.version
    other = WandbLogger(tmp_path / "other", offline=True)
    assert make_logger(offline=True).version == first.version != other.version
    assert other.experiment.id == other.version  # and not the run that is still open
    wandb.finish()
