"""What ``ndkd compare`` has decided of the configurations of two runs, for the page about these runs."""

from pathlib import Path

from ndkd.commands.compare_differences import references
from ndkd.commands.compare_verdicts import rule_of, verdicts
from ndkd.commands.table import read_results
from ndkd.errors import NdkdError


def verdict_of(run: Path, baseline: Path) -> str | None:
    """The verdict over all seeds, None if the two folders are not of one study, or it was not one that decides.

    Args:
        run: its folder, beside it the study's ``results.csv``.
        baseline: the folder of what it is compared with.
    """
    run, baseline = run.resolve(), baseline.resolve()
    file = run.parent / "results.csv"
    if run.parent != baseline.parent or not file.is_file():
        return None
    try:
        runs = read_results(file)
    except NdkdError:  # some other file
        return None
    names = dict(zip(runs["folder"], runs["config"], strict=True))
    name, other = names.get(run.name), names.get(baseline.name)
    rule = rule_of(runs)
    if rule is None or name is None or other is None:
        return None
    found = verdicts(runs, rule)
    kinds = [kind for kind, pairs in references(runs).items() if pairs.get(name) == other]
    return str(found[kinds[0]][name]) if kinds else None
