"""Published accuracies with their sources and protocols, ``published.csv``, and the row that a configuration names.

A row of the file is one published figure; a key, such as ``cifar100/r56_r20/kd++`` (benchmark, teacher and student,
method), has several where publications differ. What a source does not say is empty.
"""

import csv
import difflib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ndkd.configuration.arguments import values_of
from ndkd.configuration.overlays import CONFIG, content_of, spells_a_set
from ndkd.errors import NdkdError

FILE = Path(__file__).with_suffix(".csv")
OPTION = "--published"
BESIDE = "../"  # before a method: of the same pair as the key before it


class Figure(NamedTuple):
    """One published accuracy.

    Args:
        key: benchmark, pair and method.
        accuracy: top-1 in percent; None where none was published.
        whose: ``original``, ``copy`` (as the ND paper prints another's) or ``users``.
        source: where it stands.
        table: of the source.
        epoch: ``best`` by test accuracy, or ``last``.
        batch_size: images a step, of all devices.
        lr: learning rate at the start.
        epochs: of training.
        runs: that it is the mean of.
    """

    key: str
    accuracy: float | None
    whose: str
    source: str
    table: str
    epoch: str
    batch_size: int | None
    lr: float | None
    epochs: int | None
    runs: int | None


@cache
def ledger() -> dict[str, list[Figure]]:
    """All figures by their keys."""
    numbers = {"accuracy": float, "batch_size": int, "lr": float, "epochs": int, "runs": int}
    found: dict[str, list[Figure]] = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            values: dict[str, Any] = {
                name: (numbers[name](text) if text else None) if name in numbers else text for name, text in row.items()
            }
            found.setdefault(row["key"], []).append(Figure(**values))
    return found


def check_key(key: str) -> None:
    """Raise ``NdkdError`` if the ledger has no such key; those nearest to it are named."""
    if key not in ledger():
        near = difflib.get_close_matches(key, ledger(), n=3)
        near = near or [known for known in ledger() if known.endswith(f"/{key.rpartition('/')[2]}")][:3]
        hint = f"did you mean {', '.join(near)}?" if near else "such keys are cifar100/r56_r20/kd++"
        raise NdkdError(f"published: the published figures have no {key}; {hint}")


def with_published(arguments: list[str]) -> list[str]:
    """The arguments with the key that holds after all configurations, if any of them has one.

    A configuration that spells a set of loss terms is another method, and the keys before it are not its own. ``../kd``
    is the method ``kd`` of the pair before it, so that an overlay can serve many pairs.

    Raises:
        NdkdError: a key that the ledger does not have, where a run is to begin.
    """
    key: str | None = None
    is_said = False
    for config in values_of(CONFIG, arguments):
        entries = content_of(config)
        if "published" in entries:
            key, is_said = _joined(key, entries["published"]), True
        elif spells_a_set(config):
            key = None
    given = values_of((OPTION,), arguments)
    holds = given[-1] if given else key
    if arguments[0] == "fit" and isinstance(holds, str) and holds != "null":
        check_key(holds)
    if given or not is_said:
        return arguments
    return [*arguments, f"{OPTION}={'null' if key is None else key}"]


def _joined(before: str | None, key: Any) -> Any:
    """
    >>> _joined("cifar100/r56_r20/kd++", "../kd")
    'cifar100/r56_r20/kd'
    """
    if not isinstance(key, str) or not key.startswith(BESIDE):
        return key
    return f"{before.rpartition('/')[0]}/{key.removeprefix(BESIDE)}" if before else None
