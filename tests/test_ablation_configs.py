"""The paper's ablation: README's lines for it, and what each overlay resolves to."""

import copy
import functools
import re
import subprocess
import sys

import pytest
import yaml
from command import REPOSITORY
from recipes import resolved

from ndkd.cli import values_of
from ndkd.compare_plan import _name

TERMS = {
    "cosine": ("CosineLoss", {}),
    "infonce": ("InfoNCELoss", {"temperature": 0.1}),
    "sifn": ("SIFNLoss", {"step": 1}),
    "l2": ("L2Loss", {}),
    "nd": ("NDLoss", {}),
}
SETS = {"digits": ("configs/digits/kd.yaml", 1), "r56_r20": ("configs/cifar_r56_r20.yaml", 2)}  # base, weight of ND
OVERLAYS = [f"{top}{name}" for top in ("", "kd+") for name in TERMS]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["ndkd"])


def test_there_are_no_others():
    found = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "configs/ablation").rglob("*.yaml")}
    assert found == {f"configs/ablation/{folder}/{name}.yaml" for folder in SETS for name in OVERLAYS}


@pytest.fixture(scope="module")
def base_of():
    """What a set's base configuration resolves to, once."""
    return functools.cache(lambda folder: resolved(["fit", "--config", SETS[folder][0]]))


@pytest.mark.parametrize("folder", SETS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_cross_entropy_kd_or_not_and_one_term(base_of, folder, name):
    base, weight = SETS[folder]
    term = name.removeprefix("kd+")
    losses = yaml.safe_load((REPOSITORY / f"configs/ablation/{folder}/{name}.yaml").read_text())
    assert losses.keys() == {"model"}
    assert losses["model"].keys() == {"init_args"}
    assert losses["model"]["init_args"].keys() == {"losses"}
    plain = copy.deepcopy(base_of(folder))
    config = resolved(["fit", "--config", base, "--config", f"configs/ablation/{folder}/{name}.yaml"])
    before, after = (each["model"]["init_args"].pop("losses") for each in (plain, config))
    assert config == plain
    kept = {"ce", "kd"} if name != term else {"ce"}
    assert after.keys() == kept | {term}
    for each in kept:
        assert after[each] == before[each]
    kind, options = TERMS[term]
    found = after[term]["loss"]
    assert (found["class_path"], found.get("init_args") or {}) == (f"ndkd.losses.{kind}", options)
    assert (after[term]["weight"], after[term]["warmup_epochs"], after[term]["inputs"]) == (weight, 0, None)


@pytest.mark.parametrize("folder", SETS)
def test_readme_has_a_line_whose_rows_read_well(folder):
    text = " ".join((REPOSITORY / "README.md").read_text().split())
    lines = [line for line in re.findall(r"`(ndkd compare [^`]*)`", text) if f"ablation/{folder}/kd+" in line]
    assert len(lines) == 1
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {lines[0]}"], capture_output=True, text=True, check=True)
    words = words.stdout.splitlines()
    assert values_of(("--out",), words)
    names = [_name(word) for word in words if word.endswith(".yaml") and not word.endswith("teacher.yaml")]
    assert set(OVERLAYS) < set(names)
    assert len(set(names)) == len(names)
