"""``ndkd report``: one page, made from the run folders alone, that shows whether a run helped."""

import base64
import os
from functools import partial
from itertools import cycle
from operator import methodcaller
from pathlib import Path
from tempfile import TemporaryDirectory

import jinja2
import matplotlib.style
import numpy as np
import pandas as pd
import torch
from torchmetrics.functional.classification import binary_calibration_error

from ndkd.commands.report_figures import COLOURS, figures
from ndkd.commands.report_verdict import verdict_of
from ndkd.configuration.entries import entry
from ndkd.errors import NdkdError, shortened
from ndkd.files import check_folder, sync_folder, write_atomically
from ndkd.models.checkpoint import read_checkpoint
from ndkd.models.run_checkpoint import Known
from ndkd.runs import MEASURED, Run

MARK = '<meta name="generator" content="ndkd report">'  # by which a report is told from other folders


def report(runs: list[Path], out: Path | None = None) -> None:
    """Write ``index.html``, which needs no other file, and its pictures as PNG files.

    Args:
        runs: run folders, the first is what the others are compared with.
        out: the folder; by default ``report`` in the run's folder, of several runs in the one that they lie in.

    Raises:
        NdkdError: a folder that is no run, is named twice, has no finished epoch or is damaged; runs on other classes
            or with another metric; a place that cannot be written to or holds something else.
    """
    folders = [path.resolve() for path in runs]
    if twice := [str(path) for path, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1]:
        raise NdkdError(f"{shortened(twice)} are one run folder; name each run once")
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    given = zip(runs, folders, cycle(COLOURS), strict=False)
    shown = [ShownRun(path, str(folder.relative_to(common)), colour) for path, folder, colour in given]
    for run in shown[1:]:
        check_one_task(run, shown[0])
        run.compare(shown[0])
    out = (out or (folders[0] if len(runs) == 1 else common) / "report").resolve()
    check_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        new = Path(folder) / "new"
        new.mkdir()
        with matplotlib.style.context(Path(__file__).parents[1] / "templates" / "report.mplstyle"):
            for name, figure in figures(shown):
                write_atomically(new / f"{name}.png", partial(figure.savefig, format="png"), out)
        for k, run in enumerate(shown):
            if run.picture:
                picture = run.picture.read_bytes()
                write_atomically(new / f"detections-{k}.png", methodcaller("write", picture), out)
        pictures = {file.stem: base64.b64encode(file.read_bytes()).decode() for file in new.iterdir()}
        templates = jinja2.Environment(
            loader=jinja2.PackageLoader("ndkd"), extensions=["jinja2.ext.do"], autoescape=True
        )
        page = templates.get_template("report.html").render(mark=MARK, runs=shown, baseline=shown[0], pictures=pictures)
        write_atomically(new / "index.html", methodcaller("write", page.encode()), out)
        if out.exists():
            out.rename(Path(folder) / "old")
        new.rename(out)
        sync_folder(out.parent)
    print(f"report: {out / 'index.html'}")


def check_one_task(run: "ShownRun", baseline: "ShownRun") -> None:
    """Raise ``NdkdError`` if two runs were measured in ways that cannot be compared."""
    names = {"by the metric": "headline", "on the data": "data", "on the classes": "class_names"}
    for what, name in names.items():
        found, wanted = getattr(run, name), getattr(baseline, name)
        if found and wanted and found != wanted:
            found, wanted = (shortened(each) if isinstance(each, list) else each for each in (found, wanted))
            raise NdkdError(
                f"{run.name} was measured {what} {found}, {baseline.name} {what} {wanted}: report them apart"
            )


def check_place(out: Path, mark: str = MARK, endings: tuple[str, ...] = (".png",)) -> None:
    """Raise ``NdkdError`` if the folder cannot be made, or holds something that is no page of ours.

    Args:
        out: the folder.
        mark: in the page, by which it is told from others.
        endings: of the files beside it.
    """
    check_folder(out.parent, "--out DIR")
    page, files = out / "index.html", list(out.iterdir()) if out.is_dir() else [out] if out.exists() else []
    is_ours = page in files and mark in page.read_text(errors="replace")
    if other := [file.name for file in files if not (is_ours and (file == page or file.suffix in endings))]:
        what = "report" if mark == MARK else "diagnosis"
        raise NdkdError(f"{out} holds what is no {what}: {shortened(other)}; choose another folder with --out DIR")


class ShownRun:
    """What the page shows of one run.

    Args:
        path: its folder.
        name: what it is called.
        colour: of its lines.

    Raises:
        NdkdError: no run folder, no finished epoch, or files that cannot be read.
    """

    def __init__(self, path: Path, name: str, colour: str):
        run = Run.existing(path)
        self.name, self.colour, self.picture = name, colour, run.last_picture()
        self.path = path
        self.status, self.config = run.status(), run.read_config()
        self.metrics = pd.DataFrame(run.metrics()).replace("", np.nan).astype(float)
        self.features = {epoch: run.read_epoch("features", epoch) for epoch in run.epochs("features")}
        epochs = run.epochs("predictions")
        self.predictions = pd.DataFrame(run.read_epoch("predictions", epochs[-1]) if epochs else {})
        self.state, self.headline = self.status.get("state", "unknown"), self.status.get("headline", "acc1")
        if self.metrics.empty:
            why = self.status.get("error") or f"its state is {self.state}"
            raise NdkdError(f"run {path} has no finished epoch to show ({why}); train it first")
        self.data = str(entry(self.config, "data.class_path") or "").rpartition(".")[2]
        self.metrics = self.metrics.set_index("epoch").join(quantiles_over_epochs(self.features))
        checkpoint = read_checkpoint(run.checkpoint("last")) if run.is_used else {}
        self.class_names = Known.of(checkpoint).class_names
        results = {"test": self.status.get("results"), "val": run.validation_results(f"val/{self.headline}")}
        self.results = {images: epochs for images, epochs in results.items() if epochs}
        self.teacher = (self.status.get("teacher") or {}).get(f"val/{self.headline}")
        self.images = len(self.predictions)
        self.is_comparable = False  # image by image
        if self.images:
            self.predictions["right"] = self.predictions["target"] == self.predictions["prediction"]
            self.per_class = 100 * self.predictions.groupby("target")["right"].mean()
            self.balanced_accuracy = self.per_class.mean()
            self.calibration_error = calibration_error(self.predictions)

    def compare(self, baseline: "ShownRun") -> None:
        """Find what can be compared with another run, and on which images both have a result."""
        have_both = [images for images in self.results if images in baseline.results]
        is_fair = self.state == baseline.state == "finished" and self.headline == baseline.headline
        self.common = have_both[0] if have_both and is_fair else None
        self.verdict = verdict_of(self.path, baseline.path)
        if self.images and baseline.images:
            self.is_comparable = np.array_equal(self.predictions["target"], baseline.predictions["target"])
        if self.is_comparable:
            self.class_change = self.per_class - baseline.per_class
            self.confusions = confusion_changes(baseline.predictions, self.predictions)

    def norm_and_angle(self) -> dict[str, float]:
        """The means after the last epoch and the accuracy, if all three are known."""
        at_the_end = self.metrics.iloc[-1]
        found = {name: at_the_end.get(column, np.nan) for name, column in MEASURED.items()}
        if not self.results or not np.isfinite(list(found.values())).all():
            return {}
        return {"config": self.name, **found, "last": self.accuracy(next(iter(self.results)), "last")}

    def accuracy(self, images: str, epoch: str) -> float:
        """The headline metric in percent on the ``test`` or ``val`` images, of the ``last`` or ``best`` epoch."""
        return 100 * self.results[images][epoch][f"{images}/{self.headline}"]

    def class_name(self, number: int) -> str:
        names = self.class_names or []
        return str(names[number] if number < len(names) else number)


def calibration_error(predictions: pd.DataFrame) -> float:
    """ECE in percent: the distance of confidence from accuracy, in 15 bins of confidence."""
    confidence, right = (torch.tensor(predictions[name].to_numpy()) for name in ("confidence", "right"))
    return 100 * binary_calibration_error(confidence.float(), right.int(), n_bins=15).item()


def confusion_changes(before: pd.DataFrame, after: pd.DataFrame, most: int = 10) -> pd.DataFrame:
    """The mistakes, target and prediction, whose number changed most."""
    wrong = [images[~images["right"]].value_counts(["target", "prediction"]) for images in (before, after)]
    pairs = pd.concat(wrong, axis=1, keys=["before", "after"]).fillna(0).astype(int).sort_index()
    pairs["change"] = pairs["after"] - pairs["before"]
    changed = pairs[pairs["change"] != 0].sort_values("change", key=abs, ascending=False, kind="stable")
    return changed.head(most).reset_index()


def quantiles_over_epochs(features: dict[int, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Per epoch the median of each stored histogram, as ``angle``, and its ``angle_q05`` and ``angle_q95``."""
    table = pd.DataFrame(index=list(features))
    for epoch, arrays in features.items():
        for kind in arrays.keys() - {"norm_edges", "angle_edges"}:
            edges = arrays["angle_edges" if kind == "angle" else "norm_edges"]
            table.loc[epoch, [f"{kind}_q05", kind, f"{kind}_q95"]] = quantiles(arrays[kind], edges)
    return table


def quantiles(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The 5, 50 and 95 % quantiles of a histogram, its values spread evenly over each bin.

    >>> quantiles(np.array([0, 10, 0]), np.array([0, 1, 2, 3])).round(2).tolist()
    [1.05, 1.5, 1.95]
    """
    return np.interp([0.05, 0.5, 0.95], np.append(0, counts.cumsum()) / counts.sum(), edges)
