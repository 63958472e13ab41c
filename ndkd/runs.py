"""The run folder: the only file that knows its layout; everything in it is written whole or not at all.

::

    config.yaml             the resolved configuration
    status.json             running, finished, failed or interrupted; versions, git commit, results
    lock                    while a process trains here: which, on which machine
    metrics.csv             one row per epoch
    checkpoints/last.ckpt   of the last finished epoch
    checkpoints/best.ckpt   of the epoch with the best validation accuracy or AP
    predictions/0000.npz    per epoch, on the evaluation set: target, prediction, confidence
    features/0000.npz       per epoch, on the evaluation set: histograms of norms and angles
    pictures/0000.png       per epoch, of a detector: ground truth, student and teacher
    predictions.csv         what ``ndkd predict`` wrote; predictions.json, COCO's results, for detectors
"""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ndkd.errors import NdkdError, one_of
from ndkd.lock import Lock
from ndkd.stopping import is_alive


class Run:
    """One run's folder, to write to while training and to read from afterwards.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.lock: Lock | None = None

    @staticmethod
    def existing(path: str | Path) -> "Run":
        """The run in a folder that must be there.

        Raises:
            NdkdError: no folder, or not one of a run; the message names those beside it.
        """
        run = Run(path)
        if not run.config.is_file():
            what = "is no run folder: it has no config.yaml" if run.path.is_dir() else "does not exist"
            beside = sorted(str(config.parent) for config in run.path.absolute().parent.glob("*/config.yaml"))
            hint = one_of(str(run.path.absolute()), beside) if beside else "give the folder that ndkd fit names"
            raise NdkdError(f"run folder {path} {what}; {hint}")
        return run

    @staticmethod
    def of_checkpoint(checkpoint: str | Path) -> "Run | None":
        """The run that a checkpoint lies in, None if it lies in no run folder."""
        run = Run(Path(checkpoint).parent.parent)
        return run if run.config.is_file() and Path(checkpoint).parent == run.checkpoints else None

    def checkpoint(self, name: str) -> Path:
        """File of the ``last`` or ``best`` checkpoint."""
        return self.checkpoints / f"{name}.ckpt"

    @property
    def is_used(self) -> bool:
        """Whether there is a finished epoch that a fresh run would overwrite."""
        return self.checkpoint("last").exists()

    @property
    def is_kept(self) -> bool:
        """Whether the folder of a run that was started is still there, and still the run's own."""
        return self.config.is_file() and (self.lock is None or self.lock.is_kept)

    def check_kept(self) -> None:
        if not self.is_kept:
            what = "was removed, moved or replaced while the run was going"
            raise NdkdError(f"run folder {self.path} {what}: nothing more is kept of it; leave it in its place")

    def start(self, config: str, first_epoch: int) -> None:
        """Write the configuration; keep of an earlier start only what precedes the first epoch."""
        write_atomically(self.config, lambda file: file.write(config.encode()))
        for half_written in [*self.path.glob(".*.[0-9]*"), *self.path.glob("*/.*.[0-9]*")]:
            process = half_written.suffix[1:]
            if process.isdigit() and not is_alive(int(process)):  # it was killed
                half_written.unlink(missing_ok=True)
        self._write_rows("metrics.csv", [row for row in self.metrics() if int(row["epoch"]) < first_epoch])
        for kind in ("predictions", "features"):
            for file in (self.path / kind).glob("*.npz"):
                if int(file.stem) >= first_epoch:
                    file.unlink()
        self.update_status(error=None, results=None)

    def update_status(self, **values: Any) -> None:
        """Change or add entries of status.json; None takes an entry away."""
        kept = {name: value for name, value in {**self.status(), **values}.items() if value is not None}
        text = json.dumps(kept, indent=2)
        write_atomically(self.path / "status.json", lambda file: file.write(text.encode()))

    def status(self) -> dict[str, Any]:
        file = self.path / "status.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Add one epoch's row; a row of the same epoch is replaced."""
        kept = [old for old in self.metrics() if int(old["epoch"]) < row["epoch"]]
        self._write_rows("metrics.csv", [*kept, row])

    def metrics(self) -> list[dict[str, str]]:
        """The rows of metrics.csv."""
        file = self.path / "metrics.csv"
        if not file.is_file():
            return []
        with file.open(newline="") as text:
            return list(csv.DictReader(text))

    def epochs(self, kind: str) -> list[int]:
        """The epochs of which ``predictions`` or ``features`` were kept."""
        return sorted(int(file.stem) for file in (self.path / kind).glob("[0-9]*.npz"))

    def validation_results(self, metric: str) -> dict[str, dict[str, float]]:
        """The ``last`` and ``best`` epochs of metrics.csv by ``val/metric``."""
        rows = [{"epoch": int(row["epoch"]), metric: float(row[metric])} for row in self.metrics() if row.get(metric)]
        return {"last": rows[-1], "best": max(rows, key=lambda row: row[metric])} if rows else {}

    def last_picture(self) -> Path | None:
        """The newest of a detector's pictures."""
        return max((self.path / "pictures").glob("[0-9]*.png"), default=None)

    def write_epoch(self, kind: str, epoch: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep one epoch's ``predictions`` or ``features``."""
        write_atomically(self.path / kind / f"{epoch:04d}.npz", lambda file: np.savez_compressed(file, **arrays))

    def read_epoch(self, kind: str, epoch: int) -> dict[str, np.ndarray]:
        with np.load(self.path / kind / f"{epoch:04d}.npz") as arrays:
            return dict(arrays)

    def write_predictions(self, rows: list[Any]) -> Path:
        """Write predictions.csv, a row per image, or predictions.json, a list per image."""
        if not rows or isinstance(rows[0], dict):
            return self._write_rows("predictions.csv", rows)
        text = json.dumps([row for of_image in rows for row in of_image])
        return write_atomically(self.path / "predictions.json", lambda file: file.write(text.encode()))

    def _write_rows(self, name: str, rows: list[dict[str, Any]]) -> Path:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        if columns:
            writer.writeheader()
        writer.writerows(rows)
        return write_atomically(self.path / name, lambda file: file.write(text.getvalue().encode()))


def check_folder(path: Path, option: str) -> Path:
    """The part of a path that exists; ``NdkdError`` that names the option if the rest cannot be made there."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise NdkdError(
            f"folder {path} cannot be made: {above} is not a folder to write in; choose another with {option}"
        )
    return above


def write_atomically(path: Path, write: Callable[[io.BufferedWriter], Any]) -> Path:
    """Let ``write`` fill a temporary file, then give it its name: a reader or a kill never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def differences(now: dict[str, Any], before: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Entries of nested dictionaries that both have, with other values.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 0, "c": 2}, "d": 3})
    {'a.b': (1, 0)}
    """
    found = {}
    for key in now.keys() & before.keys():
        values = now[key], before[key]
        if all(isinstance(value, dict) for value in values):
            found |= differences(*values, prefix=f"{prefix}{key}.")
        elif values[0] != values[1]:
            found[f"{prefix}{key}"] = values
    return dict(sorted(found.items()))
