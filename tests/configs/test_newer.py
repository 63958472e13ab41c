"""Newer methods: the page's commands for CIFAR-100 give the authors' weights, with ND or not; overlays for digits."""

import re
import subprocess
import sys

import pytest
import torch

from ndkd.configuration.arguments import default_run_dir, values_of
from ndkd.distillation import LossTerm, Objective, StepOutput
from ndkd.losses import WKDFLoss
from ndkd.models import FeatureExtractor, build_model
from tests.command import REPOSITORY, ndkd
from tests.configs.recipes import read, resolved, rows
from tests.configs.test_cifar import PAIRS, recipe
from tests.pages import section, shipped, text

TITLE = "Newer methods on CIFAR-100"
ROWS = rows("paper-tables", TITLE)
RECIPES = {"r50_mv2", "r32x4_sv1", "r32x4_sv2"}  # whose students are MobileNets and ShuffleNets
LSKD = dict.fromkeys(PAIRS, (2, 9)) | {"r50_mv2": (3, 1)}  # temperature, weight
# alpha, beta, temperature
DKD_LSKD = dict.fromkeys(PAIRS, (9, 72, 2)) | {
    "r56_r20": (18, 36, 3),
    "wrn402_wrn401": (12, 24, 2),
    "r50_mv2": (15, 30, 2),
}
# the maps that WKD-F compares, of teacher and student
WKDF = dict.fromkeys(PAIRS, ("layer3", "layer3")) | {
    "wrn402_wrn401": ("block3", "block3"),
    "r50_mv2": ("layer4", "blocks.6"),
}
RLD = {"alpha": 1, "beta": 8, "temperature": 4, "alpha_temperature": 4}


def standardised(temperature, **weights):
    return weights | {"temperature": temperature, "standardize": True}


def dkd_lskd(name):
    alpha, beta, temperature = DKD_LSKD[name]
    return standardised(temperature, alpha=alpha, beta=beta)


# By row: the term's name, its class, its options, its weight, its warm-up and the number of its first epoch.
TERMS = {
    "LSKD++": lambda name: ("kd", "KDLoss", standardised(LSKD[name][0]), LSKD[name][1], 0, 0),
    "DKD+LSKD++": lambda name: ("dkd", "DKDLoss", dkd_lskd(name), 1, 20, 1),
    "NKD++": lambda name: ("nkd", "NKDLoss", {"gamma": 3.5, "temperature": 3}, 1, 0, 0),
    "TTM++": lambda name: ("ttm", "TTMLoss", {"gamma": 0.1}, 45, 0, 0),
    "WTTM++": lambda name: ("wttm", "WTTMLoss", {"gamma": 0.2}, 4, 0, 0),
    "RLD++": lambda name: ("rld", "RLDLoss", RLD, 1, 20, 1),
    "WKD-F++": lambda name: ("wkdf", "WKDFLoss", {"mean_weight": 4, "grid": 1}, 0.08, 0, 0),
}
# said in the first line of a file whose weights are not published for its pairs
UNPUBLISHED = {"nkd++": "not published", "ttm++": "not found", "wttm++": "not found", "rld++": "not found"}
UNPUBLISHED |= {
    "wkdf++": "not found",
    "lskd++": "ND weight is not published",
    "dkd+lskd++": "ND weight is not published",
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["ndkd"])


def overlays(folder):
    return set((REPOSITORY / "configs" / folder).glob("**/newer/*.yaml"))


def test_the_page_has_every_row():
    assert set(ROWS) == {(pair, row) for pair in PAIRS for row in TERMS}


def test_the_page_uses_every_overlay():
    used = {REPOSITORY / config for arguments in ROWS.values() for config in values_of(("--config",), arguments)}
    assert {file for file in used if file.parent.name == "newer"} == overlays("cifar100")


@pytest.mark.parametrize("file", sorted(overlays("cifar100")), ids=lambda file: f"{file.parts[-4]}/{file.stem}")
def test_the_first_line_says_what_is_not_published(file):
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert UNPUBLISHED[file.stem] in first
    assert "ND" in first


def wanted(row, name):
    """The recipe of mdistiller's baselines, with the method's term and ND."""
    found = recipe("DKD", name)
    term, kind, options, weight, warmup, first_epoch = TERMS[row](name)
    ce = ("CrossEntropyLoss", {}, 0.1 if row == "LSKD++" else 1, 0, 0)
    found["losses"] = {"ce": ce, term: (kind, options, weight, warmup, first_epoch), "nd": ("NDLoss", {}, 1, 0, 0)}
    if row == "WKD-F++":
        teacher, student = WKDF[name]
        found["taps"] = ([student], [teacher])
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_row_is_the_published_recipe(name):
    """Without ND too: the page's addition changes its weight alone."""
    (weight,) = re.findall(
        r"with `(--model.init_args.losses.nd.weight 0)` and a `--run_dir`", section("paper-tables", TITLE)
    )
    for row in TERMS:
        config = resolved(ROWS[name, row])
        assert read(config) == wanted(row, name), row
        assert config["data"]["init_args"]["batch_size"] == 64
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == (0.01 if name in RECIPES else 0.05)
        without = resolved([*ROWS[name, row], *weight.split()])
        assert without["model"]["init_args"]["losses"]["nd"].pop("weight") == 0
        assert config["model"]["init_args"]["losses"]["nd"].pop("weight") == 1
        assert without == config


def test_rows_have_run_folders_of_their_own():
    folders = {default_run_dir(arguments, seed=0).as_posix() for arguments in ROWS.values()}
    assert len(folders) == len(ROWS) == 42
    assert "runs/cifar100/r56_r20/nkd++,mdistiller" in folders


@pytest.mark.parametrize("name", PAIRS)
def test_the_maps_of_wkdf_are_there(name):
    """At CIFAR's size, with a gradient for the student."""
    models, maps = (PAIRS[name].teacher, PAIRS[name].student), WKDF[name]
    teacher, student = (
        FeatureExtractor(build_model(f"cifar/{model}", 100), taps=[tap])(torch.rand(2, 3, 32, 32))
        for model, tap in zip(models, maps, strict=True)
    )
    objective = Objective({"wkdf": LossTerm(WKDFLoss())})
    step = StepOutput(student, torch.tensor([0, 1]), teacher)
    objective.build(step)
    (gradient,) = torch.autograd.grad(objective(step)[0], student.feature_maps[0])
    assert gradient.any()


# ---- digits -----------------------------------------------------------------------------------------------------

DIGITS = {
    "lskd++": TERMS["LSKD++"],
    "dkd+lskd++": TERMS["DKD+LSKD++"],
    "nkd++": TERMS["NKD++"],
    "ttm++": TERMS["TTM++"],
    "wttm++": TERMS["WTTM++"],
    "rld++": TERMS["RLD++"],
    "wkdf++": TERMS["WKD-F++"],
}


def test_digits_have_an_overlay_for_each():
    assert {file.stem for file in overlays("digits")} == set(DIGITS)


@pytest.mark.parametrize("name", DIGITS)
def test_a_digits_overlay_is_kdpp_with_another_method(name):
    """Its weights are those for ResNet-32x4 → ResNet-8x4, its warm-up that of the other methods on digits."""
    base = resolved(["fit", "--config", "digits/kd++.yaml"])
    config = resolved(["fit", "--config", "digits/kd++.yaml", "--config", f"digits/overlays/newer/{name}.yaml"])
    losses = read(config)["losses"]
    term, kind, options, weight, *_ = DIGITS[name]("r32x4_r8x4")
    ce = ("CrossEntropyLoss", {}, 0.1 if name == "lskd++" else 1, 0, 0)
    assert losses == {"ce": ce, term: (kind, options, weight, 10, 0), "nd": ("NDLoss", {}, 1, 0, 0)}
    for each in (config, base):
        del each["model"]["init_args"]["losses"]
    taps = [config["model"]["init_args"][model].pop("taps") for model in ("teacher", "student")]
    assert taps == ([["layer3"]] * 2 if name == "wkdf++" else [None] * 2)
    assert [base["model"]["init_args"][model].pop("taps") for model in ("teacher", "student")] == [None] * 2
    assert config == base


def test_the_page_has_one_line_for_all_of_them():
    found = " ".join(text("compare-and-report").split())
    (line,) = [line for line in re.findall(r"`(ndkd compare [^`]*)`", found) if "--out runs/digits-newer" in line]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    words = shipped(words.stdout.splitlines())
    status, out, err = ndkd("compare", "--print-commands", *words[2:])
    assert status == 0, err
    names = set(re.findall(r"runs/digits-newer/(\S+?)-seed4", out))
    assert names == {"student", *DIGITS, *(f"{name}-nd0" for name in DIGITS)}
