"""The confidence sequence: its values against a plain reading of the formula, and its error rate by simulation."""

import re

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from ndkd.commands.compare_verdicts import words
from ndkd.commands.confidence_sequence import EXPECTED, confidence_sequence
from tests.pages import text

STUDIES, SEEDS, MARGIN = 2000, 60, 0.3


def martingale(values, mean):
    """The t-test martingale of the theorem, from all observations at once."""
    n, c = len(values), 1 / EXPECTED
    s, v = np.sum(values - mean), np.sum((values - mean) ** 2)
    return np.sqrt(c**2 / (n + c**2)) * ((n + c**2) * v / ((n + c**2) * v - s**2)) ** (n / 2)


@pytest.mark.parametrize("error_rate", [0.05, 0.002])
def test_an_interval_ends_where_the_martingale_reaches_the_threshold(error_rate):
    values = np.random.default_rng(0).normal(70, 0.4, 12)
    low, high = confidence_sequence(values, error_rate)
    for n in range(6, 13):
        mean = values[:n].mean()
        excess = lambda mu, n=n: martingale(values[:n], mu) - 1 / error_rate  # noqa: E731
        assert low[n - 1] == pytest.approx(brentq(excess, mean - 100, mean))
        assert high[n - 1] == pytest.approx(brentq(excess, mean, mean + 100))


def test_the_martingale_has_its_mean_under_the_null():
    """Else the sequence would not be what it says: E[G_n] = 1 at every n, whatever the deviation."""
    values = np.random.default_rng(0).normal(0, 2.5, (400_000, 4))
    n, c, s, v = 4, 1 / EXPECTED, values.sum(1), (values**2).sum(1)
    found = np.sqrt(c**2 / (n + c**2)) * ((n + c**2) * v / ((n + c**2) * v - s**2)) ** (n / 2)
    assert found.mean() == pytest.approx(1, abs=0.03)


def test_nothing_is_said_of_one_or_two_or_of_equal_ones():
    low, high = confidence_sequence(np.array([1.0, 1.2, 1.1]), 0.05)
    assert list(np.isinf(low)) == list(np.isinf(high)) == [True, True, False]
    low, high = confidence_sequence(np.full(5, 0.7), 0.05)
    assert np.isinf([low, high]).all()
    low, high = confidence_sequence(np.full(5, 0.7), 0.05, resolution=0.1)
    assert np.isfinite(low[2:]).all()
    assert list(0.7 - low[2:]) == pytest.approx(list(high[2:] - 0.7))


def test_series_are_independent_of_each_other_and_of_their_place():
    values = np.random.default_rng(1).normal(size=(3, 2, 9))
    low, high = confidence_sequence(values, 0.05)
    alone = confidence_sequence(values[2, 1], 0.05)
    assert np.array_equal([low[2, 1], high[2, 1]], alone)
    moved = confidence_sequence(values + 50, 0.05)
    assert np.allclose(moved[0][..., 2:], low[..., 2:] + 50)


def decided(difference, deviation, margin=MARGIN, error_rate=0.05, step=0.0, comparisons=1):
    """Of many studies that look after every seed, what each decides at last, and after how many seeds."""
    rng = np.random.default_rng(7)
    values = rng.normal(difference, deviation, (STUDIES, comparisons, SEEDS))
    if step:
        values = (values / step).round() * step
    found = words(*confidence_sequence(values, error_rate / comparisons, step), margin)
    is_decided = found != "undecided"
    at = np.where(is_decided.any(-1), is_decided.argmax(-1), SEEDS - 1)
    return np.take_along_axis(found, at[..., None], -1)[..., 0], at + 1


def share(found, *beginnings):
    """Of the studies in which any verdict begins so."""
    return np.any([np.char.startswith(found, word) for word in beginnings], axis=(0, 2)).mean()


NO_DIFFERENCE = f"no difference above {MARGIN}"


@pytest.mark.parametrize("deviation", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("step", [0.0, 0.1], ids=["continuous", "of 1,000 images"])
@pytest.mark.parametrize(
    ("difference", "wrong"),
    [
        (0.0, ("better", "worse")),
        (MARGIN, (NO_DIFFERENCE, "worse", "better by less")),
        (-MARGIN, (NO_DIFFERENCE, "better", "worse by less")),
        (1.0, (NO_DIFFERENCE, "worse", "better by less")),
    ],
)
def test_at_most_five_per_cent_are_wrong(difference, wrong, deviation, step):
    found, _ = decided(difference, deviation, step=step)
    assert share(found, *wrong) <= 0.05


def test_the_error_rate_is_that_of_all_comparisons_together():
    found, _ = decided(0.0, 0.3, comparisons=6)
    assert share(found, "better", "worse") <= 0.05


def test_a_t_test_after_every_seed_would_be_wrong_more_often():
    """So that the tests above can fail."""
    values = np.random.default_rng(7).normal(0, 0.3, (STUDIES, SEEDS))
    is_wrong = np.zeros(STUDIES, bool)
    for n in range(3, SEEDS + 1):
        is_wrong |= stats.ttest_1samp(values[:, :n], 0, axis=1).pvalue < 0.05
    assert is_wrong.mean() > 0.2


def test_most_are_decided_and_rightly():
    found, seeds = decided(1.0, 0.3)
    assert (found == "better").mean() > 0.98
    assert np.median(seeds) <= 5
    found, seeds = decided(0.0, 0.3)
    assert (found == NO_DIFFERENCE).mean() > 0.9
    assert np.median(seeds) <= 22


def documented():
    """The rows of the page's table of seeds."""
    rows = re.findall(
        r"^\| ([\d.]+) \| ([\d.]+) \| (\d+) \((\d+)\) \| (\d+) \((\d+)\) \|$", text("compare-and-report"), re.M
    )
    return [[float(number) for number in row] for row in rows]


def test_the_page_has_a_table_of_seeds():
    assert len(documented()) == 8


@pytest.mark.parametrize("row", documented(), ids=str)
def test_it_takes_the_seeds_that_the_page_says(row):
    difference, deviation, *given = row
    values = np.random.default_rng(0).normal(difference, deviation, (STUDIES, 100))
    found = []
    for comparisons in (1, 6):
        is_decided = words(*confidence_sequence(values, 0.05 / comparisons), MARGIN) != "undecided"
        seeds = np.where(is_decided.any(1), is_decided.argmax(1) + 1, 101)
        found += list(np.quantile(seeds, [0.5, 0.9]))
    assert np.abs(np.subtract(found, given)).max() <= 0.04 * max(given) + 0.5
