"""The results of many runs as CSV and Markdown, and the statistics of both."""

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from ndkd.commands.markdown import code, inline
from ndkd.files import write_atomically

COLUMNS = ["config", "control", "term", "weight", "seed", "state", "metric", "last", "last_epoch", "best", "best_epoch"]
COLUMNS += ["angle", "relative_norm", "seconds", "parameters", "protocol", "precision", "date", "commit", "machine"]
COLUMNS += ["torch", "error", "folder"]

LEGEND = """\
In percent; mean ± standard deviation over the seeds, in brackets the 95 % interval of the mean (Student's t).
Differences are of the last epoch and paired by seed; the control is the same configuration with one loss term at
weight 0. “Best” is the epoch that was best on the validation images."""


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per run, as in results.csv; of each what ``ndkd.commands.compare_jobs.Fit.result`` gives."""
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def write_tables(rows: list[dict[str, Any]], out: Path, command: str, notes: str = "") -> str:
    """Write ``results.csv`` (a row per run) and ``results.md`` (a row per configuration).

    Args:
        rows: of each run what ``ndkd.commands.compare_jobs.Fit.result`` gives.
        out: the folder.
        command: what made them.
        notes: what else is to be said in results.md.

    Returns:
        The table of ``results.md``.
    """
    runs = as_table(rows)
    table = markdown(runs)
    write_atomically(out / "results.csv", lambda file: runs.to_csv(file, index=False))
    made = f"{code(command)}, {date.today()}, {platform.platform()}, {os.cpu_count()} cores."
    text = "\n\n".join(part for part in (table, LEGEND, notes, made) if part) + "\n"
    write_atomically(out / "results.md", lambda file: file.write(text.encode()))
    return table


def differences_by_seed(runs: pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """Per configuration the last epoch's value minus ``first``'s and minus ``control``'s, where both have it."""
    last = runs.pivot(index="seed", columns="config", values="last").astype(float)
    controls = runs.drop_duplicates("config").set_index("config")["control"]
    swept = set(runs["config"][runs["weight"].notna()])  # there the weight of 0 is one of the rows
    first = next(name for name in controls.index if name not in set(controls) or name in swept)
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
    minus = f"minus {inline(first)}", "minus control"
    lines = [["", "seeds", f"{metric}, last epoch", "best epoch", *minus, "minutes", "parameters"]]
    for name, of_config in runs.groupby("config", sort=False):
        done = of_config[of_config["state"] == "finished"]
        values = [done["last"], done["best"], *(gains[kind].get(name) for kind in ("first", "control"))]
        minutes, parameters = pd.to_numeric(done["seconds"]).mean() / 60, pd.to_numeric(done["parameters"]).max()
        cost = [f"{minutes:.1f}" if pd.notna(minutes) else "", f"{parameters:,.0f}" if pd.notna(parameters) else ""]
        shown = [_shown(value, k > 1) for k, value in enumerate(values)]
        lines.append([inline(name), " ".join(map(str, done["seed"])), *shown, *cost])
    for run in runs[~runs["state"].isin(["finished", "not run"])].itertuples():
        state = f"{run.state}: {run.error}" if isinstance(run.error, str) else run.state  # none is NaN in a CSV file
        lines.append([inline(f"{run.config}, seed {run.seed}"), inline(state)])
    lines[1:1] = [["---"] * len(lines[0])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(values: pd.Series | None, signed: bool) -> str:
    if values is None or not values.count():
        return ""
    mean, half, sign = values.mean(), half_interval(values), "+" if signed else ""
    if values.count() == 1:
        return f"{mean:{sign}.2f}"
    return f"{mean:{sign}.2f} ± {values.std():.2f} [{mean - half:{sign}.2f}, {mean + half:{sign}.2f}]"
