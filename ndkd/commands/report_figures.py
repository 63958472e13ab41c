"""The figures of ``ndkd report``, each as wide as a phone's screen can show."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter
from sklearn.calibration import calibration_curve

# Okabe and Ito's colours, which stay apart for the colour-blind too, without the yellow that white swallows
COLOURS = ["#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c2d8c"]
GAIN, LOSS = COLOURS[1], COLOURS[2]
REFERENCE: dict[str, Any] = {"color": "#777777", "linestyle": "--", "linewidth": 1.6}
MOST = 12  # classes with the lowest, and with the highest values

# figure: column of the metrics, label, scale
CURVES = {
    "accuracy": ("val/acc1", "validation accuracy", "linear"),
    "ap": ("val/ap", "validation AP", "linear"),
    "loss": ("train/loss", "training loss", "log"),
    "cross_entropy": ("val/cross_entropy", "validation cross-entropy", "log"),
    "raw_over_epochs": ("student_norm", "raw norm (dashed: the teacher’s)", "log"),
    "projected_over_epochs": ("projected_norm", "projected norm (dashed: the teacher’s)", "log"),
    "angles_over_epochs": ("angle", "angle to the class mean (°)", "linear"),
}
NORMS = ["student_norm", "projected_norm", "teacher_norm"]
MARKERS = "osD^vPX*"


def figures(runs: list[Any]) -> Iterator[tuple[str, Figure]]:
    """Names and figures of everything that the runs have data for.

    Args:
        runs: of ``ndkd.commands.report.ShownRun``; the first is the baseline.
    """
    for name, (column, label, scale) in CURVES.items():
        if having := [run for run in runs if column in run.metrics]:
            yield name, curves(having, column, label, scale)
    label = "accuracy (%)" if len(runs) == 1 else "change of accuracy (points)"
    for k, run in enumerate(runs):
        if run.is_comparable or (len(runs) == 1 and run.images):
            yield f"classes-{k}", classes(run, run.class_change if run.is_comparable else run.per_class, label)
    if having := [run for run in runs if run.images]:
        yield "calibration", calibration(having)
    if having := [run for run in runs if "student_norm" in run.metrics]:
        yield "norms", histograms(having, NORMS, "norm: raw (filled), projected (line), the teacher’s (dashed)", "log")
    if having := [run for run in runs if "angle" in run.metrics]:
        yield "angles", histograms(having, ["angle"], "angle to the teacher’s class mean (°)", "linear")
    if len(having := [run for run in runs if run.norm_and_angle()]) > 1:
        points, label = pd.DataFrame([run.norm_and_angle() for run in having]), "accuracy after the last epoch (%)"
        yield "features", norm_and_angle(points, label, [run.colour for run in having])


def norm_and_angle(points: pd.DataFrame, label: str, colours: list[str] = COLOURS) -> Figure:
    """Accuracy against the two things that the ND loss changes; a dot per run, a colour and a marker per configuration.

    Args:
        points: ``config``, ``angle`` (°), ``relative_norm`` and ``last``, the accuracy (%), a row per run.
        label: of the accuracy.
        colours: of the configurations, in their order.
    """
    configs = points.groupby("config", sort=False)
    figure = Figure(figsize=(9, 4.2 + 0.22 * (len(configs) // 4)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for k, (name, rows) in enumerate(configs):
        # after so many configurations a colour comes again, with another marker
        style = {"color": colours[k % len(colours)], "marker": MARKERS[(k + k // len(colours)) % len(MARKERS)]}
        for axes, column in zip(panels, ("angle", "relative_norm"), strict=True):
            shown = shorten(name) if axes is panels[0] else None
            axes.scatter(rows[column], rows["last"], s=34, alpha=0.85, linewidth=0, label=shown, **style)
    panels[0].set(xlabel="mean angle to the teacher’s class mean (°)", ylabel=label)
    panels[1].set(xlabel="mean norm / the teacher’s mean norm")
    if points["relative_norm"].max() > 5 * points["relative_norm"].min() > 0:
        panels[1].set(xscale="log")
        panels[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[1].xaxis.set_major_formatter("{x:g}")
        panels[1].xaxis.set_minor_formatter("")
    panels[1].axvline(1, zorder=0, **REFERENCE)
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def shorten(name: str) -> str:
    """The end of a long name, with nothing in it that matplotlib takes for signs of its own."""
    return " " + name[-30:].replace("$", r"\$")


def curves(runs: list[Any], column: str, label: str, scale: str) -> Figure:
    """A line per run over the epochs, with a band from the 5 to the 95 % quantile where they are known."""
    figure = Figure(figsize=(6, 4.2))
    axes = figure.add_subplot(xlabel="epoch", ylabel=label, yscale=scale)
    for run in runs:
        values = run.metrics[column].dropna()
        axes.plot(values, label=shorten(run.name), color=run.colour, marker=".", markevery=[-1])
        if column in [*NORMS, "angle"]:
            low, high = (run.metrics.loc[values.index, f"{column}_{end}"] for end in ("q05", "q95"))
            axes.fill_between(values.index, low, high, color=run.colour, alpha=min(0.15, 0.5 / len(runs)), linewidth=0)
        if column in NORMS and "teacher_norm" in run.metrics:
            axes.plot(run.metrics["teacher_norm"].dropna(), **REFERENCE)
    axes.locator_params(axis="x", integer=True)
    if column in ("val/acc1", "val/ap"):
        axes.yaxis.set_major_formatter(PercentFormatter(1))  # as many decimals as the range wants
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def classes(run: Any, values: pd.Series, label: str) -> Figure:
    """A bar per class; of many classes those with the lowest and those with the highest values."""
    values = values.sort_values(kind="stable")
    if len(values) > 2 * MOST:
        values = pd.concat([values[:MOST], values[-MOST:]])
    figure = Figure(figsize=(6, 1 + 0.27 * len(values)))
    axes = figure.add_subplot(xlabel=label)
    bars = axes.barh(range(len(values)), values, color=np.where(values < 0, LOSS, GAIN))
    axes.bar_label(bars, fmt="{:.1f}", padding=3, fontsize=9)
    axes.set_yticks(range(len(values)), [shorten(run.class_name(number)) for number in values.index])
    axes.margins(x=0.12, y=0.01)
    return figure


def calibration(runs: list[Any]) -> Figure:
    """How often predictions of a confidence are right; every dot is the same number of images."""
    figure = Figure(figsize=(6, 4.6))
    axes = figure.add_subplot(xlabel="confidence", ylabel="share that is right")
    axes.plot([0, 1], [0, 1], **REFERENCE)
    for run in runs:
        images = run.predictions.astype({"confidence": float})
        right, confidence = calibration_curve(images["right"], images["confidence"], n_bins=10, strategy="quantile")
        axes.plot(confidence, right, marker="o", markersize=4, label=shorten(run.name), color=run.colour)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def histograms(runs: list[Any], kinds: list[str], label: str, scale: str) -> Figure:
    """A row per run, at the last epoch that has them; the first of the kinds is filled."""
    figure = Figure(figsize=(6, 0.8 + 1.2 * len(runs)))
    rows = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
    for run, axes in zip(runs, rows, strict=True):
        last = next(arrays for arrays in reversed(run.features.values()) if kinds[0] in arrays)
        for kind in kinds:
            if kind in last:
                edges = last["angle_edges" if kind == "angle" else "norm_edges"]
                filled = np.flatnonzero(last[kind])
                starts = np.arange(filled[0] // 2 * 2, filled[-1] + 1, 2)  # the stored bins are narrow
                counts = np.add.reduceat(last[kind][: filled[-1] + 1], starts)
                style = REFERENCE if kind == "teacher_norm" else {"color": run.colour, "linewidth": 1.6}
                style = {**style, "fill": True, "alpha": 0.5} if kind == kinds[0] else style
                axes.stairs(counts, np.append(edges[starts], edges[filled[-1] + 1]), **style)
        axes.set_title(shorten(run.name), loc="left", fontsize=10)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
    rows[-1].set(xscale=scale, xlabel=label)
    return figure
