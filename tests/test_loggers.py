"""Weights & Biases where there is no account or no network."""

import os
import subprocess
import sys

import pytest

from ndkd.loggers import WandbLogger


@pytest.fixture
def make_logger(monkeypatch, tmp_path):
    """A logger in an environment without an account; the folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
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
    assert "the run goes on offline. To upload it later: wandb sync digits/kd++/wandb/offline-run-*" in said
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
    make_logger(offline=True)
    assert not list(tmp_path.rglob("run_id.txt"))


def test_a_folder_keeps_its_id(make_logger, tmp_path):
    first, again = make_logger(offline=True), make_logger(offline=True)
    other = WandbLogger(tmp_path / "other", offline=True)
    assert first.version == again.version != other.version
