"""The pages' command for each row of the paper's CIFAR-100 table gives the published recipe."""

import sys
from typing import NamedTuple

import pytest

from ndkd.configuration.arguments import default_run_dir, values_of
from ndkd.data import CIFAR100DataModule
from tests.command import REPOSITORY
from tests.configs.recipes import read, resolved, rows


class Pair(NamedTuple):
    """Names, the teacher's folder in mdistiller's archive, learning rates, and the weights that differ by pair."""

    teacher: str
    folder: str
    student: str
    rates: tuple  # of the paper's recipe, of mdistiller's
    kdpp: tuple  # kd, nd
    dkdpp: tuple  # alpha, beta, nd
    distpp: tuple  # dist, nd
    reviewkdpp: tuple  # reviewkd, nd
    dkd: float  # beta
    reviewkd: float


LARGE, MOBILE = (0.1, 0.05), (0.02, 0.01)
R32X4 = ("resnet32x4", "resnet32x4_vanilla")
PAIRS = {
    "r56_r20": Pair("resnet56", "resnet56_vanilla", "resnet20", LARGE, (1, 2), (2.5, 4, 3.5), (2, 1), (1.2, 1), 2, 0.6),
    "r32x4_r8x4": Pair(*R32X4, "resnet8x4", LARGE, (3.5, 2), (2, 8, 0.5), (1.5, 4), (8, 1), 8, 5),
    "wrn402_wrn401": Pair(
        "wrn_40_2", "wrn_40_2_vanilla", "wrn_40_1", LARGE, (1, 1.5), (1, 6, 1), (2.5, 3), (5, 4), 6, 5
    ),
    "r50_mv2": Pair(
        "resnet50", "ResNet50_vanilla", "mobilenet_v2_half", MOBILE, (3, 0.5), (0.5, 8, 1), (7, 1), (6, 2), 8, 5
    ),
    "r32x4_sv1": Pair(*R32X4, "shufflenet_v1", MOBILE, (2.5, 1.5), (0.5, 8, 4), (2.5, 3), (7, 1), 8, 5),
    "r32x4_sv2": Pair(*R32X4, "shufflenet_v2", MOBILE, (4, 0.5), (0.5, 6, 0.5), (3, 4), (8, 1.5), 8, 8),
}


def kd(weight, warmup):
    return {"kd": ("KDLoss", {"temperature": 4}, weight, warmup, 0)}


def dkd(alpha, beta, first_epoch):
    return {"dkd": ("DKDLoss", {"alpha": alpha, "beta": beta, "temperature": 4}, 1, 20, first_epoch)}


def dist(weight, warmup):
    return {"dist": ("DISTLoss", {"beta": 1, "gamma": 1, "temperature": 4}, weight, warmup, 0)}


def reviewkd(weight):
    return {"reviewkd": ("ReviewKDLoss", {"max_mid_channels": 512}, weight, 20, 0)}


def nd(weight):
    return {"nd": ("NDLoss", {}, weight, 0, 0)}


# The terms beside cross-entropy: class, arguments, weight, warm-up and the number of its first epoch.
TERMS = {
    "KD++": lambda pair: kd(pair.kdpp[0], 20) | nd(pair.kdpp[1]),
    "DKD++": lambda pair: dkd(*pair.dkdpp[:2], 0) | nd(pair.dkdpp[2]),
    "DIST++": lambda pair: dist(pair.distpp[0], 20) | nd(pair.distpp[1]),
    "ReviewKD++": lambda pair: reviewkd(pair.reviewkdpp[0]) | nd(pair.reviewkdpp[1]),
    "KD": lambda pair: kd(0.9, 0),
    "DKD": lambda pair: dkd(1, pair.dkd, 1),
    "DIST": lambda pair: dist(2, 0),
    "ReviewKD": lambda pair: reviewkd(pair.reviewkd),
    "student alone": lambda pair: {},
    "teacher alone": lambda pair: {},
}
WITH_PROJECTOR = ("wrn402_wrn401", "r50_mv2", "r32x4_sv1", "r32x4_sv2")
BLOCKS = {"resnet56": (9, 9, 9), "resnet32x4": (5, 5, 5), "resnet50": (3, 4, 6, 3)}  # of the teachers' stages


def taps(pair):
    """The student's maps, which leave its stages without the stem, and the teacher's before the last activation."""
    student = [f"layer{stage}" for stage in (1, 2, 3)]
    if pair.student == "wrn_40_1":
        student = [f"block{stage}" for stage in (1, 2, 3)]
    if pair.student == "mobilenet_v2_half":
        student = [f"blocks.{block}" for block in (1, 2, 4, 6)]  # its last of 16, 8, 4 and 2 pixels
    if pair.teacher == "wrn_40_2":  # a WRN's stage ends before its activation, which is the next one's
        teacher = ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]
    else:
        teacher = [f"layer{stage}.{blocks - 1}.preact" for stage, blocks in enumerate(BLOCKS[pair.teacher], 1)]
    return [*student, "avgpool"], [*teacher, "avgpool"]


def recipe(row, name):
    """What the paper and its baselines say, in the form of :func:`recipes.read`."""
    pair, is_alone = PAIRS[name], row.endswith("alone")
    is_mdistillers = not row.endswith("++") and row != "ReviewKD"  # ReviewKD's authors have the recipe of the "++" rows
    drawn = row in ("KD++", "DKD++", "DIST++") and name not in WITH_PROJECTOR
    rates = LARGE if row == "teacher alone" else pair.rates
    return {
        "epochs": 240,
        "student": f"cifar/{pair.teacher if row == 'teacher alone' else pair.student}",
        "teacher": None if is_alone else f"cifar/{pair.teacher}",
        "weights": None if is_alone else f"checkpoints/cifar_teachers/{pair.folder}/ckpt_epoch_240.pth",
        "taps": (None, None) if is_alone else taps(pair),
        "starts": (0.01 if drawn else None, None),
        "losses": {"ce": ("CrossEntropyLoss", {}, 0.1 if row == "KD" else 1, 0, 0)} | TERMS[row](pair),
        "inputs": {"ce": ["student.logits", "target"]},
        "optimizer": ("torch.optim.SGD", rates[is_mdistillers], 0.9, not is_mdistillers, 5e-4),
        "lr_scheduler": ("torch.optim.lr_scheduler.MultiStepLR", [150, 180, 210], 0.1),
        "data": ("ndkd.data.CIFAR100DataModule", 64 if is_mdistillers else 128, 4, True),
    }


ROWS = rows("paper-tables", "CIFAR-100")


def test_the_page_has_every_row():
    assert set(ROWS) == {(pair, row) for pair in PAIRS for row in TERMS}


def test_the_page_uses_every_overlay():
    used = {REPOSITORY / config for arguments in ROWS.values() for config in values_of(("--config",), arguments)}
    there = {
        file for pair in [".", *PAIRS] for file in (REPOSITORY / "configs/cifar100" / pair).glob("overlays/*.yaml")
    }
    assert used == there | {REPOSITORY / f"configs/cifar100/{pair}/kd++.yaml" for pair in PAIRS}


@pytest.mark.parametrize("name", PAIRS)
def test_row_is_the_published_recipe(name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["ndkd"])
    for row in TERMS:
        assert read(resolved(ROWS[name, row])) == recipe(row, name), row


def test_the_file_at_the_top_is_the_pairs(monkeypatch):
    """``cifar_wrn.yaml``, whose name was there before the folders."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["ndkd"])
    top, pair = (resolved(["fit", "--config", name]) for name in ("cifar_wrn.yaml", "cifar100/wrn402_wrn401/kd++.yaml"))
    assert top == pair


def test_images_are_normalised_as_published():
    assert CIFAR100DataModule.mean == (0.5071, 0.4867, 0.4408)
    assert CIFAR100DataModule.std == (0.2675, 0.2565, 0.2761)


def test_rows_have_run_folders_of_their_own():
    folders = {}
    for (name, row), arguments in ROWS.items():
        given = values_of(("--run_dir",), arguments)
        model = PAIRS[name].teacher if row == "teacher alone" else name  # one teacher serves several pairs
        folders[model, row] = given[0] if given else default_run_dir(arguments, seed=0).as_posix()
    assert len(folders) == 58
    assert len(set(folders.values())) == 58
