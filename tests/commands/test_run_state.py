"""What a run has come to when it goes on, and when it ends."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ndkd.commands.run_state import check_epochs_left, end_of_run
from ndkd.commands.training_cli import TrainingCLI
from ndkd.errors import NdkdError
from ndkd.runs import Run
from tests.command import SHORT, ndkd, refusal

KDPP = ["fit", "--config", "configs/digits/kd++.yaml", *SHORT, "--trainer.max_epochs=1"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, {"state": "interrupted"}),
        (KeyboardInterrupt(), {"state": "interrupted"}),
        (NdkdError("no images"), {"state": "failed", "error": "no images"}),
        (ValueError("wrong\nshape"), {"state": "failed", "error": "wrong"}),
    ],
)
def test_a_run_that_ends_early(tmp_path, error, status):
    run = Run(tmp_path)
    run.start("config: 1", 0)
    run.update_status(state="running")
    end_of_run(run, error)
    assert run.status() == status


def test_a_run_that_has_ended_keeps_its_state(tmp_path):
    run = Run(tmp_path)
    run.start("config: 1", 0)
    run.update_status(state="finished")
    end_of_run(run, ValueError("later"))
    assert run.status() == {"state": "finished"}


def test_fewer_epochs_than_are_finished():
    for most in (None, -1, 3, 4):
        check_epochs_left({"epoch": 2}, most)
    assert refusal(check_epochs_left, {"epoch": 2}, 2).startswith(
        "trainer.max_epochs: the run has 3 finished epochs, wanted at least as many, got 2; "
    )


def test_a_run_is_finished_after_its_test_alone(workplace, monkeypatch):
    seen, run = [], Run("untestable")

    def fail(cli, checkpoint):
        seen.append(run.status()["state"])
        raise OSError(5, "Input/output error", "images")

    monkeypatch.setattr(TrainingCLI, "_test", fail)
    status, _, err = ndkd(*KDPP, "--run_dir=untestable")
    assert (status, err.splitlines()[-1]) == (2, "ndkd: Input/output error: images")
    assert seen == ["running"]
    assert (run.status()["state"], run.status()["error"]) == ("failed", "Input/output error: images")
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert ndkd(*KDPP, "--run_dir=untestable", "--ckpt_path=last")[0] == 0
    assert run.status()["state"] == "finished"
    assert "error" not in run.status()
    assert set(run.status()["results"]) == {"last", "best"}


def test_the_overlay_of_averages(workplace):
    overlay = ["--config", "configs/trainer/ema.yaml", "--trainer.callbacks.init_args.decay=0.5"]
    status, out, err = ndkd(*KDPP, *overlay, "--run_dir=averaged", "--trainer.max_epochs=2")
    assert status == 0, err
    assert "averag" not in err.lower()
    averages = torch.load("averaged/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    status, _, err = ndkd("export", "averaged/checkpoints/last.ckpt", "--out=averaged.safetensors")
    assert status == 0, err
    exported = load_file("averaged.safetensors")
    assert all(torch.equal(value, averages[f"student.model.{name}"]) for name, value in exported.items())
    printed = re.search(r"test accuracy: ([\d.]+%)", out)[1]
    status, tested, err = ndkd("test", "--ckpt_path", "averaged/checkpoints/last.ckpt")
    assert status == 0, err
    accuracy = float(re.search(r"test/acc1\s+(\S+)", tested)[1])
    assert f"{accuracy:.2%}" == printed


def test_a_schedule_of_another_length(workplace):
    schedule = ["--model.init_args.lr_scheduler=OneCycleLR", "--model.init_args.lr_scheduler.init_args.max_lr=0.1"]
    assert ndkd(*KDPP, *schedule, "--run_dir=longer")[0] == 0
    status, out, err = ndkd(*KDPP, *schedule, "--run_dir=longer", "--trainer.max_epochs=2", "--ckpt_path=last")
    assert status == 0, err
    (said,) = [line for line in out.splitlines() if line.startswith("ndkd: ")]
    assert said.startswith("ndkd: from epoch 1 on the learning rate follows OneCycleLR as configured now: ")
    assert Path("longer/metrics.csv").read_text().count("\n") == 3
    status, _, err = ndkd(*KDPP, *schedule, "--run_dir=longer", "--ckpt_path=last")
    assert status == 2
    assert "trainer.max_epochs: the run has 2 finished epochs, wanted at least as many, got 1" in err
