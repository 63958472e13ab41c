"""Gradients of the loss terms in a run, which they leave as it is."""

import csv

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from ndkd.callbacks import RunRecorder, TeacherCache, TermGradients, checkpoint_callbacks
from ndkd.models import ModelConfig
from ndkd.runs import Run
from tests.command import SHORT, ndkd, refusal
from tests.distillation.watching import assert_equal, copied
from tests.tiny_data import TAPS

NAMES = {f"grad/{term}/{kind}" for term in ("ce", "kd", "nd") for kind in ("norm", "cosine_to_ce")}


class Gradients(L.Callback):
    """The norms of the gradients that a step without other terms leaves."""

    def __init__(self):
        self.norms = []

    def on_after_backward(self, trainer, pl_module):
        gradients = [p.grad.flatten() for p in pl_module.student.parameters()]
        self.norms.append(torch.cat(gradients).norm().item())


@pytest.mark.parametrize("narrow", [False, True])
def test_a_run_is_the_same_with_it(fit, make_module, terms, narrow):
    modules = []
    for callbacks in ([], [TermGradients(every_n_steps=1)]):
        modules.append(make_module(terms("ce", "kd", "nd"), narrow=narrow))
        fit(modules[-1], *callbacks, epochs=2)
    assert_equal(copied(modules[0]), copied(modules[1]))


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_nor_otherwise(fit, make_module, terms, options):
    modules = []
    for callbacks in ([], [TermGradients(every_n_steps=1)]):
        modules.append(make_module(terms("ce", "kd", "nd")))
        fit(modules[-1], *callbacks, epochs=2, **options)
    assert_equal(copied(modules[0]), copied(modules[1]))


def test_it_measures_what_a_step_leaves(fit, make_module, terms):
    """Of one term, the norm of its gradient."""
    watch = Gradients()
    trainer = fit(make_module(terms("kd")), TermGradients(every_n_steps=1), watch)
    assert trainer.callback_metrics["grad/kd/norm"].item() == pytest.approx(watch.norms[-1], rel=1e-4)
    assert -1 <= trainer.callback_metrics["grad/kd/cosine_to_ce"].item() <= 1


def test_it_is_logged_at_the_steps_that_are_asked_for(fit, make_module, terms, tmp_path):
    logger = CSVLogger(tmp_path, "", "")
    fit(make_module(terms("ce", "kd", "nd")), TermGradients(every_n_steps=4), epochs=3, logger=logger)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    measured = [row for row in rows if row["grad/nd/norm"]]
    assert [int(row["step"]) for row in measured] == [0, 4, 8]
    assert all(row[name] for row in measured for name in NAMES)
    assert float(measured[0]["grad/ce/cosine_to_ce"]) == pytest.approx(1)


def test_an_epoch_without_a_measured_step_has_none(fit, make_module, terms, tmp_path):
    run = Run(tmp_path / "run")
    callbacks = TermGradients(every_n_steps=6), RunRecorder(run, "{}"), *checkpoint_callbacks(run)
    fit(make_module(terms("ce", "kd", "nd")), *callbacks, epochs=4)  # of three steps
    assert [bool(row["grad/nd/norm"]) for row in run.metrics()] == [True, False, True, False]


def test_several_batches_of_a_step_are_measured_once(fit, make_module, terms, monkeypatch, tmp_path):
    logger = CSVLogger(tmp_path, "", "")
    options = {"accumulate_grad_batches": 3, "logger": logger}
    fit(make_module(terms("ce", "kd")), TermGradients(every_n_steps=1), epochs=2, **options)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert len([row for row in rows if row["grad/kd/norm"]]) == 2


def test_a_recorded_teacher_is_not_asked_again(fit, make_module, terms, tmp_path):
    for _ in range(2):
        trainer = fit(make_module(terms("ce", "kd")), TeacherCache(tmp_path / "cache"), TermGradients(1))
        assert trainer.callback_metrics["grad/kd/norm"] > 0


def test_a_compiled_student_is_left_alone(fit, make_module, terms, capsys, monkeypatch):
    monkeypatch.setattr("ndkd.distillation.building.compile_model", lambda *given, **options: None)
    student = ModelConfig("cifar/resnet8", taps=TAPS, compile="default")
    trainer = fit(make_module(terms("ce", "kd"), student=student), TermGradients(every_n_steps=1))
    assert "grad/kd/norm" not in trainer.callback_metrics
    assert "ndkd: no gradients of the loss terms: the graph of a compiled student" in capsys.readouterr().out


def test_an_interval_that_is_none():
    assert refusal(TermGradients, 0) == "TermGradients: every_n_steps: wanted at least 1, got 0"


def test_a_configuration_can_ask_for_it_and_its_run_is_tested_later(workplace):
    callback = "[{class_path: TermGradients, init_args: {every_n_steps: 2}}]"
    weight = "--model.init_args.losses.nd.weight.auto=0.2"
    given = "--trainer.callbacks", callback, weight, *SHORT, "--trainer.max_epochs=1", "--run_dir", "runs/gradients"
    status, _, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", *given)
    assert status == 0, err
    run = Run("runs/gradients")
    assert {name for name, value in run.metrics()[0].items() if value} >= NAMES
    status, _, err = ndkd("test", "--ckpt_path", run.checkpoint("last"))
    assert status == 0, err
    status, out, err = ndkd("fit", "--config", run.config, "--trainer.max_epochs=2", "--ckpt_path", "last")
    assert status == 0, err
    assert f"{run.status()['weights']['nd']:g}·nd (share 0.2)" in out
