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
    as_teacher.json         how good it is as others' teacher, on their validation images
    predictions.csv         what ``ndkd predict`` wrote; predictions.json, COCO's results, for detectors
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ndkd.errors import Damaged, NdkdError, suggestion
from ndkd.files import write_atomically, write_rows
from ndkd.lock import Lock
from ndkd.run_checks import ARRAYS, checked_arrays, checked_content, checked_status, entries, is_row, unfolded
from ndkd.stopping import is_alive

# columns of metrics.csv that a run is compared by, by their names in a table
MEASURED = {"angle": "features/angle_mean", "relative_norm": "features/relative_norm"}
RESUME = "ndkd fit --ckpt_path last writes a new one"
OWN_CONFIG = "take it from a copy, or let ndkd fit --config FILE --ckpt_path last write a new one"


class Run:
    """One run's folder, to write to while training and to read from afterwards.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.as_teacher = self.path / "as_teacher.json"
        self.lock: Lock | None = None

    @staticmethod
    def existing(path: str | Path) -> "Run":
        """The run in a folder that must be there.

        Raises:
            NdkdError: no folder, or not one of a run; the message names those beside it.
        """
        run = Run(path)
        if not run.config.is_file():
            what = "is not a run folder: it has no config.yaml" if run.path.is_dir() else "does not exist"
            if run.path.is_file():
                what = "is a file"
            beside = sorted(str(config.parent) for config in run.path.absolute().parent.glob("*/config.yaml"))
            hint = suggestion(str(run.path.absolute()), beside) if beside else "give the folder that ndkd fit names"
            raise NdkdError(f"run folder {path} {what}; {hint}")
        return run

    @staticmethod
    def of_checkpoint(checkpoint: str | Path) -> "Run | None":
        """The run that a checkpoint lies in, None if it is not in a run folder."""
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
        self._write_rows("metrics.csv", [row for row in self._kept_metrics() if int(row["epoch"]) < first_epoch])
        for kind in ARRAYS:
            for epoch in self.epochs(kind):
                if epoch >= first_epoch:
                    self._epoch_file(kind, epoch).unlink()
        self.update_status(error=None, results=None)

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            Damaged: a file that holds none.
        """
        return checked_content(
            self.config, lambda: entries(unfolded(yaml.safe_load(self.config.read_bytes()))), OWN_CONFIG
        )

    def update_status(self, **values: Any) -> None:
        """Change or add entries of status.json; None takes an entry away. What cannot be read is written anew."""
        kept = {name: value for name, value in {**self.known_status(), **values}.items() if value is not None}
        text = json.dumps(kept, indent=2)
        write_atomically(self.path / "status.json", lambda file: file.write(text.encode()))

    def status(self) -> dict[str, Any]:
        """The entries of status.json, none where there is no such file.

        Raises:
            Damaged: a file that holds something else.
        """
        file = self.path / "status.json"
        return (
            checked_content(file, lambda: checked_status(json.loads(file.read_bytes())), RESUME)
            if file.is_file()
            else {}
        )

    def known_status(self) -> dict[str, Any]:
        """The same for whoever writes a new one: of a file that is damaged nothing, which is said."""
        try:
            return self.status()
        except Damaged as error:
            print(f"ndkd: {error}", file=sys.stderr)
            return {}

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Add one epoch's row; a row of the same epoch is replaced."""
        kept = [old for old in self._kept_metrics() if int(old["epoch"]) < row["epoch"]]
        self._write_rows("metrics.csv", [*kept, row])

    def metrics(self) -> list[dict[str, str]]:
        """The rows of metrics.csv.

        Raises:
            Damaged: not all of it is rows of numbers.
        """
        rows, why = self._readable_metrics()
        if why:
            raise Damaged(self.path / "metrics.csv", why, RESUME)
        return rows

    def _readable_metrics(self) -> tuple[list[dict[str, str]], str | None]:
        """The rows that are whole, and what is wrong with the first that is not."""
        file = self.path / "metrics.csv"
        content = file.read_bytes() if file.is_file() else b""
        if not content:
            return [], "it is empty" if file.is_file() and self.is_used else None
        reader = csv.DictReader(io.StringIO(content.decode(errors="replace"), newline=""), strict=True)
        rows: list[dict[str, str]] = []
        wrong: list[str] = []
        try:
            if not {"epoch", "step"} <= set(reader.fieldnames or ()):
                return [], "its first line does not name the columns epoch and step"
            for number, row in enumerate(reader, 2):
                is_next = is_row(row) and (not rows or int(row["epoch"]) > int(rows[-1]["epoch"]))
                rows += [row] if is_next else []
                wrong += [] if is_next else [f"line {number} is not a row of numbers"]
        except csv.Error as error:
            wrong.append(f"line {reader.line_num}: {error}")
        if not content.endswith(b"\n"):  # its last number may look whole
            rows, wrong = rows[:-1], [*wrong, "its last line is cut"]
        if not rows and self.is_used:
            wrong.append("it has no row")
        return rows, wrong[0] if wrong else None

    def _kept_metrics(self) -> list[dict[str, str]]:
        """The rows that can be read; if that is not all of the file, it is set aside."""
        rows, why = self._readable_metrics()
        file, number = self.path / "metrics.csv", 1
        if why and file.stat().st_size:
            while (aside := file.with_name(f"metrics.csv.damaged{number if number > 1 else ''}")).exists():
                number += 1
            file.replace(aside)
            kept = f"it is kept as {aside.name}, and {len(rows)} rows of it in a new one"
            print(f"ndkd: {file} is damaged: {why}; {kept}", file=sys.stderr)
        return rows

    def epochs(self, kind: str) -> list[int]:
        """The epochs of which ``predictions`` or ``features`` were kept."""
        return sorted(int(file.stem) for file in (self.path / kind).glob("*.npz") if re.fullmatch(r"\d+", file.stem))

    def _epoch_file(self, kind: str, epoch: int) -> Path:
        return self.path / kind / f"{epoch:04d}.npz"

    def validation_results(self, metric: str) -> dict[str, dict[str, float]]:
        """The ``last`` and ``best`` epochs of metrics.csv by ``val/metric``."""
        rows = [{"epoch": int(row["epoch"]), metric: float(row[metric])} for row in self.metrics() if row.get(metric)]
        return {"last": rows[-1], "best": max(rows, key=lambda row: row[metric])} if rows else {}

    def last_picture(self) -> Path | None:
        """The newest of a detector's pictures."""
        return max((self.path / "pictures").glob("[0-9]*.png"), default=None)

    def write_epoch(self, kind: str, epoch: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep one epoch's ``predictions`` or ``features``."""
        save: Callable[..., None] = np.savez_compressed
        write_atomically(self._epoch_file(kind, epoch), lambda file: save(file, **arrays))

    def read_epoch(self, kind: str, epoch: int) -> dict[str, np.ndarray]:
        """One epoch's ``predictions`` or ``features``.

        Raises:
            Damaged: a file that does not hold these arrays.
        """
        file = self._epoch_file(kind, epoch)

        def read() -> dict[str, np.ndarray]:
            with np.load(file) as arrays:
                return checked_arrays(kind, dict(arrays))

        return checked_content(file, read, f"remove it, {kind} of other epochs do without")

    def write_predictions(self, rows: list[Any]) -> Path:
        """Write predictions.csv, a row per image, or predictions.json, a list per image."""
        if not rows or isinstance(rows[0], dict):
            return self._write_rows("predictions.csv", rows)
        text = json.dumps([row for of_image in rows for row in of_image])
        return write_atomically(self.path / "predictions.json", lambda file: file.write(text.encode()))

    def _write_rows(self, name: str, rows: list[dict[str, Any]]) -> Path:
        return write_rows(self.path / name, rows, list(dict.fromkeys(column for row in rows for column in row)))
