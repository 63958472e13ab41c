"""YAML that is not what it looks like is refused in one line, before a parser reads it."""

from pathlib import Path

import pytest

from ndkd.configuration.checks import check_config, check_option
from tests.command import ndkd, refusal

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])


YAML = {
    "trainer: 7": "config c.yaml, line 1: trainer: wanted entries, got 7; fill it or leave it out",
    "x: 1\nmodel: 7": "config c.yaml, line 2: model: wanted entries, got 7; fill it or leave it out",
    "data: []": "config c.yaml, line 1: data: wanted entries, got a list; fill it or leave it out",
    "trainer: [max_epochs]": "config c.yaml, line 1: trainer: wanted entries, got a list; fill it or leave it out",
    "trainer:": "config c.yaml, line 1: trainer: wanted entries, got nothing; fill it or leave it out",
    "class_means: null": "config c.yaml, line 1: class_means: wanted entries, got null; fill it or leave it out",
    "- a": "config c.yaml: wanted entries such as trainer and model, got a list",
    "7": "config c.yaml: wanted entries such as trainer and model, got 7",
    "# nothing": "config c.yaml has no entry; see ndkd configs digits/kd++.yaml for one that has",
    "a: 1\nb: 2\na: 3": "config c.yaml: a is given twice, in lines 1 and 3; keep one",
    "m: {x: {y: 1,\n y: 2}}": "config c.yaml: y is given twice, in lines 1 and 2; keep one",
    "m:\n- k: 1\n  k: 2": "config c.yaml: k is given twice, in lines 2 and 3; keep one",
    "&a [*a]": "config c.yaml, line 1: an alias leads back to what it stands in; write the values out",
    "m: &a\n  n: [*a]": "config c.yaml, line 1: an alias leads back to what it stands in; write the values out",
    LAUGHS: "config c.yaml, line 6: wanted at most 100,000 values, aliases written out; leave some out",
    "a: " + "[" * 60 + "]" * 60: "config c.yaml, line 1: wanted values at most 50 deep",
    "a: " + "[" * 9000 + "]" * 9000: "config c.yaml, line 1: wanted values at most 50 deep",
    "a: [": "config c.yaml is not valid YAML: *",
    "a: 1\n---\na: 2": "config c.yaml is not valid YAML: *",
    "? [a]\n: b": "config c.yaml, line 1: wanted a name before the colon, got 'a list'",
    "'': 1": "config c.yaml, line 1: wanted a name before the colon, got 'nothing'",
    "a b: 1": "config c.yaml, line 1: wanted a name before the colon, got 'a b'",
    "optimizer: {}": "config c.yaml, line 1: optimizer: wanted a class_path, got no entry; fill it or leave it out",
    "loss: {init_args: 7}": "config c.yaml, line 1: init_args: wanted entries, got 7; fill it or leave it out",
    "loss: {class_path: [x]}": "config c.yaml, line 1: class_path: wanted the name of a class, got a list",
    "losses: {1: {}}": "config c.yaml, line 1: losses: wanted a word as the name of a term, got 1",
    "losses: {true: {}}": "config c.yaml, line 1: losses: wanted a word as the name of a term, got true",
    "losses: {kd: KDLoss}": "config c.yaml, line 1: losses.kd: wanted entries such as loss and weight, got KDLoss",
}


@pytest.mark.parametrize("text", YAML, ids=lambda text: text[:20])
def test_a_file_that_is_not_what_it_looks_like(folder, text):
    Path("c.yaml").write_text(text)
    message, wanted = refusal(check_config, Path("c.yaml")), YAML[text]
    assert message.startswith(wanted[:-1]) if wanted.endswith("*") else message == wanted


def test_a_file_that_another_names_is_looked_at_too(folder):
    Path("parts").mkdir()
    Path("c.yaml").write_text("model: {init_args: {optimizer: parts/sgd.yaml}}")
    Path("parts/sgd.yaml").write_text("lr: 1\nlr: 2")
    message = "config parts/sgd.yaml: lr is given twice, in lines 1 and 2; keep one"
    assert refusal(check_config, Path("c.yaml")) == message
    Path("parts/sgd.yaml").write_text("lr: ../c.yaml")
    assert "c.yaml, which names it in turn" in refusal(check_config, Path("c.yaml"))


def test_an_option_that_is_not_what_it_looks_like(folder):
    assert "is given twice" in refusal(check_option, "--model={a: 1, a: 2}")
    assert "an alias leads back" in refusal(check_option, "--model=&a [*a]")
    assert "an alias leads back" in refusal(check_option, "{x: &a [*a]}")
    Path("o.yaml").write_text("lr: 1\nlr: 2")
    assert "is given twice" in refusal(check_option, "--model.init_args.optimizer=o.yaml")
    for plain in ("--model={a: 1}", "--data.init_args.root=a[", "--x", "resnet", "--taps=[a, b]", "--y=*a"):
        check_option(plain)


def test_aliases_that_make_sense_and_merged_entries_stay(folder):
    Path("c.yaml").write_text("a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 2}")
    check_config(Path("c.yaml"))


@pytest.mark.parametrize("command", [("fit", "--config", "c.yaml"), ("compare", "c.yaml", "--out", "out")])
def test_the_command_line_says_so(folder, command):
    Path("c.yaml").write_text("a: &a [*a]")
    status, _, err = ndkd(*command)
    assert status == 2
    assert err == "ndkd: config c.yaml, line 1: an alias leads back to what it stands in; write the values out\n"
