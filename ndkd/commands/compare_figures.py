"""The pictures beside a table of many runs."""

from collections.abc import Iterator
from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure

from ndkd.commands.compare_differences import differences_by_seed, half_interval
from ndkd.commands.report_figures import COLOURS, norm_and_angle


def pictures(runs: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Names and figures of everything that there is data for.

    Args:
        runs: of ``ndkd.commands.compare_tables.as_table``.
    """
    yield "results", intervals(runs)
    done = runs[runs["state"] == "finished"].astype({"last": float, "angle": float, "relative_norm": float})
    if (done["weight"].notna()).any():
        yield "sweep", sweep(done)
    if len(measured := done.dropna(subset=["angle", "relative_norm"])):
        yield "features", norm_and_angle(measured, f"{measured['metric'].iloc[0]} after the last epoch (%)")


def intervals(runs: pd.DataFrame) -> Figure:
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


def sweep(done: pd.DataFrame) -> Figure:
    """The results over the weight of a term: a line per configuration with 95 % intervals, each seed a dot.

    The weights are evenly spaced, so that 0 has its place beside the others. A configuration without the term is a
    dashed line at its mean.
    """
    swept = done[done["weight"].notna()]
    suffixes = "-" + swept["term"] + swept["weight"].map("{:.12g}".format)
    bases = [name.removesuffix(suffix) for name, suffix in zip(swept["config"], suffixes, strict=True)]
    places = {weight: place for place, weight in enumerate(sorted(swept["weight"].unique()))}
    groups = list(swept.groupby(bases, sort=False))
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours = cycle(COLOURS[1:])
    for k, (base, rows) in enumerate(groups):
        shift, colour = 0.12 * (k - (len(groups) - 1) / 2), next(colours)
        of_weight = rows.groupby("weight")["last"]
        at = [places[weight] + shift for weight in of_weight.groups]
        half = of_weight.apply(half_interval).fillna(0)
        axes.errorbar(at, of_weight.mean(), yerr=half, fmt="o-", color=colour, capsize=4, label=base, zorder=3)
        axes.plot(rows["weight"].map(places) + shift, rows["last"], "o", color=colour, markersize=3, alpha=0.4)
    for name, rows in done[done["weight"].isna()].groupby("config", sort=False):
        axes.axhline(rows["last"].mean(), color=next(colours), linestyle="--", linewidth=1.3, label=name)
    axes.set(xticks=range(len(places)), xticklabels=[f"{weight:g}" for weight in places])
    axes.set(xlabel=f"weight of {swept['term'].iloc[0]} (not to scale)")
    axes.set(ylabel=f"{swept['metric'].iloc[0]} after the last epoch (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure
