"""The paper's ablation: the page's lines for it, and what each overlay resolves to."""

import copy
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ndkd.commands.compare_plan import _name
from ndkd.configuration.arguments import values_of
from tests.command import REPOSITORY
from tests.configs.recipes import resolved
from tests.pages import shipped
from tests.pages import text as text_of

TERMS = {
    "cosine": ("CosineLoss", {"eps": 1e-08}),
    "infonce": ("InfoNCELoss", {"temperature": 0.1}),
    "sifn": ("SIFNLoss", {"step": 1}),
    "l2": ("L2Loss", {}),
    "nd": ("NDLoss", {"eps": 1e-08}),
}
ALONE, ON_KD = [*TERMS], ["kd", *(f"kd+{name}" for name in TERMS)]
SETS = {  # folder: the configuration below the overlays, weight of ND, overlays
    "digits": ("digits/kd.yaml", 1, [*ALONE, *ON_KD[1:]]),
    "cifar100/r56_r20": ("cifar100/r56_r20/kd++.yaml", 2, [*ALONE, *ON_KD]),
    "cifar100/r56_r20_short": ("cifar100/r56_r20_short/kd++.yaml", 2, ON_KD),  # with those of r56_r20 without KD
}
OVERLAYS = [(folder, name) for folder, (_, _, names) in SETS.items() for name in names]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["ndkd"])


def overlay(folder, name):
    return f"configs/{folder}/overlays/ablation/{name}.yaml"


def test_there_are_no_others():
    found = {file.relative_to(REPOSITORY).as_posix() for file in REPOSITORY.glob("configs/**/ablation/*.yaml")}
    assert found == {overlay(folder, name) for folder, name in OVERLAYS}


@pytest.fixture(scope="module")
def base_of():
    """What a set's base configuration resolves to, once."""
    return functools.cache(lambda folder: resolved(["fit", "--config", SETS[folder][0]]))


@pytest.mark.parametrize(("folder", "name"), OVERLAYS)
def test_an_overlay_is_cross_entropy_kd_or_not_and_one_term(base_of, folder, name):
    base, weight, _ = SETS[folder]
    file = overlay(folder, name)
    content = yaml.safe_load((REPOSITORY / file).read_text())
    assert [*content, *content["model"], *content["model"]["init_args"]] == ["model", "init_args", "losses"]
    plain, config = copy.deepcopy(base_of(folder)), resolved(["fit", "--config", base, "--config", file])
    before, after = (each["model"]["init_args"].pop("losses") for each in (plain, config))
    assert config.pop("published") is None  # the published figure is of the base's own terms
    plain.pop("published")
    assert config == plain
    kept = {"ce", "kd"} if name.startswith("kd") else {"ce"}
    terms = {name.rpartition("+")[2]} - {"kd"}
    assert after.keys() == kept | terms
    for each in kept:
        assert after[each] == before[each]
    for term in terms:
        kind, options = TERMS[term]
        found = after[term]["loss"]
        assert (found["class_path"], found.get("init_args") or {}) == (f"ndkd.losses.{kind}", options)
        assert (after[term]["weight"], after[term]["warmup_epochs"], after[term]["inputs"]) == (weight, 0, None)


@pytest.mark.parametrize("folder", SETS)
def test_the_page_has_a_line_whose_rows_read_well(folder):
    text = " ".join(text_of("compare-and-report").split())
    lines = [
        line
        for line in re.findall(r"`(ndkd compare [^`]*)`", text)
        if f"--out runs/{Path(folder).name}-ablation" in line
    ]
    assert len(lines) == 1
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {lines[0]}"], capture_output=True, text=True, check=True)
    words = shipped(words.stdout.splitlines())
    assert values_of(("--out",), words)
    names = [_name(word) for word in words if word.endswith(".yaml") and not word.endswith("teacher.yaml")]
    assert {*ALONE, *ON_KD} < set(names)
    assert len(set(names)) == len(names)
