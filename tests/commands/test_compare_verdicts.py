"""What is decided of a table of runs."""

import numpy as np
import pandas as pd
import pytest

from ndkd.commands.compare_tables import as_table, markdown, write_tables
from ndkd.commands.compare_verdicts import Rule, number_of_comparisons, step_of, verdict, verdicts
from tests.command import ndkd

NOISE = [0.05, -0.1, 0.12, -0.03, 0.07, -0.11, 0.02, -0.06]


def rows(gains, control=(), seeds=6, **more):
    """Configurations by their mean gain over the first, ``base``; those with a control are compared with it too."""
    return [
        {"config": name, "seed": seed, "control": dict(control).get(name), "state": "finished", "metric": "test/acc1",
         "last": 70 + 0.3 * seed + gain + (NOISE[(seed + 3 * k) % 8] if k else 0), "best": 71, "seconds": 60.0,
         "parameters": 5, **more}
        for k, (name, gain) in enumerate({"base": 0, **gains}.items()) for seed in range(seeds)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "margin", "word"),
    [
        (1.0, 0.3, "better"),
        (-1.0, 0.3, "worse"),
        (0.0, 0.3, "no difference above 0.3"),
        (0.0, 0.01, "undecided"),
        (0.45, 0.9, "better by less than 0.9"),
        (-0.45, 0.9, "worse by less than 0.9"),
    ],
)
def test_the_words(gain, margin, word):
    found = verdict(gain + pd.Series(NOISE), margin, 0.05)
    assert found.word == word
    assert found.is_decided == (word != "undecided")
    assert found.low < found.mean < found.high
    assert str(found) == f"{word}, {found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}] after {found.seeds} seeds"


def test_it_is_that_of_the_first_number_of_seeds_that_decides():
    """What other configurations' further seeds add afterwards does not take it back."""
    values = 1 + pd.Series(NOISE)
    early = verdict(values[:5], 0.3, 0.05)
    assert early.is_decided
    assert verdict(values, 0.3, 0.05) == early
    assert verdict(pd.concat([values, pd.Series([-40.0] * 5)], ignore_index=True), 0.3, 0.05) == early
    assert verdict(pd.concat([pd.Series([np.nan]), values], ignore_index=True), 0.3, 0.05) == early


def test_without_pairs():
    assert str(verdict(pd.Series([np.nan, np.nan]), 0.3, 0.05)) == "undecided after 0 seeds"
    assert str(verdict(pd.Series([0.2, np.nan]), 0.3, 0.05)) == "undecided after 1 seed"


def test_equal_results_are_decided_by_the_step_between_results():
    """Identical runs: three seeds whose results lie a test image apart tell that much."""
    assert not verdict(pd.Series([0.0] * 9), 0.3, 0.05).is_decided
    assert verdict(pd.Series([1e-14, 0.0, -1e-14]), 0.3, 0.05, resolution=0.01).word == "no difference above 0.3"
    assert not verdict(pd.Series([0.0] * 3), 0.3, 0.05, resolution=1.0).is_decided
    assert step_of(pd.Series([70.0, 70.3, np.nan, 70.1, 70.3])) == pytest.approx(0.1)
    assert step_of(pd.Series([70.0, 70.0])) == 0


def test_comparisons_share_the_error_rate():
    alone = verdicts(as_table(rows({"a": 0.5})), Rule())["first"]["a"]
    both = verdicts(as_table(rows({"a": 0.5, "b": 0.2})), Rule(error_rate=0.1))["first"]["a"]
    assert both == alone
    three = as_table(rows({"b": 0.5, "a": 0.5}, control={"a": "b"}))
    assert number_of_comparisons(three) == 3
    assert verdicts(three, Rule())["first"]["a"].high > alone.high


def test_a_pair_that_is_compared_both_ways_is_one_comparison():
    runs = as_table([row | {"control": "base" if row["config"] == "a" else None} for row in rows({"a": 0.5})])
    assert number_of_comparisons(runs) == 1
    found = verdicts(runs, Rule())  # base is a control, so a is the first
    assert (found["first"]["base"].word, found["control"]["a"].word) == ("worse", "better")


def test_the_table_says_it_and_explains_it(tmp_path):
    given = rows({"b": 0.0, "a": 1.0}, control={"a": "b"}, margin=0.3, error_rate=0.05)
    table = write_tables(given, tmp_path, "ndkd compare")
    head, _, base, b, a, _, line = table.splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (head, base, b, a)]
    assert cells[0][6:8] == ["against base", "against control"]
    assert cells[1][6:8] == ["", ""]
    found = verdicts(as_table(given), Rule())
    assert cells[2][6:8] == [str(found["first"]["b"]), ""]
    assert cells[3][6:8] == [str(found["first"]["a"]), str(found["control"]["a"])]
    assert cells[3][7].startswith("better, +0.99 [")
    assert line == (
        "verdicts: together wrong with a probability of at most 0.05 (3 comparisons, 1.67% each); in brackets the "
        "interval that holds at any number of seeds"
    )
    assert table in (tmp_path / "results.md").read_text()
    kept = pd.read_csv(tmp_path / "results.csv").set_index("config")
    assert set(kept["verdict"]["a"]) == {cells[3][6]}
    assert set(kept["control_verdict"]["a"]) == {cells[3][7]}
    assert kept["control_verdict"]["b"].isna().all()
    assert ndkd("table", tmp_path / "results.csv") == (0, f"{table}\n", "")


def test_a_table_of_fixed_seeds_has_no_verdicts():
    assert "against" not in markdown(as_table(rows({"a": 1.0})))
    mixed = [*rows({"a": 1.0}, margin=0.3, error_rate=0.05), *rows({"b": 1.0})[6:]]
    assert "against" not in markdown(as_table(mixed))
