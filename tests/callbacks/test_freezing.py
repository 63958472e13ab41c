"""Parts of the student that do not learn, or not from the start."""

from functools import partial

import lightning.pytorch as L
import pytest
import torch

from ndkd.callbacks import Freezing
from ndkd.errors import NdkdError
from ndkd.models import ModelConfig, build_model
from tests.distillation.watching import copied, same, unbroken_and_resumed

ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


class Changes(L.Callback):
    """Names of what each epoch has changed in the student, and the layers that were in evaluation mode."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = copied(pl_module.student.model)

    def on_train_start(self, trainer, pl_module):
        self.changed, self.evaluating = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        named = pl_module.student.model.named_modules()
        self.evaluating.append({name for name, layer in named if not layer.training and name})

    def on_train_epoch_end(self, trainer, pl_module):
        now = pl_module.student.model.state_dict()
        self.changed.append({name for name, value in now.items() if not torch.equal(value, self.before[name])})


def below(names, *parts):
    return {name for name in names if name.startswith(tuple(f"{part}." for part in parts))}


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1), ADAMW])
def test_frozen_for_good(fit, make_module, terms, optimizer):
    module, watch = make_module(terms("ce", "nd"), optimizer=optimizer), Changes()
    trainer = fit(module, Freezing(["conv1", "bn1", "layer1"]), watch, epochs=2)
    names = set(module.student.model.state_dict())
    frozen = below(names, "conv1", "bn1", "layer1")
    assert watch.changed == [names - frozen] * 2
    norms = {name.rsplit(".", 1)[0] for name in frozen if name.endswith("running_mean")}
    assert watch.evaluating == [norms] * 6
    held = {id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]}
    assert held == {id(p) for name, p in module.student.model.named_parameters() if name not in frozen}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("optimizer", [None, ADAMW])
def test_frozen_up_to_an_epoch(fit, make_module, terms, monkeypatch, optimizer, processes):
    """With several processes DDP wants gradients of all: they are thrown away."""
    options = {"optimizer": optimizer} if optimizer else {}
    module, watch = make_module(terms("ce"), **options), Changes()
    if processes > 1:
        monkeypatch.setattr("ndkd.callbacks.freezing._is_alone", lambda trainer: False)
    fit(module, Freezing(["layer[12]"], until_epoch=1), watch, epochs=2)
    names = set(module.student.model.state_dict())
    assert watch.changed == [names - below(names, "layer1", "layer2"), names]
    assert all(watch.evaluating[:3])
    assert watch.evaluating[3:] == [set()] * 3


def test_both_ways_train_alike(fit, make_module, terms, monkeypatch):
    found = []
    for alone in (True, False):
        monkeypatch.setattr("ndkd.callbacks.freezing._is_alone", lambda trainer, alone=alone: alone)
        module = make_module(terms("ce", "kd"))
        fit(module, Freezing(["conv1", "*.bias"], until_epoch=1), epochs=2)
        found.append(copied(module))
    assert same(*found)


@pytest.mark.parametrize("until", [None, 2, 3])
def test_resumed(fit, make_module, terms, tmp_path, until):
    def make():
        return make_module(terms("ce", "nd"), decay="matrices")

    unbroken, resumed = unbroken_and_resumed(fit, make, tmp_path, lambda: [Freezing(["layer1"], until)])
    for part in ("state_dict", "optimizer_states"):
        assert same(unbroken[part], resumed[part]), part


def test_what_was_frozen_before_stays_so(fit, make_module, terms):
    student = build_model("cifar/resnet8", 10)
    student.layer1.requires_grad_(False)
    module, watch = make_module(terms("ce"), student=student), Changes()
    fit(module, Freezing(["layer1", "layer2"], until_epoch=1), watch, epochs=2)
    parameters = {name for name, _ in student.named_parameters()}
    assert not below(parameters, "layer1") & watch.changed[1]
    assert below(parameters, "layer2") <= watch.changed[1]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layer1", "layr2"], "freeze: ResNet has nothing named 'layr2'; did you mean layer2"),
        (["*.nothing"], "freeze: ResNet has nothing named '\\*.nothing'; "),
        (["*"], "the student has nothing to train: all of its parameters are frozen"),
    ],
)
def test_names_that_leave_nothing(fit, make_module, terms, patterns, message):
    with pytest.raises(NdkdError, match=f"^{message}"):
        fit(make_module(terms("ce"), student=ModelConfig("cifar/resnet8")), Freezing(patterns))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": []}, "freeze: wanted a list of names such as \\[conv1, layer1\\], got \\[\\]"),
        ({"freeze": "layer1"}, "freeze: wanted a list of names such as \\[conv1, layer1\\], got 'layer1'"),
        ({"freeze": ["layer1"], "until_epoch": 0}, "until_epoch: wanted at least 1, got 0; leave it out"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(NdkdError, match=f"^{message}"):
        Freezing(**options)
