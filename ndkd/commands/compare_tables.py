"""The results of many runs as CSV and Markdown, and the statistics of both."""

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from ndkd.commands.compare_differences import differences_by_seed, half_interval
from ndkd.commands.compare_published import figures_of, in_a_cell
from ndkd.commands.compare_verdicts import Verdict, explanation, rule_of, verdicts
from ndkd.commands.markdown import code, inline
from ndkd.files import write_atomically

COLUMNS = ["config", "control", "term", "weight", "seed", "state", "metric", "last", "last_epoch", "best", "best_epoch"]
COLUMNS += [
    "teacher",
    "angle",
    "relative_norm",
    "seconds",
    "parameters",
    "protocol",
    "precision",
    "date",
    "commit",
    "machine",
]
COLUMNS += ["torch", "error", "folder", "margin", "error_rate", "verdict", "control_verdict", "published"]

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
    runs = _in_words(as_table(rows))
    table = markdown(runs)
    write_atomically(out / "results.csv", lambda file: runs.to_csv(file, index=False))
    machines = ", ".join(sorted(set(runs["machine"].dropna()))) or platform.platform()
    made = f"{code(command)}, {date.today()}, {machines}, {os.cpu_count()} cores."
    text = "\n\n".join(part for part in (table, LEGEND, notes, made) if part) + "\n"
    write_atomically(out / "results.md", lambda file: file.write(text.encode()))
    return table


def _in_words(runs: pd.DataFrame) -> pd.DataFrame:
    """The same runs, each with the verdicts on its configuration."""
    if (rule := rule_of(runs)) is None:
        return runs
    found = {kind: runs["config"].map(_shown_verdicts(of_kind)) for kind, of_kind in verdicts(runs, rule).items()}
    return runs.assign(verdict=found["first"], control_verdict=found["control"])


def _shown_verdicts(found: dict[str, Verdict]) -> dict[str, str]:
    return {name: str(verdict) for name, verdict in found.items()}


def markdown(runs: pd.DataFrame) -> str:
    """A row per configuration, and one for each run that ended without a result.

    Below it the teacher's accuracy, which is a column where it is not the same for all that have one. Of a study that
    went on until it was decided there are columns for the verdicts, and a line that explains them; where configurations
    name published figures, there is one for these.
    """
    gains = differences_by_seed(runs)
    rule = rule_of(runs)
    decided = verdicts(runs, rule) if rule else None
    metric = next(iter(runs["metric"].dropna()), "result")
    first = next((name for name in runs["config"] if name not in gains["first"]), "")
    minus = f"minus {inline(first)}", "minus control"
    teachers = [f"{value:.2f}" for value in runs["teacher"].dropna()]
    taught = ["teacher, on validation"] if len(set(teachers)) > 1 else []
    judged = [words.replace("minus", "against", 1) for words in minus] if decided else []
    published = figures_of(runs)
    head = ["", "seeds", f"{metric}, last epoch", "best epoch", *minus, *judged, *taught, "minutes", "parameters"]
    rows = [
        _row(name, of_config, gains, decided, bool(taught)) for name, of_config in runs.groupby("config", sort=False)
    ]
    if published:  # beside ours, and no part of any mean
        head.insert(4, "published")
        for name, row in zip(runs["config"].unique(), rows, strict=True):
            row.insert(4, inline(in_a_cell(published.get(name, []))))
    rows += _without_result(runs)
    table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
    below = [f"teacher: {teachers[0]} on validation"] if teachers and not taught else []
    below += [explanation(runs, rule)] if rule else []
    return "\n\n".join([table, *below])


def _row(
    name: str,
    runs: pd.DataFrame,
    gains: dict[str, dict[str, pd.Series]],
    decided: dict[str, dict[str, Verdict]] | None,
    has_teacher: bool,
) -> list[str]:
    """One configuration: its seeds, its results, what it gains over others, and what it costs."""
    done = runs[runs["state"] == "finished"]
    results = [_shown(done[column], signed=False) for column in ("last", "best")]
    differences = [_shown(gains[kind].get(name), signed=True) for kind in ("first", "control")]
    judged = [str(decided[kind].get(name, "")) for kind in ("first", "control")] if decided else []
    teacher = [_shown(done["teacher"], signed=False)] if has_teacher else []
    minutes = pd.to_numeric(done["seconds"]).mean() / 60
    parameters = pd.to_numeric(done["parameters"]).max()
    cost = [f"{minutes:.1f}" if pd.notna(minutes) else "", f"{parameters:,.0f}" if pd.notna(parameters) else ""]
    return [inline(name), " ".join(map(str, done["seed"])), *results, *differences, *judged, *teacher, *cost]


def _without_result(runs: pd.DataFrame) -> list[list[str]]:
    """A row for each run that was begun and is not finished: its state, and why."""
    rows = []
    for run in runs[~runs["state"].isin(["finished", "not run"])].itertuples():
        state = f"{run.state}: {run.error}" if isinstance(run.error, str) else run.state  # none is NaN in a CSV file
        rows.append([inline(f"{run.config}, seed {run.seed}"), inline(state)])
    return rows


def _shown(values: pd.Series | None, signed: bool) -> str:
    if values is None or not values.count():
        return ""
    mean, half, sign = values.mean(), half_interval(values), "+" if signed else ""
    if values.count() == 1:
        return f"{mean:{sign}.2f}"
    return f"{mean:{sign}.2f} ± {values.std():.2f} [{mean - half:{sign}.2f}, {mean + half:{sign}.2f}]"
