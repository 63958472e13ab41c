"""Which runs come next: those of the first seeds, then one seed at a time for what is not decided."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

import pandas as pd

from ndkd.commands.compare_differences import references
from ndkd.commands.compare_jobs import Fit
from ndkd.commands.compare_tables import as_table
from ndkd.commands.compare_verdicts import ERROR_RATE, MARGIN, Rule, number_of_comparisons, verdicts
from ndkd.commands.confidence_sequence import FIRST
from ndkd.errors import NdkdError, shortened

MAX_SEEDS = 30
MOST_FAILED = 3  # runs of a configuration, after which it gets no further seeds


class Schedule(NamedTuple):
    """The seeds of a comparison.

    Args:
        start: every configuration is trained with each of them.
        later: further ones, in their order, for what is not decided.
        rule: when it is; None where the seeds are fixed.
    """

    start: list[int]
    later: list[int]
    rule: Rule | None


class Round(NamedTuple):
    """Runs that can go on at once.

    Args:
        fits: those that are finished too.
        why: what to say before they begin.
    """

    fits: list[Fit]
    why: str = ""


def schedule(
    seeds: Sequence[int] | None,
    until: str | None = None,
    margin: float | None = None,
    max_seeds: int | None = None,
    error_rate: float | None = None,
) -> Schedule:
    """The seeds that options of the command line ask for.

    Raises:
        NdkdError: a number that means nothing, or an option that another one lacks.
    """
    start = list(seeds) if seeds is not None else [0, 1, 2] if until else [0]
    if not start or len(set(start)) < len(start) or min(start) < 0:
        raise NdkdError(f"seeds: wanted different numbers from 0 on, got {' '.join(map(str, start)) or 'none'}")
    if until is None:
        for name, value in {"margin": margin, "max-seeds": max_seeds, "error-rate": error_rate}.items():
            if value is not None:
                raise NdkdError(f"--{name} says when to stop adding seeds: add --until decided, or leave it out")
        return Schedule(start, [], None)
    rule = Rule(MARGIN if margin is None else margin, ERROR_RATE if error_rate is None else error_rate)
    if not 0 < rule.margin < inf:
        raise NdkdError(f"margin: wanted a number of points above 0, got {rule.margin:g}")
    if not 0 < rule.error_rate <= 0.5:
        raise NdkdError(f"error-rate: wanted a probability above 0 and at most 0.5, got {rule.error_rate:g}")
    most = max(MAX_SEEDS, len(start)) if max_seeds is None else max_seeds
    if most < FIRST:
        raise NdkdError(f"max-seeds: wanted at least {FIRST}, since fewer decide nothing, got {most}")
    if most < len(start):
        raise NdkdError(f"max-seeds: wanted at least {len(start)}, as many as --seeds has, got {most}")
    return Schedule(start, [max(start) + 1 + k for k in range(most - len(start))], rule)


def check_comparisons(fits: list[Fit], rule: Rule | None) -> None:
    """Raise ``NdkdError`` if there is nothing to decide."""
    if rule and not number_of_comparisons(_table(fits)):
        raise NdkdError("until: one configuration alone leaves nothing to decide; name another, or add --control TERM")


def rounds(fits: list[Fit], seeds: Schedule) -> Iterator[Round]:
    """Yield all runs of the first seeds, then of one seed after another those that a decision needs.

    What is asked for next depends on what has come of the runs before. Nothing is run before it is known to be needed:
    a configuration has a further seed while its own difference, or that of one it is the baseline or control of, is
    not decided. One that has failed several times has none.
    """
    yield Round([fit for fit in fits if fit.row["seed"] in seeds.start])
    if seeds.rule is None:
        return
    for seed in seeds.later:
        runs = _table(fits)
        failed = Counter(fit.row["config"] for fit in fits if fit.error)
        pairs = [pair for pair in undecided(runs, seeds.rule) if all(failed[name] < MOST_FAILED for name in pair)]
        if not pairs:
            return
        needed = [fit for fit in fits if fit.row["seed"] == seed and any(fit.row["config"] in pair for pair in pairs)]
        names = shortened([fit.row["config"] for fit in needed])
        why = f"{len(pairs)} of {number_of_comparisons(runs)} comparisons undecided: seed {seed} of {names}"
        yield Round(needed, why)


def undecided(runs: pd.DataFrame, rule: Rule) -> set[frozenset[str]]:
    """Pairs of configurations whose difference is not decided."""
    found, compared = verdicts(runs, rule), references(runs)
    return {
        frozenset((name, other))
        for kind, pairs in compared.items()
        for name, other in pairs.items()
        if not found[kind][name].is_decided
    }


def shown(fits: list[Fit], seeds: Schedule) -> list[Fit]:
    """The runs that a table has a row for: all of the first seeds, of later ones those that were begun."""
    return [fit for fit in fits if fit.row["seed"] in seeds.start or fit.error or fit.run.config.is_file()]


def _table(fits: list[Fit]) -> pd.DataFrame:
    return as_table([fit.result() for fit in fits])
