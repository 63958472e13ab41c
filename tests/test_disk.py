"""A full disk is one line, and what is written is on the disk before it has its name."""

import errno
import json
import os
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ndkd.commands.export_card as export_card
import ndkd.commands.export_formats as formats
from ndkd.callbacks.checkpoints import AtomicCheckpoints
from ndkd.callbacks.detection_pictures import DetectionPictures
from ndkd.cli import main
from ndkd.commands.compare_tables import write_tables
from ndkd.errors import NdkdError
from ndkd.files import write_atomically
from ndkd.runs import Run
from tests.command import SHORT, ndkd

RUN = "runs/digits/teacher"
LAST = f"{RUN}/checkpoints/last.ckpt"
FIT = ["fit", "--config", "configs/digits/teacher.yaml", *SHORT]
LINE = (
    r"ndkd: %s cannot be written: (File too large|No space left on device); [\d,.]+ MB are free there; make room .*\n"
)


@contextmanager
def no_file_beyond(size):
    """Let no file of this process grow further, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def copy(workplace, tmp_path, monkeypatch):
    """A finished run in a working directory of its own."""
    (tmp_path / "configs").symlink_to(workplace / "configs")
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Run(RUN)


def files():
    return sorted(str(file) for file in Path().rglob("*"))


def image_of(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


WRITERS = {
    "a checkpoint": lambda file: torch.save({"weights": torch.rand(5000)}, file),
    "arrays": lambda file: np.savez_compressed(file, values=np.random.default_rng(0).random(5000)),
    "a picture": lambda file: image_of(60).save(file, "PNG"),
    "a text": lambda file: file.write(b"x" * 5000),
    "many small writes": lambda file: [file.write(b"x" * 50) for _ in range(100)],
    "what is written at the end": lambda file: file.write(b"x" * 2049),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_what_was_there(kind, tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"whole"))
    with (
        no_file_beyond(2048),
        pytest.raises(NdkdError, match=rf"^{path} cannot be written: File too large; \S+ MB are"),
    ):
        write_atomically(path, WRITERS[kind])
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"whole"


def test_a_mistake_while_writing_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "file", lambda file: 1 / 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_error_of_the_disk_outside_a_writer(number, monkeypatch, capsys):
    def full(arguments):
        raise OSError(number, os.strerror(number), "some/folder")

    monkeypatch.setattr("ndkd.cli._run", full)
    assert main(["fit"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"ndkd: some/folder cannot be written: {os.strerror(number)}; [\d,.]+ MB are free there; .*\n", said
    )


# ---- every command ---------------------------------------------------------------------------------------------------


def assert_full(file, *arguments, size=1500):
    before = files()
    with no_file_beyond(size):
        status, _, err = ndkd(*arguments)
    assert status == 2, err
    assert re.search(LINE % re.escape(str(file)), err), err
    assert "Traceback" not in err
    assert not [name for name in set(files()) - set(before) if Path(name).name.startswith(".")]


def test_fit_fails_and_goes_on_when_there_is_room(copy):
    assert_full(Path(LAST).resolve(), *FIT, "--ckpt_path=last", size=50_000)
    status = copy.status()
    assert status["state"] == "failed"
    assert "cannot be written" in status["error"]
    before = torch.load(LAST, weights_only=True)
    assert before["epoch"] == 0
    code, _, err = ndkd(*FIT, "--ckpt_path=last")
    assert code == 0, err
    assert torch.load(LAST, weights_only=True)["epoch"] == 1
    status = copy.status()
    assert (status["state"], "error" in status) == ("finished", False)
    assert [row["epoch"] for row in copy.metrics()] == ["0", "1"]


def test_predict(copy):
    assert_full(f"{RUN}/predictions.csv", "predict", "--ckpt_path", LAST, "--trainer.limit_predict_batches=2")


@pytest.mark.parametrize("format", ["safetensors", "torch", "torch_export"])
def test_export(format, copy, monkeypatch):
    monkeypatch.setattr(export_card, "SECONDS", 1e-3)
    out = f"out/model{formats.ENDINGS[format]}"
    assert_full(out, "export", LAST, "--format", format, "--out", out, size=50_000)
    assert not Path("out").exists()


def test_a_model_card(copy, monkeypatch):
    monkeypatch.setattr(export_card, "SECONDS", 1e-3)
    monkeypatch.setattr(formats, "save", lambda weights: b"")
    monkeypatch.setattr(formats, "read_checkpoint", lambda path: content if path == Path(LAST) else weights)
    content = torch.load(LAST, weights_only=True)
    weights = {
        key.removeprefix("student.model."): value
        for key, value in content["state_dict"].items()
        if key.startswith("student.model.")
    }
    assert_full("out/README.md", "export", LAST, "--out", "out/model.safetensors")


def test_report(copy):
    assert_full(Path(RUN, "report").resolve(), "report", RUN)
    assert not Path(RUN, "report").exists()


def test_tables(tmp_path):
    found = {"config": "kd", "seed": 0, "state": "finished", "metric": "test/acc1", "last": 90.0, "best": 91.0}
    rows = [{**found, "seconds": 1.0, "parameters": 7, "seed": seed} for seed in range(3)]
    with no_file_beyond(100), pytest.raises(NdkdError, match="results.csv cannot be written"):
        write_tables(rows, tmp_path, "ndkd compare")
    with no_file_beyond(600), pytest.raises(NdkdError, match="results.md cannot be written"):
        write_tables(rows, tmp_path, "ndkd compare")


def test_the_cache_of_class_means(copy):
    options = ["--class_means.cache_dir=cache", "--run_dir=run"]
    with no_file_beyond(1000):
        status, _, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", *SHORT, *options)
    assert status == 2
    assert re.search(LINE % r"cache/\w+\.safetensors", err), err


def test_pictures(tmp_path):
    pictures = DetectionPictures(Run(tmp_path))
    pictures._rows = [torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)]
    with no_file_beyond(1000), pytest.raises(NdkdError, match="0007.png cannot be written"):
        pictures.on_train_epoch_end(SimpleNamespace(is_global_zero=True, current_epoch=7, loggers=[]), None)


# ---- power cuts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def order(monkeypatch):
    """What was put on the disk, and when a file got its name."""
    done, fsync, replace = [], os.fsync, Path.replace

    def synced(descriptor):
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def named(self, target):
        done.append(("name", str(target)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds a file's name in /proc")
def test_bytes_are_on_the_disk_before_the_name_and_the_name_at_the_end(order, tmp_path):
    AtomicCheckpoints().save_checkpoint({"weights": nn.Linear(3, 3).state_dict()}, tmp_path / "last.ckpt")
    Run(tmp_path).update_status(state="running")
    for name, done in (("last.ckpt", order[:3]), ("status.json", order[3:])):
        temporary = f"{tmp_path}/.{name}.{os.getpid()}"
        assert done == [("sync", temporary), ("name", f"{tmp_path}/{name}"), ("sync", str(tmp_path))]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_where_nothing_can_be_synced_it_goes_on(number, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    Run(tmp_path).update_status(state="running")
    assert json.loads((tmp_path / "status.json").read_text()) == {"state": "running"}


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.ENOSPC, NdkdError)])
def test_bytes_that_do_not_reach_the_disk_are_no_file(number, kind, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind):
        Run(tmp_path).update_status(state="running")
    assert not list(tmp_path.iterdir())
