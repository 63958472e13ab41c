"""The report's pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve

MOST = 12  # classes that gained, and as many that lost
NORMS = {"student_norm": "student, raw", "projected_norm": "student, projected", "teacher_norm": "teacher"}


def curves(runs: Sequence[Any]) -> Figure:
    """Validation metric, training loss and validation cross-entropy over the epochs."""
    wanted = {f"val/{runs[0].headline}": 100, "train/loss": 1, "val/cross_entropy": 1}
    shown = {name: scale for name, scale in wanted.items() if any(name in run.metrics for run in runs)}
    figure, panels = grid(len(shown), 3, height=3.4)
    for axes, (name, scale) in zip(panels, shown.items(), strict=True):
        for number, run in enumerate(runs):
            if name in run.metrics:
                values = run.metrics[["epoch", name]].dropna()
                marker = "o" if len(values) == 1 else None
                axes.plot(values["epoch"], scale * values[name], color=f"C{number}", marker=marker, label=run.name)
        axes.set(xlabel="epoch", ylabel=name + (" (%)" if scale == 100 else ""))
        axes.set_yscale("log" if name == "val/cross_entropy" else "linear")  # it may be hundreds in the first epochs
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def classes(baseline: Any, others: Sequence[Any]) -> Figure | None:
    """Accuracy of each class minus the baseline's, of the classes that changed most; of one run its own accuracies."""
    if not baseline.predictions:
        return None
    own = per_class(baseline)
    columns = {run.name: per_class(run) - own for run in others} or {baseline.name: own}
    shown = min(2 * MOST, len(own))
    figure, panels = grid(len(columns), 3, height=1.2 + 0.22 * shown)
    for axes, (name, values) in zip(panels, columns.items(), strict=True):
        order = np.argsort(values)  # a class without images is NaN, and last
        order = order[: np.isfinite(values).sum()]
        order = np.concatenate([order[:MOST], order[MOST:][-MOST:]])
        axes.barh(range(len(order)), values[order], color=np.where(values[order] < 0, "C3", "C0"))
        axes.set(yticks=range(len(order)), yticklabels=[baseline.class_names[k] for k in order])
        axes.set(title=name, xlabel=f"points more than {baseline.name}" if others else "accuracy (%)")
        axes.axvline(0, color="0.4", linewidth=1)
    return figure


def per_class(run: Any) -> np.ndarray:
    """Accuracy in percent of each class (C,), NaN of a class without images."""
    counts = run.counts
    total = counts.sum(axis=1)
    return np.where(total, 100 * counts.diagonal() / np.maximum(total, 1), np.nan)


def calibration(runs: Sequence[Any]) -> Figure | None:
    """Share of right predictions by confidence."""
    if not any(run.predictions for run in runs):
        return None
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.6", linestyle="--", label="perfect")
    for number, run in enumerate(runs):
        if run.predictions:
            confidence = run.predictions["confidence"].astype(float).clip(0, 1)
            right, said = calibration_curve(run.correct.astype(int), confidence, n_bins=10, pos_label=1)
            axes.plot(100 * said, 100 * right, "o-", color=f"C{number}", label=run.name)
    axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 101), ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def norms(runs: Sequence[Any]) -> Figure | None:
    """A row per run: feature norms after the last epoch, and their median and 5 to 95 % over the epochs."""
    runs = [run for run in runs if run.features]
    if not runs:
        return None
    figure, panels = grid(2 * len(runs), 2, height=2.6, share="col")
    for left, right, run in zip(panels[::2], panels[1::2], runs, strict=True):
        for number, (kind, label) in enumerate(NORMS.items()):
            distribution(left, right, run, kind, "norm_edges", f"C{number}", label)
        left.set(title=f"{run.name}, last epoch", xscale="log", xlabel="norm", yticks=[], ylabel="share of images")
        right.set(title=f"{run.name}, median and 5 to 95 %", yscale="log", xlabel="epoch", ylabel="norm")
    drawn = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=3)
    return figure


def angles(runs: Sequence[Any]) -> Figure | None:
    """Angles to the teacher's class means after the last epoch, and their median and 5 to 95 % over the epochs."""
    figure, (left, right) = grid(2, 2, height=3.2)
    for number, run in enumerate(runs):
        distribution(left, right, run, "angle", "angle_edges", f"C{number}", run.name)
    left.set(title="last epoch", xlabel="angle to the class mean (degrees)", yticks=[], ylabel="share of images")
    right.set(title="median and 5 to 95 %", xlabel="epoch", ylabel="angle (degrees)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure if left.patches else None


def grid(number: int, columns: int, height: float, share: str | bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, each ``height`` inches high."""
    columns = min(number, columns)
    rows = -(-number // columns)
    figure = Figure(figsize=(11, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)
    for axes in panels[number:]:
        axes.remove()
    return figure, panels[:number]


def distribution(left: Axes, right: Axes, run: Any, kind: str, edges: str, colour: str, label: str) -> None:
    """Draw one histogram of the last epoch at the left, and its quantiles over the epochs at the right."""
    kept = {epoch: found for epoch, found in run.features.items() if kind in found and found[kind].sum()}
    if not kept:
        return
    counts, borders = kept[max(kept)][kind], kept[max(kept)][edges]
    first, *_, end = np.flatnonzero(counts) if np.count_nonzero(counts) > 1 else [counts.argmax()] * 2
    part = slice(first, end + 1)  # the empty bins at both ends would make the axis long
    left.stairs(counts[part] / counts.sum(), borders[first : end + 2], color=colour, label=label, linewidth=1.5)
    low, middle, high = np.transpose([quantiles(found[kind], found[edges]) for found in kept.values()])
    right.plot(list(kept), middle, color=colour, marker="o" if len(kept) == 1 else None)
    right.fill_between(list(kept), low, high, color=colour, alpha=0.15)


def quantiles(counts: np.ndarray, edges: np.ndarray, at: Sequence[float] = (0.05, 0.5, 0.95)) -> np.ndarray:
    """Quantiles of binned values, each bin's spread evenly over it.

    >>> quantiles(np.array([0, 2, 2]), np.array([0.0, 1.0, 2.0, 3.0]), at=[0.5])
    array([2.])
    """
    return np.interp(at, np.concatenate([[0], counts.cumsum()]) / counts.sum(), edges)
