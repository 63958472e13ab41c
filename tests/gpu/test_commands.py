"""Whole commands on a GPU, each in a process of its own where processes are what it is about."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ndkd.models import build_model
from tests.command import SHORT, ndkd
from tests.distillation.test_detection import DRAWN, SMALL
from tests.odd_photos import write_class_folders
from tests.small_network import configuration


@pytest.fixture
def on(accelerator):
    return f"--trainer.accelerator={accelerator}"


def command(*words):
    """``ndkd`` in a process of its own."""
    found = subprocess.run([sys.executable, "-m", "ndkd", *map(str, words)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_digits(workplace, on, precision, tmp_path):
    options = [on, *SHORT, "--trainer.precision", precision, "--run_dir", tmp_path / "run"]
    status, out, err = ndkd("fit", "--config", "digits/kd++.yaml", *options)
    assert status == 0, err
    assert "test accuracy: " in out


def test_photos(tmp_path, monkeypatch, on):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NDKD_TRUST", "tests")
    write_class_folders(Path("photos"), {"train": 8, "val": 4}, ("a", "b", "c"), (40, 52))
    data = "{class_path: ImageFolderDataModule, init_args: {root: photos, image_size: 32, batch_size: 8, mixup: 0.2}}"
    Path("own.yaml").write_text(configuration(2, data))
    status, out, err = ndkd("fit", "--config", "own.yaml", on, "--run_dir", "run")
    assert status == 0, err
    status, out, err = ndkd("predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--images", "photos/val")
    assert status == 0, err


@pytest.mark.parametrize("config", ["shapes/student.yaml", "shapes/kd++.yaml"])
def test_detectors(tmp_path, monkeypatch, on, config):
    monkeypatch.chdir(tmp_path)
    torch.save(build_model("detector/resnet18", 6, **SMALL).state_dict(), "teacher.pth")
    options = [*DRAWN, on, "--trainer.max_epochs=1", "--run_dir", "run", "--model.init_args.student.kwargs", SMALL]
    if config == "shapes/kd++.yaml":
        teacher = {"name": "detector/resnet18", "checkpoint": "teacher.pth", "kwargs": SMALL}
        options += ["--model.init_args.teacher", teacher]
    status, out, err = ndkd("fit", "--config", config, *options)
    assert status == 0, err


def test_four_runs_share_a_gpu(workplace, on, tmp_path):
    configs = ["digits/student.yaml", "digits/kd++.yaml"]
    out = command("compare", "--seeds", 0, 1, "--jobs", 4, "--out", tmp_path / "out", *configs, "--", on, *SHORT)
    with open(tmp_path / "out" / "results.csv") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["finished"] * 4, out


@pytest.mark.cuda
@pytest.mark.parametrize("devices", [1, 2])
def test_nccl(workplace, tmp_path, devices):
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} GPUs, there are {torch.cuda.device_count()}")
    configs = ["--config", "digits/kd++.yaml", "--config", "trainer/ddp.yaml", "--trainer.devices", devices]
    command("fit", *configs, *SHORT, "--run_dir", tmp_path / "run")


def test_what_was_trained_there_is_exported(workplace, on, tmp_path):
    run = tmp_path / "run"
    status, _, err = ndkd("fit", "--config", "digits/student.yaml", on, *SHORT, "--run_dir", run)
    assert status == 0, err
    for kind, name in {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "model.safetensors"}.items():
        file = tmp_path / kind / name
        status, _, err = ndkd("export", run / "checkpoints/last.ckpt", "--format", kind, "--out", file)
        assert status == 0, err
        assert file.is_file()
