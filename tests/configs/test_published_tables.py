"""The pages' tables of published accuracies are what was printed, and what it says about them follows from them."""

import re

import pytest

from ndkd.configuration.published import ledger
from tests.pages import section

PAIRS = ("r56_r20", "r32x4_r8x4", "wrn402_wrn401", "r50_mv2", "r32x4_sv1", "r32x4_sv2")
IMAGENET_PAIRS = ("r34_r18", "r50_r18", "r101_r18", "r152_r18", "r50_mv1", "vits_r18", "vitb_r18")
METHODS = ("KD", "KD++", "DKD", "DKD++", "ReviewKD", "ReviewKD++")
ALONE = {"student alone": "student", "teacher alone": "teacher", "teacher": "teacher"}


def published(data, pairs, names, whose=None):
    """The figures of the ledger by the names of the page's rows; those that the ND paper prints, or the others'."""
    found = {}
    for name in names:
        figures = [ledger().get(f"{data}/{pair}/{ALONE.get(name, name.lower())}", []) for pair in pairs]
        printed = [[f.accuracy for f in of_pair if _is_shown(f, whose)] for of_pair in figures]
        found[name] = tuple(values[0] if values else None for values in printed)
    return found


def _is_shown(figure, whose):
    is_nds = figure.source == "arXiv 2305.17007"
    return is_nds if whose is None else not is_nds and figure.whose == whose


CIFAR = published("cifar100", PAIRS, [*METHODS, "DIST", "DIST++", "teacher alone", "student alone"])
ORIGINALS = {
    "DIST, its authors' README": published("cifar100", PAIRS, ["DIST"], "original")["DIST"],
    "DKD, mdistiller": published("cifar100", PAIRS, ["DKD"], "original")["DKD"],
    "KD, measured by users": published("cifar100", PAIRS, ["KD"], "users")["KD"],
}
NEWER = published("cifar100", PAIRS, ["LSKD", "DKD+LSKD", "TTM", "WTTM"], "original")
IMAGENET = published("imagenet", IMAGENET_PAIRS, [*METHODS, "teacher", "student alone"])


def rows(title):
    """The numbers of a section's tables by row, None where a cell is empty."""
    lines = re.findall(r"^\| ([^|`]+) \|((?: *[\d.]* *\|)+)$", section("paper-tables", title), flags=re.MULTILINE)
    return {name: tuple(float(c) if c.strip() else None for c in cells.split("|")[:-1]) for name, cells in lines}


@pytest.mark.parametrize(
    ("data", "published"),
    [("CIFAR-100", CIFAR | ORIGINALS), ("Newer methods on CIFAR-100", NEWER), ("ImageNet", IMAGENET)],
)
def test_numbers(data, published):
    assert rows(data) == published


def test_the_ledger_has_the_figures_of_every_table():
    """So that the pages cannot agree with an empty file."""
    assert all(None not in values for values in CIFAR.values())
    assert sum(value is not None for values in IMAGENET.values() for value in values) == 28
    assert [sum(value is not None for value in values) for values in ORIGINALS.values()] == [6, 1, 1]
    assert [sum(value is not None for value in values) for values in NEWER.values()] == [5, 5, 6, 6]


def test_deit():
    of_deit = {key.rpartition("/")[2]: f[0].accuracy for key, f in ledger().items() if "regnety_deit" in key}
    text = " ".join(section("paper-tables", "ImageNet").split())
    assert "RegNetY-16GF ({teacher} %) → DeiT-B/16".format(**of_deit) in text
    assert f"Published: {of_deit['deit++']} %, against {of_deit['deit']} % without ND." in text


def test_where_the_paper_is_behind_the_originals():
    text = " ".join(section("paper-tables", "CIFAR-100").split())
    dist = zip(PAIRS, CIFAR["DIST++"], ORIGINALS["DIST, its authors' README"], strict=True)
    behind = [f"{pair} (−{original - plus:.2f})" for pair, plus, original in dist if plus < original]
    assert len(behind) == 3
    assert (
        f"**DIST++ is behind DIST's own figures on three of the six pairs**: {', '.join(behind[:2])} and {behind[2]}"
        in text
    )
    assert f"r32x4_r8x4 (−{76.32 - CIFAR['DKD++'][1]:.2f})" in text
    gains = [CIFAR["KD++"][0] - kd for kd in (ORIGINALS["KD, measured by users"][0], CIFAR["KD"][0])]
    assert "KD++ gains {:.2f} points, not {:.2f}".format(*gains) in text
