"""What goes into a checkpoint and comes back."""

import re
from functools import partial

import lightning.pytorch as L
import pytest
import torch

from ndkd.callbacks import checkpoint_callbacks
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError
from ndkd.models import ModelConfig
from ndkd.runs import Run
from tests.distillation.watching import (
    assert_equal,
)


@pytest.fixture
def trained(fit, make_module, terms, tmp_path):
    """A module with a projector and fusions, and the file of its last checkpoint."""
    run, module = Run(tmp_path), make_module(terms("ce", "kd", "nd", "review"), narrow=True)
    fit(module, *checkpoint_callbacks(run))
    return module, run.checkpoint("last")


def is_primitive(value):
    if isinstance(value, dict):
        return all(is_primitive(part) for part in (*value, *value.values()))
    if isinstance(value, list):
        return all(map(is_primitive, value))
    return value is None or type(value) in (bool, int, float, str)


def test_content_of_a_checkpoint(trained):
    module, file = trained
    content = torch.load(file, weights_only=True)
    parts = {key.split(".")[0] for key in content["state_dict"]}
    assert parts == {"student", "projector", "objective", "class_means"}
    torch.testing.assert_close(content["state_dict"]["class_means"], module.class_means, rtol=0, atol=0)
    stored = content["hyper_parameters"]
    assert is_primitive(stored)
    assert stored["format"] == 1
    assert stored["num_classes"] == 10
    assert stored["class_names"] == [f"class {k}" for k in range(10)]
    assert stored["student"]["name"] == "cifar/resnet8"
    assert stored["student"]["kwargs"] == {"widths": [8, 8, 8, 16]}
    assert stored["student"]["mean"] == [0.4, 0.5, 0.6]
    assert stored["student"]["std"] == [0.2, 0.3, 0.2]


def test_loading_needs_no_teacher_and_no_losses(trained, tiny_data):
    module, file = trained
    loaded = DistillationModule.load_from_checkpoint(file, weights_only=True)
    assert loaded.teacher is None
    images = next(iter(tiny_data().val_dataloader()))[0]
    logits = [m.eval().student(images.to(memory_format=torch.channels_last)).logits for m in (module, loaded)]
    assert torch.equal(*logits)
    assert torch.equal(loaded.class_means, module.class_means)
    assert loaded.class_names == [f"class {k}" for k in range(10)]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (ModelConfig("cifar/resnet14", kwargs={"widths": [8, 8, 8, 16]}),
         "the checkpoint does not fit the model; missing: student.model.layer1.1.conv1.weight, "),
        (ModelConfig("cifar/resnet8", kwargs={"widths": [8, 8, 8, 24]}),
         "the checkpoint does not fit the model; wrongly shaped: student.model.layer3.0.conv1.weight (16, 8, 3, 3) "
         "instead of (24, 8, 3, 3), "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoint_of_another_architecture(
    trained, make_module, make_trainer, terms, tiny_data, student, message, command
):
    module = make_module(terms("ce"), student=student)
    entry = getattr(make_trainer(epochs=2), command)
    with pytest.raises(NdkdError, match=f"^{re.escape(message)}"):
        entry(module, datamodule=tiny_data(), ckpt_path=trained[1], weights_only=True)


def test_configuration_that_differs_from_the_checkpoint(trained, make_module, make_trainer, terms, tiny_data, capsys):
    kwargs, taps = {"widths": [8, 8, 8, 16]}, ["layer1", "layer2", "layer3", "avgpool"]
    for mean, said in (
        (None, ""),
        (
            [0.5, 0.5, 0.5],
            "ndkd: student.mean is [0.5, 0.5, 0.5] in the configuration, [0.4, 0.5, 0.6] in the checkpoint\n",
        ),
    ):
        config = ModelConfig("cifar/resnet8", taps=taps, mean=mean, std=mean and [0.2, 0.3, 0.2], kwargs=kwargs)
        module = make_module(terms("ce"), student=config)
        make_trainer().test(module, datamodule=tiny_data(), ckpt_path=trained[1], weights_only=True, verbose=False)
        assert capsys.readouterr().out == said
    assert module.student.mean.flatten().tolist() == [0.5, 0.5, 0.5]


class Shuffled(L.Callback):
    """Uses up random numbers before training, as another process would have."""

    def on_train_start(self, trainer, pl_module):
        torch.rand(7)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_resume_is_bit_identical(fit, make_module, terms, tiny_data, tmp_path, stopped_after):
    schedule = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[1, 2])

    def run(folder, epochs, *callbacks, ckpt_path=None):
        module = make_module(terms("ce", "kd", "nd", "review"), narrow=True, lr_scheduler=schedule)
        callbacks = (*checkpoint_callbacks(Run(tmp_path / folder)), *callbacks)
        trainer = fit(module, *callbacks, data=tiny_data(pad=1), epochs=epochs, ckpt_path=ckpt_path)
        return module.state_dict(), dict(trainer.callback_metrics), trainer.optimizers[0].state_dict()["state"]

    unbroken = run("unbroken", 3)
    run("resumed", stopped_after)
    resumed = run("resumed", 3, Shuffled(), ckpt_path=Run(tmp_path / "resumed").checkpoint("last"))
    assert_equal(unbroken[0], resumed[0])
    assert_equal(unbroken[1], resumed[1])
    for number, state in unbroken[2].items():
        assert_equal(state, resumed[2][number])
