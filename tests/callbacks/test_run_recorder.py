"""What the recorder keeps of a run."""

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch

from ndkd.callbacks import AtomicCheckpoints, RunRecorder, checkpoint_callbacks, in_order
from ndkd.callbacks.run_recorder import git_commit, versions
from ndkd.runs import Run


class Break(L.Callback):
    """Raises at the end of an epoch's batches."""

    def __init__(self, epoch, error):
        self.epoch, self.error = epoch, error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise self.error


@pytest.fixture
def record(fit, make_module, terms, tmp_path):
    """Fit with a recorder and checkpoints: the run, the module, the data."""

    def go(*callbacks, data, **options):
        run, module = Run(tmp_path / "run"), make_module(terms("ce", "kd"))
        fit(module, *callbacks, RunRecorder(run, "seed: 0\n"), *checkpoint_callbacks(run), data=data, **options)
        return run, module

    return go


def test_a_row_per_epoch_and_the_predictions(record, tiny_data):
    data = tiny_data(val_size=19)
    run, module = record(data=data, epochs=2)
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert [row["step"] for row in rows] == ["3", "6"]
    columns = {"train/loss", "train/ce", "train/kd", "train/lr", "val/acc1", "val/acc5", "val/cross_entropy"}
    columns.add("val/balanced_acc")
    assert rows[0].keys() == columns | {"epoch", "step", "time/seconds", "time/epoch"}
    seconds, lengths = ([float(row[f"time/{name}"]) for row in rows] for name in ("seconds", "epoch"))
    assert 0 < seconds[0] == lengths[0] < seconds[1]
    assert seconds[1] - seconds[0] == pytest.approx(lengths[1], abs=1e-4)
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    confidence, predicted = module.eval().student(images).logits.softmax(dim=1).max(dim=1)
    kept = run.read_epoch("predictions", 1)
    assert np.array_equal(kept["target"], target.numpy())
    assert np.array_equal(kept["prediction"], predicted.numpy())
    np.testing.assert_allclose(kept["confidence"], confidence.detach().numpy(), atol=1e-3)
    assert (kept["target"] == kept["prediction"]).mean() == pytest.approx(float(rows[1]["val/acc1"]))


def test_status_of_a_finished_run(record, tiny_data):
    run, module = record(data=tiny_data())
    status = run.status()
    assert status["state"] == "finished"
    assert status["versions"] == versions()
    assert status["seconds"] > 0
    assert status["headline"] == "acc1"
    assert status["parameters"] == sum(p.numel() for p in module.student.model.parameters())
    assert {"command", "machine"} <= status.keys()
    assert run.config.read_text() == "seed: 0\n"


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [(RuntimeError("out of memory\nmore"), "failed", "out of memory"), (KeyboardInterrupt(), "interrupted", "")],
)
def test_status_of_a_broken_run(record, tiny_data, error, state, message, tmp_path):
    with pytest.raises((RuntimeError, SystemExit)):
        record(Break(1, error), data=tiny_data(), epochs=3)
    run = Run(tmp_path / "run")
    assert (run.status()["state"], run.status()["error"]) == (state, message)
    assert [row["epoch"] for row in run.metrics()] == ["0"]
    assert torch.load(run.checkpoint("last"), weights_only=True)["epoch"] == 0


def test_best_is_the_epoch_of_the_best_validation_accuracy(record, tiny_data):
    run, _ = record(data=tiny_data(), epochs=4)
    accuracies = [float(row["val/acc1"]) for row in run.metrics()]
    assert torch.load(run.checkpoint("best"), weights_only=True)["epoch"] == int(np.argmax(accuracies))
    assert torch.load(run.checkpoint("last"), weights_only=True)["epoch"] == 3
    assert sorted(file.name for file in run.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.fixture
def scored(make_trainer, fit, make_module, terms, tiny_data):
    """Fit so many epochs in a run folder, whose validation accuracies are given."""

    class Score(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            trainer.callback_metrics["val/acc1"] = torch.tensor(self.values[trainer.current_epoch])

        def on_train_epoch_end(self, trainer, pl_module):
            self.on_validation_epoch_end(trainer, pl_module)

    def go(folder, *values, resume=False):
        run, score = Run(folder), Score()
        score.values = values
        module, callbacks = make_module(terms("ce")), (RunRecorder(run, "{}"), *checkpoint_callbacks(run))
        resume = run.checkpoint("last") if resume else None
        fit(module, score, *callbacks, data=tiny_data(size=8), epochs=len(values), ckpt_path=resume)
        epochs = (torch.load(file, weights_only=True)["epoch"] for file in sorted(run.checkpoints.iterdir()))
        return dict(zip((file.stem for file in sorted(run.checkpoints.iterdir())), epochs, strict=True))

    return go


@pytest.mark.parametrize("place", ["moved", "copied", "same", "relative", "linked", "without best"])
def test_best_stays_the_best_wherever_the_folder_is(scored, tmp_path, monkeypatch, place):
    first, second = tmp_path / "first", tmp_path / "other" / "second"
    assert scored(first, 0.2, 0.9) == {"best": 1, "last": 1}
    second.parent.mkdir()
    if place == "copied":
        shutil.copytree(first, second)
    elif place == "linked":
        second.symlink_to(first)
    elif place == "relative":
        monkeypatch.chdir(tmp_path)
        second = "first"
    elif place == "same":
        second = first
    else:
        first.rename(second)
    if place == "without best":
        Run(second).checkpoint("best").unlink()
        assert scored(second, 0.2, 0.9, 0.5, resume=True) == {"last": 2}
    else:
        assert scored(second, 0.2, 0.9, 0.5, resume=True) == {"best": 1, "last": 2}
    assert scored(second, 0.2, 0.9, 0.5, 0.95, resume=True) == {"best": 3, "last": 3}
    if place == "copied":
        assert torch.load(Run(first).checkpoint("last"), weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(("size", "world_size"), [(7, 2), (6, 3), (1, 2), (0, 2), (5, 1)])
def test_rows_of_all_ranks_come_in_order(monkeypatch, size, world_size):
    shards = [list(range(rank, size, world_size)) for rank in range(world_size)]
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda out, own: out.__setitem__(slice(None), shards))
    trainer = SimpleNamespace(world_size=world_size)
    assert in_order(trainer, shards[0]) == list(range(size))


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"epoch": 1}, path)

    def half(checkpoint, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("torch.save", half)
    with pytest.raises(OSError, match="^disk full$"):
        AtomicCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_commit_is_marked_where_files_differ(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert git_commit() == head
    (tmp_path / "file").write_text("2")
    assert git_commit() == f"{head}-dirty"


def test_versions_are_primitives():
    found = versions()
    assert re.fullmatch(r"3\.\d+\.\d+.*", found["python"])
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found
