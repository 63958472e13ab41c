"""The pages' tables of published accuracies are what was printed, and what it says about them follows from them."""

import re

import pytest

from tests.pages import section

CIFAR = {
    "teacher alone": (72.34, 79.42, 75.61, 79.34, 79.42, 79.42),
    "student alone": (69.06, 72.50, 71.98, 64.60, 70.50, 71.82),
    "KD": (70.66, 73.33, 73.54, 67.65, 74.07, 74.45),
    "DIST": (71.78, 75.79, 74.42, 69.17, 75.23, 76.08),
    "DKD": (71.97, 75.44, 74.81, 70.35, 76.45, 77.07),
    "ReviewKD": (71.89, 75.63, 75.09, 69.89, 77.45, 77.78),
    "KD++": (72.53, 75.54, 74.59, 70.10, 75.45, 76.42),
    "DIST++": (72.52, 76.13, 75.00, 69.80, 75.60, 76.64),
    "DKD++": (72.16, 76.28, 75.02, 70.82, 77.11, 77.49),
    "ReviewKD++": (72.05, 76.07, 75.66, 70.45, 77.68, 77.93),
}
ORIGINALS = {
    "DIST, its authors' README": (71.75, 76.31, 74.43, 68.66, 76.34, 77.35),
    "DKD, mdistiller": (None, 76.32, None, None, None, None),
    "KD, measured by users": (71.54, None, None, None, None, None),
}
NEWER = {
    "LSKD": (71.43, 76.62, 74.37, 69.02, None, 75.56),
    "DKD+LSKD": (72.32, 77.01, 74.89, 70.45, None, 77.37),
    "TTM": (71.83, 76.17, 74.32, 69.24, 74.18, 76.57),
    "WTTM": (71.92, 76.06, 74.58, 69.59, 74.37, 76.55),
}
PAIRS = ("r56_r20", "r32x4_r8x4", "wrn402_wrn401", "r50_mv2", "r32x4_sv1", "r32x4_sv2")
IMAGENET = {  # R34, R50, R101, R152 → R18, R50 → MV1, ViT-S, ViT-B → R18
    "teacher": (None, None, None, None, None, 74.64, 78.00),
    "student alone": (69.76, 69.76, 69.76, 69.76, 68.87, 69.76, 69.76),
    "KD": (70.66, None, None, None, 70.50, None, None),
    "KD++": (71.98, 72.49, 72.54, 72.59, 72.77, 71.46, 71.84),
    "DKD": (71.70, None, None, None, 72.05, None, None),
    "DKD++": (72.07, None, None, None, 72.63, 71.33, 71.69),
    "ReviewKD": (71.62, None, None, None, 72.56, None, None),
    "ReviewKD++": (71.64, None, None, None, 72.96, None, None),
}


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
