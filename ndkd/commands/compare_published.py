"""Published figures beside ours, and how the protocols differ; see ndkd/configuration/published.py."""

from typing import Any

import pandas as pd
import torch

from ndkd.configuration.entries import entry
from ndkd.configuration.published import Figure, ledger

OWNERS = {"copy": "as the ND paper prints it", "users": "users"}


def figures_of(runs: pd.DataFrame) -> dict[str, list[Figure]]:
    """The published figures of each configuration that names a key, by its name."""
    keys = runs.drop_duplicates("config").set_index("config")["published"].dropna()
    return {name: ledger().get(str(key), []) for name, key in keys.items()}


def in_a_cell(figures: list[Figure]) -> str:
    """All accuracies that were published of one method, each with whose it is where they are several."""
    known = [figure for figure in figures if figure.accuracy is not None]
    several = len(known) > 1
    return ", ".join(f"{figure.accuracy:.2f}{f' ({_whose(figure)})' if several else ''}" for figure in known)


def notes(configs: dict[str, dict[str, Any]], runs: pd.DataFrame) -> list[str]:
    """A line for each published figure: where it stands, and in what its protocol is another.

    Args:
        configs: resolved configurations by name.
        runs: of ``ndkd.commands.compare_tables.as_table``.
    """
    seeds = runs[runs["state"] == "finished"].groupby("config")["seed"].count()
    lines = []
    for name, figures in figures_of(runs).items():
        for figure in figures:
            if figure.accuracy is None:
                lines.append(f"{name}: no accuracy was published")
            else:
                said = _protocol(configs[name], int(seeds.get(name, 0)), figure)
                lines.append(f"{name}: published {figure.accuracy:.2f} ({_source(figure)}); {said}")
    return lines


def _source(figure: Figure) -> str:
    owner = f", {OWNERS[figure.whose]}" if figure.whose == "copy" else ""
    return f"{figure.source}{f', {figure.table}' if figure.table else ''}{owner}"


def _whose(figure: Figure) -> str:
    return OWNERS.get(figure.whose, figure.source)


def _protocol(config: dict[str, Any], seeds: int, figure: Figure) -> str:
    """What is different, and what the source does not say."""
    ours = {
        "epochs": entry(config, "trainer.max_epochs"),
        "batch size": _batch_size(config),
        "learning rate": entry(config, "model.init_args.optimizer.init_args.lr"),
        "epoch of the result": "last",
        "number of runs": seeds,
    }
    theirs = [figure.epochs, figure.batch_size, figure.lr, figure.epoch or None, figure.runs]
    pairs = [(what, our, their) for (what, our), their in zip(ours.items(), theirs, strict=True)]
    different = [f"{what} {our}, there {their}" for what, our, their in pairs if their is not None and our != their]
    unsaid = [what for what, _, their in pairs if their is None]
    parts = [f"here {', '.join(different)}" if different else "no known difference of protocol"]
    parts += [f"not said there: {', '.join(unsaid)}"] if unsaid else []
    return "; ".join(parts)


def _batch_size(config: dict[str, Any]) -> int | str | None:
    """Images a step, of all devices; in words where their number is found out by the trainer."""
    size = entry(config, "data.init_args.batch_size")
    devices, nodes = (entry(config, f"trainer.{name}") for name in ("devices", "num_nodes"))
    if isinstance(devices, list):
        devices = len(devices)
    if devices == "auto" and (entry(config, "trainer.accelerator") == "cpu" or torch.cuda.device_count() <= 1):
        devices = 1
    return size * int(devices) * (nodes or 1) if str(devices).isdigit() else f"{size} a device"
