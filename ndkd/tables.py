"""The results of many runs as CSV, Markdown and a picture."""

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from ndkd.runs import write_atomically

COLUMNS = ["config", "control", "seed", "state", "metric", "last", "last_epoch", "best", "best_epoch"]
COLUMNS += ["seconds", "parameters", "error", "folder"]

LEGEND = """\
In percent; mean ± standard deviation over the seeds, in brackets the 95 % interval of the mean (Student's t).
Differences are of the last epoch and paired by seed; the control is the same configuration with one loss term at
weight 0. “Best” is the epoch that was best on the validation images."""


def write_tables(rows: list[dict[str, Any]], out: Path, command: str) -> str:
    """Write ``results.csv`` (a row per run), ``results.md`` (a row per configuration) and ``results.png``.

    Args:
        rows: of each run what :meth:`ndkd.compare.Fit.result` gives.
        out: the folder.
        command: what made them.

    Returns:
        The table of ``results.md``.
    """
    runs = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table, figure = markdown(runs), picture(runs)
    write_atomically(out / "results.csv", lambda file: runs.to_csv(file, index=False))
    text = f"{table}\n\n{LEGEND}\n\n`{command}`, {date.today()}, {platform.platform()}, {os.cpu_count()} cores.\n"
    write_atomically(out / "results.md", lambda file: file.write(text.encode()))
    write_atomically(out / "results.png", lambda file: figure.savefig(file, dpi=150, format="png"))
    return table


def differences_by_seed(runs: pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """Per configuration the last epoch's value minus ``first``'s and minus ``control``'s, where both have it."""
    last = runs.pivot(index="seed", columns="config", values="last").astype(float)
    controls = runs.drop_duplicates("config").set_index("config")["control"]
    first = next(name for name in controls.index if name not in set(controls))
    held = {"first": dict.fromkeys(controls.index.drop(first), first), "control": controls.dropna().to_dict()}
    return {kind: {name: last[name] - last[other] for name, other in pairs.items()} for kind, pairs in held.items()}


def half_interval(values: pd.Series) -> float:
    """Half the width of the mean's 95 % interval, by Student's t; NaN for a single value.

    >>> round(float(half_interval(pd.Series([1.0, 2.0, 3.0]))), 3)
    2.484
    """
    return stats.t.ppf(0.975, values.count() - 1) * values.sem()


def markdown(runs: pd.DataFrame) -> str:
    """A row per configuration, and one for each run that ended without a result."""
    gains = differences_by_seed(runs)
    metric = next(iter(runs["metric"].dropna()), "result")
    first = next((name for name in runs["config"] if name not in gains["first"]), "")
    lines = [
        ["", "seeds", f"{metric}, last epoch", "best epoch", f"minus {first}", "minus control", "minutes", "parameters"]
    ]
    for name, of_config in runs.groupby("config", sort=False):
        done = of_config[of_config["state"] == "finished"]
        values = [done["last"], done["best"], *(gains[kind].get(name) for kind in ("first", "control"))]
        minutes, parameters = pd.to_numeric(done["seconds"]).mean() / 60, pd.to_numeric(done["parameters"]).max()
        cost = [f"{minutes:.1f}" if pd.notna(minutes) else "", f"{parameters:,.0f}" if pd.notna(parameters) else ""]
        lines.append([name, " ".join(map(str, done["seed"])), *(_shown(v, k > 1) for k, v in enumerate(values)), *cost])
    for run in runs[~runs["state"].isin(["finished", "not run"])].itertuples():
        lines.append([f"{run.config}, seed {run.seed}", f"{run.state}: {run.error}" if run.error else run.state])
    lines[1:1] = [["---"] * len(lines[0])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(values: pd.Series | None, signed: bool) -> str:
    if values is None or not values.count():
        return ""
    mean, half, sign = values.mean(), half_interval(values), "+" if signed else ""
    if values.count() == 1:
        return f"{mean:{sign}.2f}"
    return f"{mean:{sign}.2f} ± {values.std():.2f} [{mean - half:{sign}.2f}, {mean + half:{sign}.2f}]"


def picture(runs: pd.DataFrame) -> Figure:
    """Each seed a dot, the mean with its 95 % interval; at the right the differences from the first configuration."""
    names, gains = list(runs["config"].unique()), differences_by_seed(runs)["first"]
    metric = next(iter(runs["metric"].dropna()), "result")
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    last = runs.astype({"last": float}).groupby("config")["last"]
    for axes, values in ((left, {name: last.get_group(name) for name in names}), (right, gains)):
        for height, name in enumerate(names):
            if name in values and values[name].count():
                found = values[name].dropna()
                axes.plot(found, [height] * len(found), "o", color="0.4", markersize=4, zorder=3)
                axes.errorbar(found.mean(), height, xerr=half_interval(found), fmt="D", color="C0", capsize=4)
        axes.grid(axis="x", alpha=0.3)
    left.set(yticks=range(len(names)), yticklabels=names, xlabel=f"{metric} after the last epoch (%)")
    left.invert_yaxis()
    right.axvline(0, color="0.4", linewidth=1)
    right.set(xlabel="difference from " + next((name for name in names if name not in gains), "") + ", paired by seed")
    return figure
