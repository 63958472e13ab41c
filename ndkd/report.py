"""``ndkd report``: did it help? One page about one run or several, from their folders alone."""

import base64
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from jinja2 import Environment, PackageLoader
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import binary_calibration_error

from ndkd import figures
from ndkd.errors import NdkdError
from ndkd.models.checkpoint import read_checkpoint
from ndkd.runs import Run, check_folder

BINS = 15  # of the calibration error
PAIRS = 10  # of confused classes
MARK = "made by ndkd report"


@dataclass
class Seen:
    """What the page shows of a run; ``predictions`` is empty where none were kept, as for detectors."""

    name: str
    run: Run
    status: dict[str, Any]
    metrics: pd.DataFrame
    predictions: dict[str, np.ndarray]
    features: dict[int, dict[str, np.ndarray]]
    class_names: list[str]

    @property
    def correct(self) -> np.ndarray:
        """Whether each evaluation image was predicted right (N,)."""
        return self.predictions["prediction"] == self.predictions["target"]

    @property
    def counts(self) -> np.ndarray:
        """Images by their class and the predicted one (C, C)."""
        labels = range(len(self.class_names))
        return confusion_matrix(self.predictions["target"], self.predictions["prediction"], labels=labels)

    def calibration_error(self) -> float:
        """Expected calibration error in percent: the mean gap between confidence and accuracy."""
        confidence = torch.from_numpy(self.predictions["confidence"].astype(np.float32)).clamp(0, 1)
        return 100 * binary_calibration_error(confidence, torch.from_numpy(self.correct).int(), BINS).item()

    @property
    def headline(self) -> str:
        """The metric by which the best epoch was chosen."""
        return self.status.get("headline", "acc1")

    @property
    def metric(self) -> str:
        """What the results are: of test images where there were any, else of validation images."""
        return f"{'test' if self.status.get('results') else 'val'}/{self.headline}"

    @property
    def results(self) -> dict[str, tuple[float, int]]:
        """Metric × 100 and epoch of ``last`` and ``best``."""
        values = self.status.get("results") or self.run.validation_results(self.metric)
        return {name: (100 * found[self.metric], found["epoch"]) for name, found in values.items()}


def report(runs: list[Path], out: Path | None = None) -> None:
    """Write ``index.html``, which needs nothing beside it, and its pictures.

    Args:
        runs: run folders; the first is the baseline.
        out: the page's folder; by default ``report`` in the run or in the runs' common folder.

    Raises:
        NdkdError: no run folder, one named twice, one without a finished epoch, a folder that holds something else.
    """
    folders = [path.resolve() for path in runs]
    if twice := [str(path) for path, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1]:
        raise NdkdError(f"run {twice[0]} is named twice: name each once")
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    seen = [
        read(Run.existing(path), str(folder.relative_to(common))) for path, folder in zip(runs, folders, strict=True)
    ]
    out = out or (runs[0] if len(runs) == 1 else common) / "report"
    check_folder(out, "--out DIR")
    page = out / "index.html"
    if out.exists() and any(out.iterdir()) and not (page.is_file() and MARK in page.read_text()):
        raise NdkdError(f"folder {out} holds something else than a report: choose another with --out DIR")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        whole = Path(beside, "whole")  # or nothing
        whole.mkdir()
        alike = [one for one in seen[1:] if same_images(seen[0], one)]
        drawn = {
            "curves": figures.curves(seen),
            "classes": figures.classes(seen[0], alike),
            "calibration": figures.calibration(seen),
            "norms": figures.norms(seen),
            "angles": figures.angles(seen),
        }
        pictures = {name: whole / f"{name}.png" for name, figure in drawn.items() if figure is not None}
        for name, file in pictures.items():
            drawn[name].savefig(file, dpi=120)
        template = Environment(loader=PackageLoader("ndkd"), autoescape=True, trim_blocks=True).get_template(
            "report.html"
        )
        text = template.render(
            mark=MARK,
            metric=f"{'test' if seen[0].status.get('results') else 'val'}/{seen[0].headline}",
            rows=[row(one, seen[0]) for one in seen],
            findings=[finding(seen[0], one) for one in seen[1:]],
            other_images=[one.name for one in seen[1:] if one.predictions and one not in alike],
            confused={one.name: confused(seen[0], one) for one in alike},
            without_angle=[one.name for one in seen if one.features and "angle" not in max(one.features.items())[1]],
            pictures={name: encoded(file) for name, file in pictures.items()},
            detections={
                one.name: encoded(files[-1]) for one in seen if (files := sorted(one.run.path.glob("pictures/*.png")))
            },
        )
        (whole / page.name).write_text(text)
        shutil.rmtree(out, ignore_errors=True)
        whole.rename(out)
    print(f"report: {page}")


def read(run: Run, name: str) -> Seen:
    """What a run's folder holds.

    Raises:
        NdkdError: there is no finished epoch.
    """
    metrics = pd.DataFrame(run.metrics()).apply(pd.to_numeric)
    if metrics.empty:
        raise NdkdError(f"run {run.path} has no finished epoch yet: there is nothing to report")
    epochs = {kind: run.epochs(kind) for kind in ("predictions", "features")}
    predictions = run.read_epoch("predictions", epochs["predictions"][-1]) if epochs["predictions"] else {}
    features = {epoch: run.read_epoch("features", epoch) for epoch in epochs["features"]}
    stored = read_checkpoint(run.checkpoint("last"))["hyper_parameters"]
    number = stored.get("num_classes") or 1 + max((int(of.max()) for of in predictions.values()), default=0)
    return Seen(
        name, run, run.status(), metrics, predictions, features, stored.get("class_names") or [*map(str, range(number))]
    )


def same_images(one: Seen, other: Seen) -> bool:
    """Whether both were evaluated on the same images, as far as their classes tell."""
    there = one.predictions and other.predictions
    return bool(there) and np.array_equal(one.predictions["target"], other.predictions["target"])


def row(one: Seen, baseline: Seen) -> dict[str, Any]:
    """A row of the page's table."""
    status = one.status
    return {
        "name": one.name,
        "state": status.get("state", "unknown"),
        "error": status.get("error"),
        "epochs": len(one.metrics),
        "metric": one.metric,
        **one.results,
        "gain": one.results["last"][0] - baseline.results["last"][0] if comparable(baseline, one) else None,
        "ece": one.calibration_error() if one.predictions else None,
        "parameters": status.get("parameters"),
        "minutes": one.metrics.get("time/seconds", pd.Series([np.nan])).iloc[-1] / 60,
        "seed": yaml.safe_load(one.run.config.read_text()).get("seed_everything"),
        "commit": (status.get("git_commit") or "")[:9],
    }


def comparable(baseline: Seen, one: Seen) -> bool:
    """Whether both have a result of one kind."""
    return one is not baseline and one.metric == baseline.metric and bool(one.results and baseline.results)


def finding(baseline: Seen, one: Seen) -> str:
    """Whether a run is ahead of the baseline, in a sentence."""
    if not comparable(baseline, one):
        return f"{one.name} has no result to hold against {baseline.name}."
    own, other = one.results["last"][0], baseline.results["last"][0]
    ahead = "points ahead of" if own > other else "points behind" if own < other else "points from"
    return f"{one.name} is {abs(own - other):.2f} {ahead} {baseline.name}: {own:.2f} and {other:.2f}."


def confused(baseline: Seen, one: Seen) -> list[tuple[str, str, int, int]]:
    """The pairs (class, predicted class, times in the baseline, times in the run) that changed most."""
    before, now = baseline.counts, one.counts
    change = np.abs(now - before)
    np.fill_diagonal(change, 0)
    most = np.argsort(-change, axis=None, kind="stable")[:PAIRS]
    pairs = [(k, p) for k, p in zip(*np.unravel_index(most, change.shape), strict=True) if change[k, p]]
    return [(one.class_names[k], one.class_names[p], int(before[k, p]), int(now[k, p])) for k, p in pairs]


def encoded(picture: Path) -> str:
    """A PNG as an HTML address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
