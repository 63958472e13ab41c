"""A page on one class: its options with types, defaults and what they mean, and nothing of torch.nn."""

import re

import pytest

from ndkd.commands.class_help import KNOWN, asked_for
from tests.command import ndkd

CASES = [(block, name) for block, classes in KNOWN.items() for name in classes]


@pytest.mark.parametrize(("block", "name"), CASES)
def test_a_page_for_every_class(block, name):
    status, page, err = ndkd("fit", f"--{block}.help", name)
    assert (status, err) == (0, "")
    lines = page.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 118
    assert lines[0].startswith(f"{name}: ")
    options = [line.split(maxsplit=1) for line in lines if re.match(r"  \w", line)]
    undescribed = [option for option, says in options if says.startswith("(")]
    assert undescribed == [], "its docstring does not say what it is"


def test_types_defaults_and_docstrings():
    page = " ".join(asked_for(["fit", "--model.help", "DistillationModule"]).split())
    assert "student how to build the student, or a ready model (ModelConfig | Module, required)" in page
    assert "lr_interval whether the scheduler steps every epoch or every step; total_steps are filled in " in page
    assert "(epoch|step, default epoch)" in page
    assert "channels_last memory layout of images and convolutions" in page
    assert "--model.init_args.losses.NAME.… loss a loss of ndkd.losses or of torch.nn (Module, required)" in page
    of_models = [f"--model.init_args.{name}.…" for name in ("student", "teacher", "teachers.NAME")]
    assert f"{', '.join(of_models)} name " in page


def test_options_of_the_parent_are_among_a_detectors():
    pages = [asked_for([f"--model.help={name}"]) for name in ("DistillationModule", "DetectionDistillationModule")]
    names = [set(re.findall(r"^  (\w+)", page, re.MULTILINE)) for page in pages]
    assert names[1] == names[0]


def test_a_class_of_ones_own(tmp_path, monkeypatch):
    code = 'from ndkd.data import DigitsDataModule\n\nclass Mine(DigitsDataModule):\n    """My digits."""\n'
    (tmp_path / "my_digits.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    page = asked_for(["--data.help", "my_digits.Mine"])
    assert page.startswith("Mine: My digits.\n")
    assert "train_size" in page


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        (
            "model",
            "DistilationModule",
            "there is no LightningModule DistilationModule; did you mean DistillationModule",
        ),
        ("data", "Digits", "there is no LightningDataModule Digits; did you mean DigitsDataModule?"),
        ("data", "torch.nn.Linear", "there is no LightningDataModule torch.nn.Linear; known: "),
        ("model", "no.such.Module", "there is no LightningModule no.such.Module; did you mean "),
    ],
)
def test_an_unknown_class_is_one_line(option, name, said):
    status, out, err = ndkd("fit", f"--{option}.help", name)
    assert (status, out) == (2, "")
    assert err.startswith(f"ndkd: --{option}.help: {said}")
    assert err.count("\n") == 1


def test_without_a_class_those_that_there_are():
    assert asked_for(["fit", "--model.help"]) == (
        "give a class to --model.help: DistillationModule, DetectionDistillationModule"
    )


def test_no_page_unless_asked_for():
    assert asked_for(["fit", "--config", "model.help"]) is None
