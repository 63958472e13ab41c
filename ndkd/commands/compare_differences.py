"""What is compared with what in a table of runs, and the differences, paired by seed."""

import pandas as pd
from scipy import stats


def references(runs: pd.DataFrame) -> dict[str, dict[str, str]]:
    """What each configuration is compared with: the ``first`` one, and its ``control`` if it has one."""
    control_of = runs.drop_duplicates("config").set_index("config")["control"]
    first = _first(runs, control_of)
    return {"first": dict.fromkeys(control_of.index.drop(first), first), "control": dict(control_of.dropna())}


def differences_by_seed(runs: pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """Per configuration the last epoch's value minus ``first``'s and minus ``control``'s, where both have it."""
    last = runs.pivot(index="seed", columns="config", values="last").astype(float)
    return {
        kind: {name: last[name] - last[other] for name, other in pairs.items()}
        for kind, pairs in references(runs).items()
    }


def _first(runs: pd.DataFrame, control_of: pd.Series) -> str:
    """The first configuration that is no other's control, or that is one row of a sweep, the weight of 0."""
    swept, controls = set(runs["config"][runs["weight"].notna()]), set(control_of)
    return next(name for name in control_of.index if name not in controls or name in swept)


def half_interval(values: pd.Series) -> float:
    """Half the width of the mean's 95 % interval, by Student's t; NaN for a single value.

    >>> round(float(half_interval(pd.Series([1.0, 2.0, 3.0]))), 3)
    2.484
    """
    return stats.t.ppf(0.975, values.count() - 1) * values.sem()
