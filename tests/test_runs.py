"""The run folder: everything in it is written whole or not at all."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ndkd.files import write_atomically
from ndkd.runs import Run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "deep" / "run")


def files(run):
    return sorted(str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file())


def row(epoch, **values):
    return {"epoch": epoch, "step": 10 * epoch, **values}


def test_a_folder_that_does_not_exist_reads_as_empty(run):
    assert run.status() == {}
    assert run.metrics() == []
    assert not run.is_used
    assert not run.path.exists()


def test_status_changes_adds_and_takes_away(run):
    run.update_status(state="running", seed=3)
    run.update_status(state="finished", seed=None, results={"last": {"epoch": 1, "test/acc1": 0.5}})
    assert run.status() == {"state": "finished", "results": {"last": {"epoch": 1, "test/acc1": 0.5}}}


def test_metrics_grow_by_a_row_and_replace_a_row_of_the_same_epoch(run):
    run.add_metrics(row(0, loss="2.5"))
    run.add_metrics(row(1, loss="2.0"))
    run.add_metrics(row(1, loss="1.5"))
    assert [(r["epoch"], r["step"], r["loss"]) for r in run.metrics()] == [("0", "0", "2.5"), ("1", "10", "1.5")]


def test_a_column_that_comes_later_is_empty_before(run):
    run.add_metrics(row(0))
    run.add_metrics(row(1, late="1"))
    assert [r["late"] for r in run.metrics()] == ["", "1"]


def test_start_keeps_only_what_precedes_the_first_epoch(run):
    for epoch in range(4):
        run.add_metrics(row(epoch))
        for kind in ("predictions", "features"):
            run.write_epoch(kind, epoch, {"values": np.arange(epoch)})
    run.update_status(state="failed", error="boom", results={})
    run.start("seed: 1", first_epoch=2)
    assert [r["epoch"] for r in run.metrics()] == ["0", "1"]
    kept = [f"{kind}/000{epoch}.npz" for kind in ("features", "predictions") for epoch in (0, 1)]
    assert files(run) == ["config.yaml", *kept, "metrics.csv", "status.json"][:1] + sorted(
        [*kept, "metrics.csv", "status.json"]
    )
    assert run.config.read_text() == "seed: 1"
    assert run.status() == {"state": "failed"}


def test_start_clears_what_a_killed_process_was_writing(run):
    run.start("seed: 1", 0)
    killed = subprocess.Popen(["true"])
    killed.wait()
    for name in ("status.json", "checkpoints/last.ckpt", "pictures/0000.png"):
        half = (run.path / name).with_name(f".{Path(name).name}.{killed.pid}")
        half.parent.mkdir(exist_ok=True)
        half.touch()
    other = run.path / f".predictions.csv.{os.getppid()}"  # of a process that is alive
    other.touch()
    run.start("seed: 1", 0)
    assert files(run) == [other.name, "config.yaml", "metrics.csv", "status.json"]


def test_arrays_of_an_epoch(run):
    arrays = {name: np.arange(3, dtype=np.int32) for name in ("target", "prediction")}
    arrays["confidence"] = np.array([0.5, 0.25, 1], np.float16)
    run.write_epoch("predictions", 12, arrays)
    assert files(run) == ["predictions/0012.npz"]
    read = run.read_epoch("predictions", 12)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)


def test_run_of_a_checkpoint(run, tmp_path):
    last = run.checkpoint("last")
    assert Run.of_checkpoint(last) is None  # there is no configuration
    run.start("seed: 1", 0)
    assert Run.of_checkpoint(last).path == run.path
    assert Run.of_checkpoint(run.path / "elsewhere" / "last.ckpt") is None


def test_used_once_there_is_a_checkpoint(run):
    run.start("seed: 1", 0)
    assert not run.is_used
    write_atomically(run.checkpoint("last"), lambda file: file.write(b"weights"))
    assert run.is_used


def test_predictions(run):
    path = run.write_predictions(
        [{"prediction": "a, b", "confidence": 0.5}, {"prediction": 'say "c"', "confidence": 1}]
    )
    assert path.read_text().splitlines() == ["prediction,confidence", '"a, b",0.5', '"say ""c""",1']


def test_a_write_that_fails_leaves_what_was_there(run):
    path = run.path / "file.txt"
    write_atomically(path, lambda file: file.write(b"whole"))

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match=f"^{re.escape('disk full')}$"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"whole"
    assert files(run) == ["file.txt"]
