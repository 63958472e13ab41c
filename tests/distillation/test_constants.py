"""Teacher and class means are no part of what is trained, averaged and stored."""

from copy import deepcopy

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)

from ndkd.callbacks import RunRecorder, checkpoint_callbacks
from ndkd.errors import NdkdError
from ndkd.runs import Run
from tests.distillation.watching import Watch, assert_equal, copied, same, unbroken_and_resumed

DECAY = 0.9


class Averages(L.Callback):
    """What the averages of a student's weights must be, computed beside the training."""

    def on_train_start(self, trainer, pl_module):
        self.kept = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = {name: value.clone() for name, value in pl_module.student.named_parameters()}
        if self.kept is None:
            self.kept = now
        self.kept = {name: DECAY * self.kept[name] + (1 - DECAY) * now[name] for name in now}


def averaging():
    return [EMAWeightAveraging(decay=DECAY)]


def of_student(weights):
    return {name.removeprefix("student."): value for name, value in weights.items() if name.startswith("student.")}


def test_a_copy_has_neither_teacher_nor_class_means(fit, make_module, terms):
    module = make_module(terms("ce", "nd"))
    fit(module)
    copy = deepcopy(module)
    assert (copy.teacher, copy.class_means) == (None, None)
    assert_equal(copied(copy), copied(module))


def test_they_follow_to_another_precision(fit, make_module, terms):
    module = make_module(terms("ce", "nd"))
    fit(module)
    module.double()
    assert {tensor.dtype for tensor in (*module.teacher.parameters(), module.class_means)} == {torch.float64}


def test_averages_are_evaluated_tested_and_stored(fit, make_module, terms, tiny_data, tmp_path):
    module, run, averages, watch = make_module(terms("ce", "kd", "nd"), narrow=True), Run(tmp_path), Averages(), Watch()
    kept = RunRecorder(run, "{}"), *checkpoint_callbacks(run)
    trainer = fit(module, averages, watch, *averaging(), *kept, epochs=3)
    contents = {name: torch.load(run.checkpoint(name), weights_only=True) for name in ("last", "best")}
    stored = of_student(contents["last"]["state_dict"])
    for name, value in averages.kept.items():
        torch.testing.assert_close(stored[name], value)
    trained = contents["last"]["current_model_state"]
    assert not torch.equal(of_student(trained)["model.conv1.weight"], stored["model.conv1.weight"])
    assert not [name for name in (*stored, *trained) if "teacher" in name or name == "class_means"]
    assert torch.equal(contents["last"]["state_dict"]["class_means"], module.class_means)
    assert_equal(copied(module.teacher), watch.teacher)

    for name, content in contents.items():  # the very trainer that has trained
        metrics = trainer.test(module, datamodule=tiny_data(), ckpt_path=run.checkpoint(name), verbose=False)[0]
        assert_equal(copied(module.student), of_student(content["state_dict"]))
        row = run.metrics()[content["epoch"]]
        assert metrics["test/cross_entropy"] == pytest.approx(float(row["val/cross_entropy"]), rel=1e-5)


@pytest.mark.parametrize("callbacks", [averaging, lambda: [WeightAveraging()]])
def test_a_resumed_average(fit, make_module, terms, tmp_path, callbacks):
    def make():
        return make_module(terms("ce", "kd", "nd"), narrow=True)

    unbroken, resumed = unbroken_and_resumed(fit, make, tmp_path, callbacks)
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert same(unbroken[part], resumed[part]), part


def test_without_averages_a_run_goes_on_with_its_trained_weights(fit, make_module, terms, tmp_path):
    run, watch = Run(tmp_path), Watch()
    fit(make_module(terms("ce")), *averaging(), RunRecorder(run, "{}"), *checkpoint_callbacks(run))
    trained = torch.load(run.checkpoint("last"), weights_only=True)["current_model_state"]
    fit(make_module(terms("ce")), watch, epochs=2, ckpt_path=run.checkpoint("last"))
    assert_equal(watch.start, of_student(trained))


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (StochasticWeightAveraging(swa_lrs=0.1), "StochasticWeightAveraging cannot be used: it copies .*EMAWeightAver"),
        (BackboneFinetuning(), "BackboneFinetuning cannot be used: it wants a module .*; use ndkd.callbacks.Freezing"),
    ],
)
def test_callbacks_that_cannot_work(fit, make_module, terms, callback, message):
    module = make_module(terms("ce"))
    with pytest.raises(NdkdError, match=f"^trainer.callbacks: {message}"):
        fit(module, callback)
    assert module.student is None
