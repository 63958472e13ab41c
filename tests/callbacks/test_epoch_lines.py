"""What a file is told of a training, and that a terminal has its bars."""

import io
import re

import pytest
from lightning.pytorch.callbacks import Timer, TQDMProgressBar

from ndkd.callbacks.epoch_lines import EpochLines, wants_lines
from tests.command import SHORT, in_terminal, ndkd

ONE_BATCH = [f"--trainer.limit_{stage}_batches=1" for stage in ("train", "val", "test")]
FIT = ["fit", "--config", "configs/digits/kd++.yaml", *SHORT, *ONE_BATCH]
BAR = "\r"  # to the line's begin, from which it is drawn anew


def lines_of(out):
    return [line for line in out.splitlines() if line.startswith("epoch ")]


def test_a_file_gets_a_line_an_epoch(workplace):
    status, out, err = ndkd(*FIT, "--run_dir=runs/lines")
    assert (status, err) == (0, "")
    assert BAR not in out
    form = r"epoch {} \({}/2\): train loss \d\.\d{{4}}, validation accuracy \d+\.\d\d%, \d+\.\d s, \d\d:\d\d left"
    first, second = lines_of(out)
    assert re.fullmatch(form.format(0, 1), first)
    assert re.fullmatch(form.format(1, 2), second)
    assert second.endswith(", 00:00 left")


def test_a_terminal_has_bars_of_class_means_and_of_epochs(workplace):
    status, sent = in_terminal(*FIT, "--run_dir=runs/bars")
    assert status == 0
    assert f"{BAR}class means: " in sent
    assert f"{BAR}Epoch 1: " in sent, repr(sent[-1500:])
    assert not lines_of(sent)


@pytest.mark.parametrize(
    ("option", "bars"),
    [
        ("--trainer.enable_progress_bar=true", ["class means: ", "Epoch 1: "]),
        ("--trainer.enable_progress_bar=false", []),
        ("--trainer.callbacks+=TQDMProgressBar", ["class means: ", "Epoch 1: "]),
    ],
)
def test_what_is_asked_for_is_shown_in_a_file_too(workplace, option, bars):
    status, out, err = ndkd(*FIT, f"--run_dir=runs/{option.rpartition('.')[2]}", option)
    assert status == 0
    assert not lines_of(out)
    assert (BAR in out + err) == bool(bars)
    assert all(bar in out + err for bar in bars)


def test_measuring_draws_no_bars_in_a_file(workplace):
    run = ["--config", "configs/digits/teacher.yaml", *ONE_BATCH[1:]]
    for command in (["validate"], ["test"], ["fit", "--trainer.fast_dev_run=true"]):
        status, out, err = ndkd(*command, *run)
        assert status == 0, err
        assert BAR not in out + err


def test_an_epoch_without_validation_has_no_accuracy(fit, make_module, terms, capsys):
    fit(make_module(terms("ce")), EpochLines(), epochs=2, check_val_every_n_epoch=2)
    first, second = lines_of(capsys.readouterr().out)
    assert "validation accuracy" not in first
    assert "validation accuracy" in second


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"max_steps": 6}, r" \d\d:\d\d left$"),
        ({"max_steps": 10**6, "callbacks": [Timer("00:00:00:01")]}, r" 00:0[01] left$"),
    ],
)
def test_what_is_left_of_steps_or_of_the_time(fit, make_module, terms, capsys, limits, left):
    fit(make_module(terms("ce")), EpochLines(), *limits.pop("callbacks", ()), epochs=-1, **limits)
    first, *_ = lines_of(capsys.readouterr().out)
    assert first.startswith("epoch 0: train loss ")
    assert re.search(left, first)


def test_ones_own_bar_stays_the_only_one(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    options = {"enable_progress_bar": None, "callbacks": None}
    assert wants_lines(options)
    assert not wants_lines(options | {"callbacks": TQDMProgressBar()})
    assert not wants_lines(options | {"callbacks": [Timer("00:00:01:00"), TQDMProgressBar()]})


def test_only_the_first_process_prints(fit, make_module, terms, capsys):
    lines = EpochLines()
    lines.disable()
    fit(make_module(terms("ce")), lines)
    assert not lines_of(capsys.readouterr().out)
