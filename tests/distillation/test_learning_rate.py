"""The learning rate of a run that goes on: as if it had not been broken off, or had been planned so from the start."""

from functools import partial

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, SequentialLR

from ndkd.callbacks import RunRecorder, checkpoint_callbacks
from ndkd.errors import NdkdError
from ndkd.runs import Run
from ndkd.schedules import WarmupCosineLR, WarmupMultiStepLR
from tests.distillation.watching import Break, same, unbroken_and_resumed


def plateau(monitor="val/acc1", **options):
    # no improvement is ever enough: every epoch is one too many
    return partial(ReduceLROnPlateau, monitor=monitor, factor=0.5, patience=0, threshold=10, **options)


def warm_then_cosine(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, total_iters=2), CosineAnnealingLR(optimizer, 4)], [2])


@pytest.mark.parametrize(
    ("scheduler", "interval"),
    [
        (plateau("train/loss", threshold_mode="abs"), "epoch"),
        (plateau(cooldown=1), "epoch"),
        (partial(CosineAnnealingLR, T_max=4), "epoch"),
        (partial(OneCycleLR, max_lr=0.1, total_steps=None), "step"),
        (partial(WarmupCosineLR, total_steps=None, warmup=0.3), "step"),
        (warm_then_cosine, "epoch"),
    ],
)
@pytest.mark.parametrize("breaks", [1, 3])
def test_broken_off_and_resumed(fit, make_module, terms, tmp_path, capsys, scheduler, interval, breaks):
    def make():
        return make_module(terms("ce"), lr_scheduler=scheduler, lr_interval=interval)

    unbroken, resumed = unbroken_and_resumed(fit, make, tmp_path, breaks=breaks)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(unbroken[part], resumed[part]), part
    rates = [[row["train/lr"] for row in Run(tmp_path / name).metrics()] for name in ("unbroken", "broken")]
    assert len(set(rates[0])) > 1
    assert rates[0] == rates[1]
    assert "learning rate" not in capsys.readouterr().out


def rates_of(fit, make, run, epochs, resume=False):
    kept = RunRecorder(run, "{}"), *checkpoint_callbacks(run)
    fit(make(), *kept, epochs=epochs, ckpt_path=run.checkpoint("last") if resume else None)
    return [float(row["train/lr"]) for row in run.metrics()]


LONGER = [
    (lambda n: partial(OneCycleLR, max_lr=0.1, total_steps=None), "step"),
    (lambda n: partial(OneCycleLR, max_lr=0.1, total_steps=None), "epoch"),
    (lambda n: partial(OneCycleLR, max_lr=0.1 * n, total_steps=99), "step"),
    (lambda n: partial(WarmupCosineLR, total_steps=None, warmup=0.3), "step"),
    (lambda n: partial(CosineAnnealingLR, T_max=n), "epoch"),
    (lambda n: partial(WarmupMultiStepLR, milestones=[99], warmup_steps=3 * n), "step"),
    (lambda n: lambda o: SequentialLR(o, [LinearLR(o, total_iters=1), CosineAnnealingLR(o, n)], [1]), "epoch"),
]


@pytest.mark.parametrize(("scheduler", "interval"), LONGER)
@pytest.mark.parametrize(("planned", "then"), [(2, 4), (5, 3)])
def test_another_length_than_planned(fit, make_module, terms, tmp_path, capsys, scheduler, interval, planned, then):
    """From there on the rate is that of a run that was planned so."""

    def make(epochs):
        return make_module(terms("ce"), lr_scheduler=scheduler(epochs), lr_interval=interval)

    wanted = rates_of(fit, lambda: make(then), Run(tmp_path / "whole"), then)
    run = Run(tmp_path / "changed")
    if planned == 5:
        kept = Break(2), RunRecorder(run, "{}"), *checkpoint_callbacks(run)
        with pytest.raises(SystemExit):
            fit(make(planned), *kept, epochs=planned)
        before = [float(row["train/lr"]) for row in run.metrics()]
    else:
        before = rates_of(fit, lambda: make(planned), run, planned)
    capsys.readouterr()
    rates = rates_of(fit, lambda: make(then), run, then, resume=True)
    assert rates == pytest.approx([*before[:2], *wanted[2:]], rel=1e-5)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("ndkd: from epoch 2 on the learning rate follows ")
    assert f"as configured now: {wanted[2]:.4g}, in the run so far " in said[0]


def test_a_schedule_without_a_length_is_the_same_however_long(fit, make_module, terms, tmp_path, capsys):
    def make():
        return make_module(terms("ce"), lr_scheduler=partial(MultiStepLR, milestones=[1, 3]))

    run = Run(tmp_path)
    rates_of(fit, make, run, 2)
    assert rates_of(fit, make, run, 4, resume=True) == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert capsys.readouterr().out == ""


def test_a_plateau_takes_its_present_options(fit, make_module, terms, tmp_path):
    run = Run(tmp_path)
    rates_of(fit, lambda: make_module(terms("ce"), lr_scheduler=plateau()), run, 2)
    patient = partial(ReduceLROnPlateau, monitor="val/acc1", factor=0.1, patience=0, threshold=10)
    rates = rates_of(fit, lambda: make_module(terms("ce"), lr_scheduler=patient), run, 4, resume=True)
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.0025])


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (plateau("val/acc2"), {}, "lr_scheduler.monitor: nothing measures val/acc2; did you mean val/acc"),
        (
            plateau("features/angle_mean"),
            {},
            "lr_scheduler ReduceLROnPlateau: monitor: features/angle_mean is measured",
        ),
        (
            plateau(),
            {"limit_val_batches": 0},
            "lr_scheduler .*: monitor: there is no val/acc1 without validation images",
        ),
        (torch.optim.lr_scheduler.ReduceLROnPlateau, {}, "lr_scheduler ReduceLROnPlateau: monitor: wanted the name of"),
    ],
)
def test_a_metric_that_there_will_not_be(fit, make_module, terms, scheduler, options, message):
    with pytest.raises(NdkdError, match=f"^{message}"):
        fit(make_module(terms("ce"), lr_scheduler=scheduler), **options)


def test_a_plateau_is_no_matter_of_steps(fit, make_module, terms):
    with pytest.raises(NdkdError, match="val/acc1 is measured once an epoch; set lr_interval: epoch$"):
        fit(make_module(terms("ce"), lr_scheduler=plateau(), lr_interval="step"))


def test_a_plateau_of_every_other_epoch(fit, make_module, terms, tmp_path):
    run, module = Run(tmp_path), make_module(terms("ce"), lr_scheduler=plateau())
    fit(module, RunRecorder(run, "{}"), *checkpoint_callbacks(run), epochs=6, check_val_every_n_epoch=2)
    rates = [float(row["train/lr"]) for row in run.metrics()]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
