"""Empty entries with names that nobody knows."""

from pathlib import Path

import pytest

from ndkd.configuration.empty_entries import check_arguments, check_blocks
from tests.command import refusal

OPTIONS = ["run_dir", "model", "data", "trainer.max_epochs", "trainer.callbacks"]
CLASSES = {
    "model": {"class_path": "own.Module", "init_args": {"student.name": "a", "student.kwargs": {}, "decay": "all"}}
}


@pytest.mark.parametrize(
    ("text", "entry", "hint"),
    [
        ("modle: {}", "modle", "model"),
        ("run_dri:", "run_dri", "run_dir"),
        ("trainer: {calbacks: {}}", "trainer.calbacks", "callbacks"),
        ("model: {init_arg: {}}", "model.init_arg", "init_args"),
    ],
)
def test_blocks(folder, text, entry, hint):
    Path("a.yaml").write_text(text)
    assert refusal(check_blocks, ["a.yaml"], OPTIONS).startswith(
        f"config a.yaml: there is no entry {entry}; did you mean {hint}"
    )


@pytest.mark.parametrize(
    ("text", "entry", "hint"),
    [
        ("{studnet: {}}", "studnet", "student"),
        ("{student: {nmae:}}", "student.nmae", "name"),
    ],
)
def test_arguments(folder, text, entry, hint):
    Path("a.yaml").write_text(f"model: {{init_args: {text}}}")
    wanted = f"config a.yaml: there is no entry model.init_args.{entry}; did you mean {hint}?"
    assert refusal(check_arguments, ["a.yaml"], CLASSES) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {callbacks:, max_epochs: {}}\nmodel: {init_args: {student: {kwargs: {}}, decay:}}",
        "data: {init_args: {}}",
        "model: {class_path: own.Other, init_args: {its_own: {}}}",
        "model: own.Module",
        "model: {init_args: {student: {kwargs: {width: {}}}}}",
    ],
)
def test_what_is_known_or_may_be_is_left_alone(folder, text):
    Path("a.yaml").write_text(text)
    check_blocks(["a.yaml"], OPTIONS)
    check_arguments(["a.yaml"], CLASSES)
