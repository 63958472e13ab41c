"""Weights & Biases where there is no account or no network."""

import pytest
import wandb

from ndkd import loggers
from ndkd.loggers import WandbLogger


@pytest.fixture
def make_logger(monkeypatch, tmp_path):
    """A logger in an environment without an account; the folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(loggers, "CONNECT_SECONDS", 3.0)
    yield lambda **options: WandbLogger(tmp_path / "digits" / "kd++", **options)
    wandb.teardown()


def test_a_server_that_does_not_answer(make_logger, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    logger = make_logger()
    assert capsys.readouterr().out == ""
    logger.log_metrics({"val/acc1": 0.5}, step=1)
    folder = tmp_path / "digits" / "kd++"
    out = capsys.readouterr().out
    assert "ndkd: W&B could not be reached (" in out
    assert f"the run goes on offline. To upload it later: wandb sync {folder}/wandb/offline-run-*" in out
    wandb.finish()
    assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_asked_to_stay_offline_it_says_nothing(make_logger, capsys):
    logger = make_logger(offline=True)
    assert capsys.readouterr().out == ""
    assert (logger._wandb_init["mode"], logger._wandb_init["name"]) == ("offline", "digits/kd++")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_environment_decides_over_the_configuration(make_logger, monkeypatch, capsys, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert make_logger(offline=mode == "disabled")._wandb_init["mode"] == mode
    assert capsys.readouterr().out == ""


def test_a_folder_keeps_its_id(make_logger, tmp_path):
    first, again = make_logger(offline=True), make_logger(offline=True)
    other = WandbLogger(tmp_path / "other", offline=True)
    assert first.version == again.version != other.version
