"""``ndkd table``: the table of runs that are finished, from their results.csv."""

from pathlib import Path

import pandas as pd

from ndkd.commands.compare_tables import COLUMNS, markdown
from ndkd.errors import NdkdError, shortened

NEEDED = ["config", "control", "seed", "state", "metric", "last", "best", "seconds", "parameters"]


def table(files: list[Path]) -> None:
    """Print the Markdown table that ``ndkd compare`` writes, of one ``results.csv`` or of several together.

    Args:
        files: the first configuration of the first is what the others are compared with.

    Raises:
        NdkdError: a file that was not written by ``ndkd compare``, a run that is there twice, results that do not
            belong in one table.
    """
    parts = {file: read_results(file) for file in files}
    runs = pd.concat(parts.values(), ignore_index=True)
    check_one_protocol({str(file): part for file, part in parts.items()})
    twice = runs[runs.duplicated(["config", "seed"])]
    if len(twice):
        names = [f"{run.config}, seed {run.seed}" for run in twice.itertuples()]
        raise NdkdError(f"{shortened(names)}: more than one row; give each run once")
    print(markdown(runs))


def read_results(file: Path) -> pd.DataFrame:
    """The rows of a ``results.csv``.

    Raises:
        NdkdError: no such file, or another one.
    """
    if not file.is_file():
        raise NdkdError(f"{file} does not exist; give a results.csv of ndkd compare")
    try:
        runs = pd.read_csv(file)
    except (ValueError, UnicodeDecodeError) as error:
        raise NdkdError(
            f"{file} is not a CSV file: {str(error).strip()}; give a results.csv of ndkd compare"
        ) from error
    if missing := [name for name in NEEDED if name not in runs]:
        raise NdkdError(f"{file} has no column {shortened(missing)}; give a results.csv of ndkd compare")
    if runs.empty:
        raise NdkdError(f"{file} has no rows; give a results.csv of ndkd compare")
    numbers = ["last", "best", "teacher", "seconds", "parameters", "margin", "error_rate"]
    try:
        return runs.reindex(columns=COLUMNS).astype(dict.fromkeys(numbers, float))
    except ValueError as error:
        what = str(error).partition(": Error")[0]
        raise NdkdError(f"{file}: {what}; wanted numbers in {', '.join(numbers)}") from error


def check_one_protocol(parts: dict[str, pd.DataFrame]) -> None:
    """Raise ``NdkdError`` if results were measured in different ways.

    Args:
        parts: rows of results.csv by where they are.
    """
    for what in ("protocol", "metric"):
        found = [(where, value) for where, rows in parts.items() for value in rows[what].dropna().unique()]
        for where, value in found[1:]:
            first, wanted = found[0]
            if value != wanted:
                raise NdkdError(f"{where} has results of {what} {value}, {first} of {wanted}: make a table of each")
