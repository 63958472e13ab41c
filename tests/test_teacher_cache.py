"""Recordings by real processes: killed, and two at once."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from ndkd.runs import Run
from tests.command import REPOSITORY, SHORT, ndkd

FIT = ["fit", "--config", "configs/digits/kd++.yaml", *SHORT, "--trainer.max_epochs=3", "--teacher_cache=runs/recorded"]
KILL = f"{{class_path: tests.command.BrokenOff, init_args: {{number: {signal.SIGKILL:d}, epoch: 1}}}}"


def start(*options):
    command, environment = [sys.executable, "-m", "ndkd", *FIT, *options], os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_killed_run_and_another_beside_it_end_well(workplace):
    killed = start("--run_dir=runs/killed", f"--trainer.callbacks+={KILL}")
    assert killed.wait(timeout=120) == -signal.SIGKILL, killed.stdout.read()
    (folder,) = Path("runs/recorded").iterdir()
    assert [file.name for file in folder.glob("epoch*")] == ["epoch-0000-rank-0.rows"]
    assert len(list(folder.glob(".epoch-0001*"))) == 1
    both = [start("--run_dir=runs/killed", "--ckpt_path=last"), start("--run_dir=runs/beside")]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    assert len(list(folder.glob("epoch*"))) == 3
    assert not list(folder.glob(".*"))
    shutil.move("runs/digits/teacher", "runs/away")
    try:
        status, out, err = ndkd(*FIT, "--run_dir=runs/replayed")
    finally:
        shutil.move("runs/away", "runs/digits/teacher")
    assert status == 0, err
    assert f"teacher: read from {folder}, all 3 epochs, and not loaded\n" in out
    runs = [Run(f"runs/{name}").checkpoint("last") for name in ("killed", "beside", "replayed")]
    first, *others = (torch.load(file, weights_only=True)["state_dict"] for file in runs)
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)
