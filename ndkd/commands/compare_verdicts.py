"""Whether a difference is decided: better, worse, or none of more than a margin; see docs/compare-and-report.md."""

from math import inf, isfinite
from typing import NamedTuple

import numpy as np
import pandas as pd

from ndkd.commands.compare_differences import differences_by_seed, references
from ndkd.commands.confidence_sequence import confidence_sequence

MARGIN, ERROR_RATE = 0.3, 0.05  # points; of all comparisons of a study together
UNDECIDED = "undecided"


class Rule(NamedTuple):
    """When a comparison is decided.

    Args:
        margin: in points, what a difference must exceed to matter.
        error_rate: the probability that any verdict of the study is wrong.
    """

    margin: float = MARGIN
    error_rate: float = ERROR_RATE


class Verdict(NamedTuple):
    """What is known of a difference after so many seeds.

    Args:
        word: what was decided, or that nothing is.
        seeds: that both have a result of, up to the decision.
        mean: of the differences in these seeds; NaN of none.
        low: lower end of the interval.
        high: its upper end.
    """

    word: str
    seeds: int
    mean: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        return self.word != UNDECIDED

    def __str__(self) -> str:
        found = f", {self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]" if isfinite(self.high) else ""
        return f"{self.word}{found} after {self.seeds} seed{'' if self.seeds == 1 else 's'}"


def words(low: np.ndarray, high: np.ndarray, margin: float) -> np.ndarray:
    """What intervals of a difference decide, each by itself.

    One that lies above 0 means better, one below 0 worse, one within ±margin that there is no difference above the
    margin; what is above 0 and within the margin is better by less than it.

    >>> words(np.array([0.5, 0.1, -0.1, -0.2]), np.array([0.9, 0.2, 0.2, 0.4]), 0.3).tolist()
    ['better', 'better by less than 0.3', 'no difference above 0.3', 'undecided']
    """
    is_within = (-margin < low) & (high < margin)
    less = f" by less than {margin:g}"
    cases = {f"better{less}": (low > 0) & is_within, f"worse{less}": (high < 0) & is_within}
    cases |= {"better": low > 0, "worse": high < 0, f"no difference above {margin:g}": is_within}
    return np.select(list(cases.values()), list(cases), UNDECIDED)


def verdict(differences: pd.Series, margin: float, error_rate: float, resolution: float = 0.0) -> Verdict:
    """The verdict at the first number of seeds that decides, else at the last.

    Args:
        differences: paired by seed, in points; NaN where one of the two has no result.
        margin: in points.
        error_rate: of this comparison alone.
        resolution: step of the differences.

    Examples:
        >>> print(verdict(pd.Series([1.0, 1.2, 0.9, 1.1, 1.0]), 0.3, 0.05))
        better, +1.05 [+0.63, +1.47] after 4 seeds
        >>> print(verdict(pd.Series([1.0, 1.2]), 0.3, 0.05))
        undecided after 2 seeds
    """
    values = differences.dropna().to_numpy(float).round(6)  # of equal results, whatever the sums' rounding
    if not len(values):
        return Verdict(UNDECIDED, 0, np.nan, -inf, inf)
    low, high = confidence_sequence(values, error_rate, resolution)
    found = words(low, high, margin)
    decided = np.flatnonzero(found != UNDECIDED)
    at = decided[0] if len(decided) else -1
    seeds = int(at) % len(values) + 1
    return Verdict(str(found[at]), seeds, float(values[:seeds].mean()), float(low[at]), float(high[at]))


def step_of(results: pd.Series) -> float:
    """The smallest gap between two results, 0 if there are none that differ: of accuracies, about one test image."""
    gaps = np.diff(np.unique(results.dropna().to_numpy(float).round(6)))
    return float(gaps.min()) if len(gaps) else 0.0


def number_of_comparisons(runs: pd.DataFrame) -> int:
    """How many share the error rate; two configurations are one comparison, whichever comes first."""
    return len({frozenset(pair) for pairs in references(runs).values() for pair in pairs.items()})


def verdicts(runs: pd.DataFrame, rule: Rule) -> dict[str, dict[str, Verdict]]:
    """Per configuration the verdict on its difference to ``first`` and to its ``control``.

    The error rate is divided by the number of comparisons (Bonferroni).
    """
    step, alone = step_of(runs["last"]), rule.error_rate / max(1, number_of_comparisons(runs))
    gains = differences_by_seed(runs)
    return {
        kind: {name: verdict(differences, rule.margin, alone, step) for name, differences in of_kind.items()}
        for kind, of_kind in gains.items()
    }


def rule_of(runs: pd.DataFrame) -> Rule | None:
    """The rule that all rows of a table were decided by, None if there is no such one."""
    given = runs[["margin", "error_rate"]].astype(float).drop_duplicates()
    return Rule(*given.iloc[0]) if len(given) == 1 and given.notna().all(axis=None) else None


def explanation(runs: pd.DataFrame, rule: Rule) -> str:
    """What the verdicts of a table mean, in a line."""
    number = number_of_comparisons(runs)
    each = f", {rule.error_rate / number:.2%} each" if number > 1 else ""
    return (
        f"verdicts: together wrong with a probability of at most {rule.error_rate:.3g} ({number} "
        f"comparison{'s' if number > 1 else ''}{each}); in brackets the interval that holds at any number of seeds"
    )
